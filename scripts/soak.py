"""The soak that scripts/soak runs: a mount, readers that compare every byte, and whatever can happen to a mount, at random.

Readers must see right bytes, and errors only where they are expected: while the mount is locked, taken down, or made again. Everything
that is random follows from the seed, but for the moment at which it hits.
"""

import argparse
import json
import mmap
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from benchmark.cache import filled_pages

from modelfs.control.process import is_running
from modelfs.control.socket import request, socket_path
from modelfs.errors import MountError
from modelfs.mount.mountinfo import top_mount
from modelfs.mount.session import cached_pages

MODES = ("buffered", "direct", "mapped")
RENEW_S, TTL_S, PROOF_S = 0.5, 8.0, 2.0
SIZE = 24 << 20
MEMORY_KB = 2048
"""How much memory of its own a process may have more at the end of its life than when it began; Python's allocator rounds up."""
DESCRIPTORS = 4
"""The same for descriptors: a proof, and a client of the control socket, may just be under way."""
WORKER_ENDS = (signal.SIGKILL, signal.SIGSEGV, signal.SIGSTOP)


class SoakError(Exception):
    """Something is not as it must be."""


@dataclass
class Summary:
    """What happened; printed as text, and written as JSON."""

    seed: int
    seconds: float = 0.0
    readers: int = 0
    reads: int = 0
    bytes: int = 0
    wrong: int = 0
    unexpected: int = 0
    """Errors that readers were told while none was expected."""
    errors: dict[str, int] = field(default_factory=dict)
    slowest_s: float = 0.0
    """The longest read while no error was expected."""
    events: dict[str, int] = field(default_factory=dict)
    mounts: int = 0
    worker_deaths: int = 0
    darkest_ms: float = 0.0
    """The longest from a lock or an unmount to an empty page cache, as the mount itself says."""
    growth: dict[str, int] = field(default_factory=dict)
    """The largest of any control process or warden over its life."""
    failures: list[str] = field(default_factory=list)

    @property
    def passed(self) -> bool:
        """Whether all was as it must be."""
        return not (self.wrong or self.unexpected or self.failures) and self.reads > 0 and sum(self.events.values()) > 0

    def text(self) -> str:
        """For a person."""
        events = ", ".join(f"{name} {count}" for name, count in sorted(self.events.items()))
        errors = ", ".join(f"{name} {count}" for name, count in sorted(self.errors.items())) or "none"
        lines = [
            f"seed {self.seed}, {self.seconds:.0f} s, {self.readers} readers: {self.reads} reads, {self.bytes / 1e9:.2f} GB compared",
            f"wrong reads: {self.wrong}; errors where none was expected: {self.unexpected}; others: {errors}",
            f"longest read where no error was expected: {self.slowest_s:.2f} s",
            f"{self.mounts} mounts, {self.worker_deaths} workers replaced; {events}",
            f"fence to empty page cache, longest: {self.darkest_ms:.0f} ms",
            f"growth of a control process or warden, largest: {json.dumps(self.growth)}",
            *(f"FAILED: {failure}" for failure in self.failures),
            "soak passed" if self.passed else "soak FAILED",
        ]
        return "\n".join(lines) + "\n"


class Expected:
    """What readers map: how often what is expected has changed, and whether errors are."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(bytes(16))
        self.path = path
        with open(path, "r+b") as file:
            self._slots = memoryview(mmap.mmap(file.fileno(), 16)).cast("Q")
        self.errors = True

    @property
    def errors(self) -> bool:
        """Whether readers may be told errors now."""
        return bool(self._slots[1])

    @errors.setter
    def errors(self, value: bool) -> None:
        self._slots[0] += 1
        self._slots[1] = value


class Soak:
    """One run."""

    def __init__(self, base: Path, seed: int, readers: int) -> None:
        """Make keys and a sealed model below `base`."""
        self.base, self.chance, self.summary = base, random.Random(seed), Summary(seed, readers=readers)
        self.mountpoint, self.plain = base / "mnt", base / "source" / "model.bin"
        self.mountpoint.mkdir()
        (base / "source").mkdir()
        self.plain.write_bytes(self.chance.randbytes(SIZE))
        (base / "source" / "config.json").write_text("{}\n")
        self.kek, self.expected = base / "kek", Expected(base / "expected")
        self.events: Counter[str] = Counter()
        self.readers: list[subprocess.Popen[str]] = []
        self.facts: dict[str, Any] = {}
        self._began: dict[int, dict[str, int]] = {}
        self._deaths = 0
        self.modelfs("keygen", "signing", base / "release.pem")
        self.modelfs("keygen", "kek", self.kek)
        kek = ["--kek", f"file:{self.kek}"]
        self.modelfs("seal", base / "source", base / "sealed", "--model", "soak", "--release", 1, *kek, "--sign-key", base / "release.pem")

    def modelfs(self, *words: object, code: int = 0) -> str:
        """Run the program; what it printed."""
        command = [sys.executable, "-m", "modelfs", *map(str, words)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        if done.returncode != code:
            raise SoakError(f"modelfs {words[0]} ended with {done.returncode}, not {code}: {done.stderr.strip()[-300:]}")
        return done.stdout

    # -- one mount

    def mount(self) -> None:
        """Make it, and expect no error from then on."""
        base = self.base
        options = ["--renew-every", RENEW_S, "--ttl", TTL_S, "--proof-timeout", PROOF_S, "--workers", self.chance.choice((1, 2, 3))]
        command = ["mount", base / "sealed", self.mountpoint, "--model", "soak", "--kek", f"file:{self.kek}"]
        self.modelfs(*command, "--trust", base / "release.pem.pub", "--state-dir", base / "state", *options)
        self.facts = self.status()
        self._began, self._deaths = self._sizes(), 0
        self.summary.mounts += 1
        self.expected.errors = False

    def status(self) -> dict[str, Any]:
        """Of the mount."""
        return request(socket_path(os.path.realpath(self.mountpoint)), {"do": "status"}, 10)

    @contextmanager
    def ending(self) -> Iterator[None]:
        """What is done in here ends the mount: afterwards it is dark, and gone, and is made again."""
        with suppress(MountError):
            self._deaths = self.status()["worker_deaths"]
        self._compare_sizes()
        pids = [self.facts["control"], self.facts["warden"]]
        fd = self._cached()
        self.expected.errors = True
        try:
            yield
            self.wait(lambda: not self.is_attached() and not any(map(is_running, pids)), 60, "the end of the mount")
            self._check_empty(fd)
        finally:
            os.close(fd)
        self.summary.worker_deaths += self._deaths
        self.mount()

    def is_attached(self) -> bool:
        """Whether a modelfs mount is at the mountpoint."""
        top = top_mount(os.fsencode(self.mountpoint))
        return top is not None and top.fs_type == "fuse.modelfs"

    def _cached(self) -> int:
        """A descriptor of a file of which something is in the page cache."""
        fd = os.open(self.mountpoint / "model.bin", os.O_RDONLY)
        os.pread(fd, 1 << 20, 0)
        if not filled_pages(fd, SIZE):
            raise SoakError("a file that was just read is not in the page cache: its absence would say nothing")
        return fd

    def _check_empty(self, fd: int) -> None:
        pages = cached_pages(fd)
        if pages:
            raise SoakError(f"{pages} pages of plaintext are left in the page cache")

    def _sizes(self) -> dict[int, dict[str, int]]:
        return {self.facts[role]: sizes_of(self.facts[role]) for role in ("control", "warden")}

    def _compare_sizes(self) -> None:
        growth = self.summary.growth
        for pid, now in self._sizes().items():
            for what, value in now.items():
                more = value - self._began[pid][what]
                growth[what] = max(growth.get(what, 0), more)
                if more > {"descriptors": DESCRIPTORS, "threads": 0, "memory_kb": MEMORY_KB}[what]:
                    raise SoakError(f"process {pid} has {more} {what} more than when it began")

    def wait(self, condition: Callable[[], bool], seconds: float, what: str) -> None:
        """Poll."""
        deadline = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > deadline:
                raise SoakError(f"{what} did not come within {seconds:g} s")
            time.sleep(0.01)

    # -- what happens

    def end_worker(self) -> None:
        """By a signal of somebody else, or of its own fault."""
        os.kill(self.chance.choice(self.status()["workers"]), self.chance.choice(WORKER_ENDS))
        time.sleep(0.5)  # two a second at most: more is a crash loop, in which readers may be told errors

    def end_prover(self) -> None:
        """A proof without an answer."""
        control, warden = self.facts["control"], self.facts["warden"]
        deadline = time.monotonic() + 2 * RENEW_S
        while time.monotonic() < deadline:
            for pid in map(int, Path(f"/proc/{control}/task/{control}/children").read_text().split()):
                if pid != warden:
                    with suppress(ProcessLookupError):
                        os.kill(pid, self.chance.choice(WORKER_ENDS))
                    return

    def renew(self) -> None:
        """As `modelfs renew`, which must be granted."""
        request(socket_path(os.path.realpath(self.mountpoint)), {"do": "renew"}, 30)

    def short_outage(self) -> None:
        """A key service that is away for less than the lease: nobody notices."""
        with self.without_key():
            time.sleep(self.chance.uniform(0.1, TTL_S / 3))
        self.renew()

    def long_outage(self) -> None:
        """For longer than the lease: the mount goes dark, and comes back by itself."""
        fd = self._cached()
        self.expected.errors = True
        try:
            with self.without_key():
                self.wait(lambda: self.status()["lease"] == "locked", 30, "the lease's end")
                self.wait(lambda: not cached_pages(fd), 5, "an empty page cache after the lease's end")
            self.wait(lambda: self.status()["lease"] == "granted", 30, "a new grant")
            self.renew()
            self.wait(self._serves, 10, "keyed workers")
        finally:
            os.close(fd)
        self.expected.errors = False

    def _serves(self) -> bool:
        with suppress(OSError):
            return (self.mountpoint / "config.json").read_bytes() == b"{}\n"
        return False

    @contextmanager
    def without_key(self) -> Iterator[None]:
        """The file of the KEK is not there."""
        away = self.base / "away"
        self.kek.rename(away)
        try:
            yield
        finally:
            away.rename(self.kek)

    def lock(self) -> None:
        """And unlock."""
        path, fd = socket_path(os.path.realpath(self.mountpoint)), self._cached()
        self.expected.errors = True
        try:
            start = time.monotonic()
            request(path, {"do": "lock"}, 30)
            self.summary.darkest_ms = max(self.summary.darkest_ms, (time.monotonic() - start) * 1000)
            if (filled := filled_pages(fd, SIZE)) != 0:
                raise SoakError(f"{filled} pages of plaintext are left in the page cache of a locked mount")
            time.sleep(self.chance.uniform(0, 0.3))
            request(path, {"do": "unlock"}, 30)
        finally:
            os.close(fd)
        self.expected.errors = False

    def stop_control(self) -> None:
        """For less than the lease: the workers go on by themselves."""
        os.kill(self.facts["control"], signal.SIGSTOP)
        time.sleep(self.chance.uniform(0.1, 0.8))
        os.kill(self.facts["control"], signal.SIGCONT)
        self.renew()

    def unmount(self) -> None:
        """As `modelfs unmount`; the proof must say that nothing is left."""
        with self.ending():
            proof = json.loads(self.modelfs("unmount", self.mountpoint, "--json"))
            if proof["resident_bytes"] != 0 or not proof["evicted"] or not proof["detached"]:
                raise SoakError(f"the proof is not clean: {proof}")
            self.summary.darkest_ms = max(self.summary.darkest_ms, proof["steps_ms"]["check"])

    def lazy_unmount(self) -> None:
        """By hand."""
        with self.ending():
            subprocess.run(["umount", "-l", self.mountpoint], check=True)

    def kill_control(self) -> None:
        """The warden takes the mount down."""
        with self.ending():
            os.kill(self.facts["control"], self.chance.choice((signal.SIGKILL, signal.SIGSEGV)))

    def kill_warden(self) -> None:
        """Control takes it down."""
        with self.ending():
            os.kill(self.facts["warden"], self.chance.choice((signal.SIGKILL, signal.SIGSEGV)))

    def lock_with_a_stopped_warden(self) -> None:
        """Taken down instead."""
        with self.ending():
            os.kill(self.facts["warden"], signal.SIGSTOP)
            self.modelfs("lock", self.mountpoint, code=7)

    def kill_all(self) -> None:
        """Nobody is left to evict anything, which is a known limit; but it can be mounted again."""
        self.expected.errors = True
        status = self.status()
        pids = [status["control"], status["warden"], *status["workers"]]
        self.summary.worker_deaths += status["worker_deaths"]
        for number in (signal.SIGSTOP, signal.SIGKILL):
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, number)
        self.wait(lambda: not any(map(is_running, pids)), 10, "the end of every process")
        self.mount()

    # -- the run

    def run(self, seconds: float) -> None:
        """Mount, read, let things happen, for so long."""
        actions: list[tuple[int, Callable[[], None]]] = [
            (40, self.end_worker),
            (10, self.end_prover),
            (10, self.renew),
            (6, self.short_outage),
            (3, self.long_outage),
            (12, self.lock),
            (4, self.stop_control),
            (5, self.unmount),
            (2, self.lazy_unmount),
            (2, self.kill_control),
            (2, self.kill_warden),
            (1, self.lock_with_a_stopped_warden),
            (1, self.kill_all),
        ]
        weights, functions = [weight for weight, _ in actions], [function for _, function in actions]
        start = time.monotonic()
        self.mount()
        try:
            for number in range(self.summary.readers):
                self.start_reader(MODES[number % len(MODES)])
            while time.monotonic() - start < seconds:
                time.sleep(self.chance.uniform(0, 0.7))
                (function,) = self.chance.choices(functions, weights)
                self.events[function.__name__] += 1
                function()
                if any(reader.poll() is not None for reader in self.readers):
                    raise SoakError("a reader ended by itself")
            self._compare_sizes()
            self.summary.worker_deaths += self.status()["worker_deaths"]
        finally:
            self.summary.seconds = time.monotonic() - start
            self.summary.events = dict(self.events)
            self.stop_readers()
        json.loads(self.modelfs("unmount", self.mountpoint, "--json"))

    def start_reader(self, mode: str) -> None:
        """In a process of its own."""
        script = Path(__file__).with_name("soak_reader.py")
        words = [script, mode, self.plain, self.mountpoint / "model.bin", self.expected.path, self.chance.randrange(1 << 32)]
        command = [sys.executable, *map(str, words)]
        self.readers.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))

    def stop_readers(self) -> None:
        """And add up what they have seen."""
        summary, errors = self.summary, Counter[str]()
        for reader in self.readers:
            try:
                said = json.loads(reader.communicate(timeout=60)[0])
            except (ValueError, subprocess.TimeoutExpired):
                reader.kill()
                reader.communicate()
                summary.failures.append("a reader died, or waits for ever")
                continue
            for name in ("reads", "bytes", "wrong", "unexpected"):
                setattr(summary, name, getattr(summary, name) + said[name])
            summary.slowest_s = max(summary.slowest_s, said["slowest_s"])
            errors.update(said["errors"])
        summary.errors = dict(errors)

    def clean_up(self) -> None:
        """Whatever is left."""
        for reader in self.readers:
            if reader.poll() is None:
                reader.kill()
                reader.communicate()
        if self.is_attached():
            with suppress(SoakError, subprocess.TimeoutExpired):
                self.modelfs("unmount", self.mountpoint)
        if self.is_attached():
            subprocess.run(["umount", "-l", self.mountpoint], check=False)


def sizes_of(pid: int) -> dict[str, int]:
    """Descriptors, threads and memory of its own (KiB) of a process."""
    told = Path(f"/proc/{pid}/status").read_text()
    words = {line.split(":")[0]: line.split()[1] for line in told.splitlines() if len(line.split()) > 1}
    return {"descriptors": len(os.listdir(f"/proc/{pid}/fd")), "threads": int(words["Threads"]), "memory_kb": int(words["RssAnon"])}


def main() -> int:
    """0 if all was well, 1 if it was not."""
    parser = argparse.ArgumentParser(prog="scripts/soak", description="Readers that compare every byte, and faults at random.")
    parser.add_argument("--minutes", type=float, default=1.0, metavar="N", help="how long [1]")
    parser.add_argument("--seed", type=int, metavar="N", help="as an earlier run has printed it [random]")
    parser.add_argument("--readers", type=int, default=6, metavar="N", help="how many, a third each buffered, direct and mapped [6]")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the summary there too")
    arguments = parser.parse_args()
    if not 0 < arguments.minutes <= 60 * 24 * 30:
        parser.error("--minutes is more than 0 and at most a month")
    if arguments.json is not None:  # now, and not after hours
        try:
            arguments.json.write_text("")
        except OSError as exc:
            parser.error(f"cannot write {arguments.json}: {exc.strerror}")
    if os.geteuid() != 0 or not os.path.exists("/dev/fuse"):
        print("soak: needs root and /dev/fuse", file=sys.stderr)
        return 1
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _stop)
    seed = arguments.seed if arguments.seed is not None else int.from_bytes(os.urandom(4), "big")
    print(f"seed {seed}", flush=True)
    with tempfile.TemporaryDirectory(prefix="modelfs-soak-") as temporary:
        soak = Soak(Path(temporary).resolve(), seed, arguments.readers)
        try:
            soak.run(arguments.minutes * 60)
        except Exception as exc:
            soak.summary.failures.append(f"{type(exc).__name__}: {exc}")
        except KeyboardInterrupt as exc:
            soak.summary.failures.append(f"interrupted ({exc})")
        if soak.summary.failures:
            log = Path(temporary) / "state" / "soak.log"
            sys.stderr.write("\n".join(log.read_text().splitlines()[-40:]) + "\n" if log.exists() else "")
        soak.clean_up()
        summary = soak.summary
    if arguments.json is not None:
        arguments.json.write_text(json.dumps({**asdict(summary), "passed": summary.passed}, indent=2) + "\n")
    sys.stdout.write(summary.text())
    return 0 if summary.passed else 1


def _stop(number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt(signal.Signals(number).name)


if __name__ == "__main__":
    sys.exit(main())
