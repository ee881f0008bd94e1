"""The benchmark of modelfs: `scripts/bench`. What each row means is in docs/PERFORMANCE.md."""
