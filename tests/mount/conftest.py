"""Real mounts: each test mounts through the command line and leaves nothing behind."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from modelfs.control.process import is_running
from modelfs.mount.mountinfo import top_mount
from tests.helpers import MODEL, REPOSITORY, Sealed


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs root and /dev/fuse; where CI has neither, that is a failure and not a skip."""
    missing = not os.path.exists("/dev/fuse") or os.geteuid() != 0
    for item in items:
        if "tests/mount" in str(item.path):
            item.add_marker(pytest.mark.fuse)
            if missing and not os.environ.get("CI"):
                item.add_marker(pytest.mark.skip(reason="needs root and /dev/fuse"))


def modelfs(
    *args: object, timeout: float = 60, cwd: Path | None = None, environment: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run the program as a user would, whose environment has some variables more."""
    command = [sys.executable, "-m", "modelfs", *map(str, args)]
    env = {**os.environ, **(environment or {}), "PYTHONPATH": str(REPOSITORY)}
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, env=env, cwd=cwd)


@dataclass
class Mounted:
    """A mount made by the command line."""

    sealed: Sealed
    path: Path
    state_dir: Path
    facts: dict[str, Any]
    options: list[str] = field(default_factory=list)

    @property
    def log(self) -> str:
        """What control, warden and workers have logged."""
        return (self.state_dir / f"{MODEL}.log").read_text()

    def status(self) -> dict[str, Any]:
        done = modelfs("status", self.path, "--json")
        assert done.returncode == 0, done.stderr
        return dict(json.loads(done.stdout))

    def pids(self) -> list[int]:
        """Every process of the mount."""
        status = self.status()
        return [status["control"], status["warden"], *status["workers"]]

    def unmount(self) -> dict[str, Any]:
        """`modelfs unmount`; the proof."""
        done = modelfs("unmount", self.path, "--json")
        assert done.returncode == 0, done.stderr + self.log
        return dict(json.loads(done.stdout))

    def is_attached(self) -> bool:
        return top_mount(os.fsencode(self.path)) is not None


def mount_command(sealed: Sealed, path: Path, state_dir: Path, *options: object, model: str = MODEL, kek: bool = True) -> list[object]:
    keys = sealed.keys
    # --kek may be repeated: a default would be asked first.
    default = ["--kek", f"file:{keys.kek}"] if kek and "--kek" not in options else []
    return ["mount", sealed.path, path, "--model", model, "--trust", keys.public, *default, "--state-dir", state_dir, *options]


def python_for_users(base: Path) -> tuple[str, str]:
    """An interpreter that other users may run, and the shell command that puts it there (in a mount namespace of its own)."""
    real = Path(sys.executable).resolve()
    if all(parent.stat().st_mode & 0o001 for parent in real.parents):
        return str(real), "true"
    place = base / "python"
    place.mkdir()
    return str(place / real.relative_to(sys.base_prefix)), f"mount --bind {sys.base_prefix} {place} && export LD_LIBRARY_PATH={place}/lib"


def wait_until(condition: Callable[[], bool], seconds: float = 10, what: str = "the condition") -> None:
    """Poll; fail the test when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"{what} did not come true within {seconds} s"
        time.sleep(0.01)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Mounted]]:
    """A mounter: `mount(sealed, "--workers", 3)`; everything is taken down after the test."""
    made: list[Mounted] = []

    def do(sealed: Sealed, *options: object, kek: bool = True, environment: Mapping[str, str] | None = None) -> Mounted:
        path, state_dir = tmp_path / f"mnt{len(made)}", tmp_path / f"state{len(made)}"
        path.mkdir(exist_ok=True)
        done = modelfs(*mount_command(sealed, path, state_dir, "--json", *options, kek=kek), environment=environment)
        assert done.returncode == 0, done.stderr
        mounted = Mounted(sealed, path, state_dir, json.loads(done.stdout))
        made.append(mounted)
        return mounted

    yield do
    for mounted in made:
        with contextlib.suppress(subprocess.TimeoutExpired):
            modelfs("unmount", mounted.path, timeout=30)
        for role in ("control", "warden"):
            if is_running(mounted.facts[role]):
                wait_until(lambda pid=mounted.facts[role]: not is_running(pid), 20, f"the end of {role}")
        if mounted.is_attached():
            subprocess.run(["umount", "-l", mounted.path], check=False)
            pytest.fail(f"{mounted.path} was left mounted")


class Program:
    """A reader in a process of its own, so that SIGBUS and a hang are its own too. Talks in lines of JSON."""

    def __init__(self, *args: object) -> None:
        script = Path(__file__).parent / "reader.py"
        self.process = subprocess.Popen(
            [sys.executable, str(script), *map(str, args)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def line(self) -> dict[str, Any]:
        """The next line that it prints."""
        assert self.process.stdout is not None
        text = self.process.stdout.readline()
        assert text, f"the reader died with {self.process.wait()}"
        return dict(json.loads(text))

    def finish(self) -> dict[str, Any]:
        """Tell it to go on or to stop; its last line."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        answer = self.line()
        self.process.wait(30)
        return answer

    def kill(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
        self.process.wait(10)
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with contextlib.suppress(OSError):
                    stream.close()


@pytest.fixture
def program() -> Iterator[Callable[..., Program]]:
    """Starts readers; kills what is left of them."""
    started: list[Program] = []

    def start(*args: object) -> Program:
        started.append(Program(*args))
        return started[-1]

    yield start
    for each in started:
        each.kill()
