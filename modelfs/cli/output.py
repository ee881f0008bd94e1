"""How commands talk: answers to stdout (text or JSON), notes and progress to stderr, errors as one sentence."""

import contextlib
import json
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO

import typer

from modelfs.errors import MountError


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    sys.stdout.write(json.dumps(value, indent=2) + "\n")


def note(text: str) -> None:
    """A remark for a person, on one line of stderr."""
    sys.stderr.write(f"modelfs: {printable(text)}\n")


def printable(text: str) -> str:
    """`text` on one line, with control characters escaped: a name in a sealed model must not drive a terminal."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class Stdout:
    """Standard output that remembers why it could not be written: a full disk is no bug of ours."""

    def __init__(self, stream: TextIO) -> None:
        """All but writing is the stream's own."""
        self._stream = stream
        self.error: OSError | None = None

    def __getattr__(self, name: str) -> Any:
        """As the stream has it."""
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        """Write, and remember."""
        try:
            return self._stream.write(text)
        except OSError as exc:
            self.error = exc
            raise

    def flush(self) -> None:
        """Flush, and remember."""
        try:
            self._stream.flush()
        except OSError as exc:
            self.error = exc
            raise

    def finish(self) -> OSError | None:
        """Write what is left; why not all could be written. It is dropped then: the interpreter's end would try again."""
        with contextlib.suppress(OSError):
            self.flush()
        if self.error is not None:
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            os.dup2(null, self._stream.fileno())
            os.close(null)
        return self.error


def format_size(size: float) -> str:
    """Bytes for a person."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


@contextlib.contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar with bytes, rate and time left on a terminal; nothing otherwise. Yields the function that advances it."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

    columns = (TextColumn(title), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=total)
        yield lambda count: bar.update(task, advance=count)


class LateBar(contextlib.ExitStack):
    """A progress bar whose total is known only when the work has begun."""

    def __init__(self, title: str) -> None:
        """Show nothing yet."""
        super().__init__()
        self._title = title
        self._advance: Callable[[int], None] = lambda _: None

    def begin(self, total: int) -> None:
        """Show it."""
        self._advance = self.enter_context(progress_bar(self._title, total))

    def advance(self, count: int) -> None:
        """`count` bytes more are done."""
        self._advance(count)


def print_proof(proof: dict[str, Any], json: bool) -> None:
    """What an unmount did; MountError if something may be left, whether that could be printed or not."""
    error: OSError | None = None
    try:
        print_json(proof) if json else _print_steps(proof)
    except OSError as exc:
        error = exc
    if not proof["evicted"] or not proof["detached"] or proof["resident_bytes"]:
        raise MountError("the unmount was forced: something may be left; see the proof, end the readers or restart the host")
    if proof.get("not_counted"):  # an older daemon says nothing of it
        raise MountError(f"unmounted, but what is left in the page cache is not known ({proof['not_counted']}): end the readers to be sure")
    if error is not None:
        raise error


def _print_steps(proof: dict[str, Any]) -> None:
    steps = ", ".join(f"{name} {milliseconds:.1f}" for name, milliseconds in proof["steps_ms"].items())
    resident = (
        f"not counted ({proof.get('not_counted') or 'needs root, Linux 6.5 and a mount that was still there'})"
        if proof["resident_bytes"] is None
        else f"{proof['resident_bytes']} bytes"
    )
    typer.echo(f"unmounted {printable(proof['mountpoint'])} ({proof['model']} release {proof['release']}, {proof['reason']})")
    typer.echo(f"steps, ms from the start: {steps}")
    typer.echo(f"plaintext left in the page cache: {resident}")
