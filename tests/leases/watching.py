"""Mounted models with short leases, and what a reader sees of them: before, during and after an outage or a denial."""

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelfs.control.socket import request, socket_path
from modelfs.errors import MountError
from modelfs.keys.interface import KeyProvider
from modelfs.keys.vault_session import boottime
from modelfs.mount.mountinfo import top_mount
from modelfs.seal.publish import SealRequest, Surroundings, seal_model
from modelfs.seal.scan import scan_source
from tests.helpers import NOW, KeySet, Sealed, load_signer, write_tree
from tests.mount.conftest import Mounted, modelfs, mount_command, wait_until

RENEW_S, TTL_S = 1.0, 4.0
PLAIN = os.urandom(3_000_000)
FILE = "model.bin"


def seal_for(provider: KeyProvider, keys: KeySet, base: Path, more: int = 0) -> Sealed:
    """The model that a Watcher reads, wrapped for one KEK, in `base`/sealed; with `more` bytes of zeros in another file."""
    source = write_tree(base / "source", {FILE: PLAIN, **({"more": b""} if more else {})})
    if more:
        os.truncate(source / "more", more)
    order = SealRequest("demo", 1, [provider], load_signer(keys.signing), "blake3", 131072, None, None)
    seal_model(scan_source(source, False), base / "sealed", order, Surroundings(now=NOW))
    return Sealed(base / "sealed", source, keys)


# Readers.


@dataclass(frozen=True)
class Sample:
    """One read; CLOCK_BOOTTIME seconds."""

    started: float
    ended: float
    errno: int | None
    """None: it gave the right bytes."""


class Watcher:
    """Reads a block of a mounted model again and again, past the page cache, through one descriptor that stays open."""

    def __init__(self, mounted: Mounted, pause_s: float = 0.02) -> None:
        self.samples: list[Sample] = []
        self._fd = os.open(mounted.path / FILE, os.O_RDONLY)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._wrong = False
        self._pause_s = pause_s

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        os.close(self._fd)
        assert not self._wrong, "a read gave wrong bytes"

    def is_good(self) -> bool:
        """Whether the last read was."""
        return bool(self.samples) and self.samples[-1].errno is None

    def bad(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.errno is not None]

    def last_good(self) -> Sample:
        return [sample for sample in self.samples if sample.errno is None][-1]

    def _run(self) -> None:
        while not self._stop.wait(self._pause_s):
            started, errno = boottime(), None
            try:
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
                self._wrong |= os.pread(self._fd, 4096, 0) != PLAIN[:4096]
            except OSError as exc:
                errno = exc.errno
            self.samples.append(Sample(started, boottime(), errno))


def status(mounted: Mounted) -> dict[str, Any]:
    """As `modelfs status`, without the time that a process takes."""
    return request(socket_path(str(mounted.path)), {"do": "status"}, 3)


# Outages.


@dataclass(frozen=True)
class Outage:
    """How to begin one, and how to end it."""

    begin: Callable[[], object]
    end: Callable[[], object]


@dataclass(frozen=True)
class Outcome:
    """What became of a mount; CLOCK_BOOTTIME seconds."""

    began: float
    """When the outage was there."""
    lease_end: tuple[float, float]
    """The lease's end lies between these two."""
    over: float
    """When the server was told to come back."""
    samples: list[Sample]
    """Since the outage was there."""
    state: str
    audited: list[str]
    """Kinds of the events in its audit log since then, in order."""
    reasons: list[str]
    """Of the renewals that failed."""

    def good(self) -> list[Sample]:
        """Before the server came back."""
        return [sample for sample in self.samples if sample.errno is None and sample.started < self.over]

    def dark(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.errno is not None]

    def again(self) -> list[Sample]:
        """Good reads since the server came back."""
        return [sample for sample in self.samples if sample.errno is None and sample.started >= self.over]


def endure(mounted: Mounted, outage: Outage, dark_s: float = 1.5) -> Outcome:
    """Live through an outage: into it, past the lease's end for `dark_s`, and out of it again."""

    def is_fresh() -> bool:
        found = status(mounted)
        return found["lease"] == "granted" and found["last_granted_s_ago"] < RENEW_S

    # Others that are being mounted at the same time may keep it from a proof or two.
    wait_until(is_fresh, 30, "a quiet start")
    with Watcher(mounted) as watcher:
        wait_until(lambda: is_fresh() and watcher.is_good(), 30, "a first read")
        before_it = len(_events(mounted))
        outage.begin()
        began = boottime()
        deadline, lease_end = began + 30, (0.0, 0.0)
        while (before := boottime(), found := status(mounted))[1]["lease"] in ("granted", "unreachable"):
            if found["lease_left_s"] > 0:  # else the lease has ended, and control is about to say so
                # Rounded to milliseconds.
                lease_end = before + found["lease_left_s"] - 0.001, boottime() + found["lease_left_s"] + 0.001
            assert before < deadline, "the lease does not end"
            time.sleep(0.05)
        time.sleep(dark_s)
        over = boottime()
        outage.end()
        wait_until(lambda: status(mounted)["lease"] == "granted", 10, "the grant after the outage")
        since = len(watcher.samples)
        wait_until(lambda: len(watcher.samples) > since + 20, 10, "reads after the outage")
    samples = [sample for sample in watcher.samples if sample.started >= began]
    events = _events(mounted)[before_it:]
    reasons = [event["reason"] for event in events if event["event"] == "renewal failed"]
    return Outcome(began, lease_end, over, samples, status(mounted)["state"], [event["event"] for event in events], reasons)


def _events(mounted: Mounted) -> list[dict[str, Any]]:
    return [json.loads(line) for line in mounted.facts["audit"].read_text().splitlines()]


@dataclass(frozen=True)
class Wanted:
    """A mount to be made."""

    sealed: Sealed
    options: list[object]
    environment: Mapping[str, str] | None = None
    """More variables, for it alone."""


@contextlib.contextmanager
def mounts(base: Path, wanted: Mapping[str, Wanted]) -> Iterator[dict[str, Mounted]]:
    """Many mounts at once, made and taken down side by side. Each has an audit log, `audit`, in its state directory."""

    def make(name: str) -> Mounted:
        sealed, options = wanted[name].sealed, wanted[name].options
        path, state_dir = base / f"{name}.mnt", base / f"{name}.state"
        path.mkdir()
        command = mount_command(sealed, path, state_dir, "--json", "--workers", 1, "--audit", base / f"{name}.audit", *options)
        done = modelfs(*command, environment=wanted[name].environment)
        assert done.returncode == 0, done.stderr
        return Mounted(sealed, path, state_dir, {"audit": base / f"{name}.audit"})

    def end(name: str) -> None:
        path = base / f"{name}.mnt"
        with contextlib.suppress(MountError):  # it was never there
            request(socket_path(str(path)), {"do": "unmount"}, 60, wait_for_end=True)
        assert top_mount(os.fsencode(path)) is None, f"{path} was left mounted"

    with ThreadPoolExecutor(4) as pool:
        making = {name: pool.submit(make, name) for name in wanted}
        try:
            yield {name: each.result() for name, each in making.items()}
        finally:
            wait(making.values())  # one that is still being made when another has failed is ended, too
            list(pool.map(end, wanted))


def pause() -> None:
    """Wait for any part of a renewal's interval, so that an event does not always find the same one."""
    time.sleep(int.from_bytes(os.urandom(2)) / 65536 * RENEW_S)
