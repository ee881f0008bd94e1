"""Ending a long command by a signal, so that it can be run again and goes on."""

import signal
import threading
from typing import NoReturn

import typer

from modelfs.cli.output import note


def stop_on_signals() -> threading.Event:
    """An event that SIGINT and SIGTERM set."""
    stop = threading.Event()

    def handle(_signal: int, _frame: object) -> None:
        stop.set()

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGTERM, handle)
    return stop


def interrupted() -> NoReturn:
    """Say how to go on, and exit."""
    note("interrupted; run the same command again and it goes on from the finished files")
    raise typer.Exit(1)
