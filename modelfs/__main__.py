"""`python -m modelfs`, and the program `modelfs`."""

import signal


def run() -> None:
    """Import the program and run it; an interrupt while it imports ends it without a word."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from modelfs.cli.app import main

    main()


if __name__ == "__main__":
    run()
