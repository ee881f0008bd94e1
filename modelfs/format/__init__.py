"""The bytes of a sealed model, docs/FORMAT.md: sizes, names, parsing, serialising. No I/O, no cryptography."""
