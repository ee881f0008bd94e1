"""`python -m modelfs`."""

from modelfs.cli.app import main

main()
