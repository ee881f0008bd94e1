"""Faults at random moments, under readers in processes of their own that compare every byte. Seeds are printed."""

import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from modelfs.control.process import is_running
from modelfs.control.socket import request, socket_path
from modelfs.mount.mountinfo import top_mount
from tests.conftest import SealedBuilder
from tests.helpers import REPOSITORY, Sealed
from tests.mount.conftest import Mounted, Program, mount, program, wait_until

__all__ = ["mount", "program"]

SIZE = 16 << 20
MODES = ("buffered", "direct", "mmap", "buffered", "direct", "buffered", "direct", "buffered")
REVOKED = {"EKEYREVOKED", "ENOTCONN", "ECONNABORTED"}
"""What readers of a mount that ends may be told."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """As in tests/mount: without root and /dev/fuse nothing of this can run."""
    missing = not os.path.exists("/dev/fuse") or os.geteuid() != 0
    for item in items:
        if "tests/faults" in str(item.path):
            item.add_marker(pytest.mark.fuse)
            if missing and not os.environ.get("CI"):
                item.add_marker(pytest.mark.skip(reason="needs root and /dev/fuse"))


@pytest.fixture
def chance(request: pytest.FixtureRequest) -> random.Random:
    """Where a test's randomness comes from. Run it again with MODELFS_SEED=N."""
    seed = int(os.environ.get("MODELFS_SEED") or int.from_bytes(os.urandom(4), "big"))
    print(f"MODELFS_SEED={seed} pytest {request.node.nodeid}")
    return random.Random(seed)


@pytest.fixture
def model(sealed: SealedBuilder) -> Sealed:
    """16 MiB in one file, and a small one, in blocks of the usual size."""
    return sealed({"model.bin": random.Random(5).randbytes(SIZE), "config.json": b"{}\n"}, block_size=128 * 1024)


def status(mounted: Mounted) -> dict[str, Any]:
    """As `modelfs status` shows it, but without the time that starting a program takes."""
    return request(socket_path(os.path.realpath(mounted.path)), {"do": "status"}, 10)


class Crowd:
    """Eight readers of one file, or as many as are asked for, that compare every byte. They stop at a wrong one."""

    def __init__(self, start: Callable[..., Program], mounted: Mounted, count: int = len(MODES)) -> None:
        path, plain = mounted.path / "model.bin", mounted.sealed.source / "model.bin"
        self.readers = [start("loop", mode, path, plain) for mode in MODES[:count]]
        for reader in self.readers:
            reader.line()

    def finish(self) -> set[str]:
        """Stop them: not one wrong byte. The errors that they were told, and SIGBUS, of which one that reads a mapping dies."""
        errors: set[str] = set()
        for mode, reader in zip(MODES, self.readers, strict=False):
            with suppress(BrokenPipeError):
                assert reader.process.stdin is not None
                reader.process.stdin.close()
            assert reader.process.stdout is not None
            text = reader.process.stdout.readline()
            code = reader.process.wait(30)
            if code == -7 and mode == "mmap" and not text:
                errors.add("SIGBUS")
                continue
            assert code == 0, f"a reader ({mode}) ended with {code}"
            result = json.loads(text)
            assert result["wrong"] == 0, f"{mode}: {result}"
            assert result["reads"] >= 20, f"{mode}: too few reads to show anything: {result}"
            errors |= set(result["errors"])
        return errors


@pytest.fixture
def crowd(program: Callable[..., Program]) -> Callable[..., Crowd]:
    """Starts readers of a mount: eight, or `crowd(mounted, 3)`."""
    return lambda mounted, *rest: Crowd(program, mounted, *rest)


def assert_gone(mounted: Mounted, pids: list[int]) -> None:
    """Nothing is mounted and nobody is left."""
    wait_until(lambda: not mounted.is_attached(), 20, "the detaching")
    wait_until(lambda: not any(map(is_running, pids)), 20, f"the end of {pids}")


def assert_dark(after: dict[str, Any]) -> None:
    """What `reader.py hold` says at the end of a mount that was revoked."""
    assert after["read"] in REVOKED, after
    assert after["resident"] == 0, after
    assert after["touch"] == "SIGBUS", after


def children(pid: int) -> list[int]:
    """Children of a process."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    return []


class MemoryGroup:
    """A control group with so little memory that the kernel's OOM killer ends whoever is put into it. cgroup v2, or v1."""

    def __init__(self, limit: int) -> None:
        v1 = Path("/sys/fs/cgroup/memory")
        base, name = (v1, "memory.limit_in_bytes") if (v1 / "memory.limit_in_bytes").exists() else (_unified(), "memory.max")
        self.path = base / f"modelfs-test-{os.getpid()}-{time.monotonic_ns()}"
        self.path.mkdir()
        (self.path / name).write_text(str(limit))
        if name == "memory.max":
            with suppress(OSError):
                (self.path / "memory.swap.max").write_text("0")

    def take(self, pid: int) -> None:
        """Put a process into it; what it has already is not counted under v1, what it takes from now on is."""
        (self.path / "cgroup.procs").write_text(str(pid))

    def kills(self) -> int:
        """How often the OOM killer has killed here."""
        for name in ("memory.events", "memory.oom_control"):
            if (self.path / name).exists():
                return int(dict(line.split() for line in (self.path / name).read_text().splitlines()).get("oom_kill", 0))
        raise AssertionError("no counter of OOM kills")

    def remove(self) -> None:
        """When its processes have ended."""
        wait_until(lambda: not (self.path / "cgroup.procs").read_text(), 10, "the end of its processes")
        self.path.rmdir()


def _unified() -> Path:
    base = Path("/sys/fs/cgroup")
    with suppress(OSError):
        (base / "cgroup.subtree_control").write_text("+memory")
    return base


@pytest.fixture
def memory_group() -> Iterator[Callable[[int], MemoryGroup]]:
    """Makes control groups with a limit in bytes."""
    made: list[MemoryGroup] = []

    def make(limit: int) -> MemoryGroup:
        try:
            made.append(MemoryGroup(limit))
        except OSError as exc:
            if os.environ.get("CI"):
                raise
            pytest.skip(f"no control group for memory can be made here: {exc}")
        return made[-1]

    yield make
    for group in made:
        group.remove()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Makes small disks (tmpfs): `disk("64k")`."""
    made: list[Path] = []

    def make(size: str) -> Path:
        path = tmp_path / f"disk{len(made)}"
        path.mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "none", path], check=True)
        made.append(path)
        return path

    yield make
    for path in made:
        subprocess.run(["umount", "-l", path], check=True)


class BadStore:
    """A store that goes wrong when told to: bad_store.py over a sealed model."""

    def __init__(self, below: Path, base: Path) -> None:
        self.mountpoint, self._fault = base / "badstore", base / "fault.json"
        self.mountpoint.mkdir()
        self.goes()
        command = [sys.executable, "-m", "tests.faults.bad_store", below, self.mountpoint, self._fault]
        self.process = subprocess.Popen(list(map(str, command)), cwd=REPOSITORY)
        wait_until(lambda: top_mount(os.fsencode(self.mountpoint)) is not None, 10, "the store's mount")

    def goes(self, **fault: float) -> None:
        """From now on reads go so; well, without a fault."""
        fresh = self._fault.with_suffix(".new")
        fresh.write_text(json.dumps(fault))
        fresh.replace(self._fault)

    def close(self) -> None:
        self.goes()
        subprocess.run(["umount", "-l", self.mountpoint], check=False)
        self.process.terminate()
        self.process.wait(10)


@pytest.fixture
def bad_store(tmp_path: Path) -> Iterator[Callable[[Path], BadStore]]:
    """Makes stores that go wrong. Ask for it before `mount`: mounts go first."""
    made: list[BadStore] = []

    def make(below: Path) -> BadStore:
        made.append(BadStore(below, tmp_path))
        return made[-1]

    yield make
    for store in made:
        store.close()
