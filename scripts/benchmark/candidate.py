"""What every candidate does: hold the files, be mounted by a daemon whose processes are known, be unmounted in order."""

import abc
import os
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmark.cache import files_below, sync
from benchmark.costs import family
from benchmark.system import BenchError, last_words, run, start

MOUNT_SECONDS = 60


class Candidate:
    """Plain files. Others override what differs."""

    programs: tuple[str, ...] = ()

    def __init__(self, name: str, source: Path, work: Path) -> None:
        """Nothing is made yet.

        Args:
            name: As in the report; what follows the program's name are its options.
            source: The plain files.
            work: A directory for all candidates.
        """
        self.name, self.source, self.work = name, source, work
        self.path = source
        """Where the plaintext is read."""
        self.store = source
        """Where the ciphertext lies."""
        self.daemon: subprocess.Popen[str] | None = None

    def prepare(self) -> None:
        """Have the files in the store, durable."""
        sync(files_below(self.store))

    def mount(self) -> None:
        """Start the daemon; return when the files can be read."""

    def unmount(self) -> None:
        """End the daemon; nothing is left mounted."""

    def pids(self) -> list[int]:
        """Every process that serves reads."""
        return family(self.daemon.pid) if self.daemon else []

    @property
    def is_mount(self) -> bool:
        """Whether the plaintext is seen through a mount of the store."""
        return self.store != self.path

    def stored_files(self) -> list[Path]:
        """Every file of the store, if it is not the plaintext itself."""
        return files_below(self.store) if self.is_mount else []


class FuseCandidate(Candidate, abc.ABC):
    """A FUSE daemon in the foreground."""

    store_name = ""
    """Candidates that read one store share its name."""
    fuse_type = "fuse"

    def __init__(self, name: str, source: Path, work: Path) -> None:
        """As `Candidate`; makes the directories."""
        super().__init__(name, source, work)
        self.path, self.store = work / "mnt" / name, work / "store" / (self.store_name or name)
        self.log = work / f"{name}.log"
        for directory in (self.path, self.store):
            directory.mkdir(parents=True, exist_ok=True)

    def create(self) -> None:
        """Make an empty encrypted store."""

    @abc.abstractmethod
    def command(self, writable: bool) -> Sequence[object]:
        """The daemon's command line, in the foreground."""

    def variables(self) -> dict[str, str]:
        """Environment of the daemon."""
        return {}

    def prepare(self) -> None:
        """Copy the files through a writable mount."""
        self.create()
        self.launch(writable=True)
        try:
            run("cp", "-R", f"{self.source}/.", self.path)
        finally:
            self.unmount()
        sync(files_below(self.store))

    def mount(self) -> None:
        """Read-only where the program can."""
        self.launch(writable=False)

    def launch(self, writable: bool) -> None:
        """Start the daemon and wait for its mount; BenchError if it does not come."""
        self.daemon = start(self.command(writable), self.log, env=self.variables())
        deadline = time.monotonic() + MOUNT_SECONDS
        while not is_mounted(self.path):
            if self.daemon.poll() is not None or time.monotonic() > deadline:
                self.unmount()
                raise BenchError(f"{self.name} did not mount: {last_words(self.log.read_text(errors='replace'))}")
            time.sleep(0.005)

    def unmount(self) -> None:
        """Unmount, wait for the daemon, kill what does not end."""
        for options in (["-u"], ["-u", "-z"]):
            if is_mounted(self.path):
                with suppress(BenchError):
                    run("fusermount3", *options, self.path, timeout=30)
        if self.daemon is not None:
            try:
                self.daemon.wait(10)
            except subprocess.TimeoutExpired:
                self.daemon.kill()
                self.daemon.wait(10)
        self.daemon = None


def is_mounted(path: Path) -> bool:
    """Whether the kernel's table has a FUSE mount at `path`; the file system there is not asked."""
    wanted = os.fsencode(path.absolute())
    return any(line.split(b" ")[4] == wanted for line in Path("/proc/self/mountinfo").read_bytes().splitlines())
