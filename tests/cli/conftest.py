"""Running the command line: in this process (quick, and hooks can be put in), or as a program of its own."""

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from modelfs.cli.app import main
from tests.helpers import MODEL, KeySet


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def fails(self, code: int, *texts: str) -> None:
        """Assert the exit code, and one printable sentence on stderr that holds `texts`."""
        assert self.code == code, self
        lines = self.err.splitlines()
        assert len(lines) == 1, f"not one line: {self.err!r}"
        assert lines[0].startswith("modelfs: ")
        assert lines[0].isprintable()
        assert "Traceback" not in self.err + self.out
        for text in texts:
            assert text in lines[0]

    def succeeds(self) -> "Result":
        assert self.code == 0, self
        assert self.err == ""
        return self


Run = Callable[..., Result]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Iterator[Run]:
    """`run("verify", path, ...)` calls the program's own main()."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["modelfs", *map(os.fspath, (str(a) if not isinstance(a, Path) else a for a in arguments))])
        capfd.readouterr()
        code = 0
        try:
            main()
        except SystemExit as exc:
            code = exc.code if isinstance(exc.code, int) else (0 if exc.code is None else 1)
        captured = capfd.readouterr()
        return Result(code, captured.out, captured.err)

    yield call
    for number, handler in handlers.items():
        signal.signal(number, handler)


@dataclass(frozen=True)
class Cli:
    """`run` with the usual options filled in."""

    run: Run
    keys: KeySet

    def seal(self, source: Path, destination: Path, *more: object, release: int = 1, trust: bool = False) -> Result:
        options: list[object] = ["--model", MODEL, "--release", release, "--kek", f"file:{self.keys.kek}", "--sign-key", self.keys.signing]
        options += ["--trust", self.keys.public] if trust else []
        return self.run("seal", source, destination, "--block-size", "4K", *options, *more)

    def verify(self, sealed: Path, *more: object) -> Result:
        return self.run("verify", sealed, "--trust", self.keys.public, *more)

    def inspect(self, sealed: Path, *more: object) -> Result:
        return self.run("inspect", sealed, "--trust", self.keys.public, "--kek", f"file:{self.keys.kek}", *more)


@pytest.fixture
def cli(run: Run, keys_dir: KeySet) -> Cli:
    return Cli(run, keys_dir)
