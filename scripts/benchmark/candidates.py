"""What is compared, each as its program ships it."""

import os
import select
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from benchmark.cache import files_below, read_ahead_file, read_ahead_kb, sync
from benchmark.candidate import MOUNT_SECONDS, Candidate, FuseCandidate, is_mounted
from benchmark.system import BenchError, install, last_words, python, run, start

MODEL = "bench"
PASSWORD = "benchmark"
DEFAULT = ["ext4", "passthrough", "gocryptfs", "modelfs", "modelfs-1", "securefs", "rclone", "encfs", "cryfs"]
QUICK = ["ext4", "passthrough", "gocryptfs", "modelfs", "modelfs-1"]


class Passthrough(FuseCandidate):
    """Our C program: what FUSE costs where nothing is decrypted, with modelfs's read-ahead."""

    programs = ("gcc", "fusermount3")
    read_ahead_kb = 1024
    """Overwritten by what a modelfs mount of the same run has."""

    def __init__(self, name: str, source: Path, work: Path) -> None:
        """Its store is the plain files."""
        super().__init__(name, source, work)
        self.store = source

    def prepare(self) -> None:
        """Compile."""
        flags = run("pkg-config", "--cflags", "--libs", "fuse3").split()
        run("gcc", "-O2", Path(__file__).with_name("passthrough.c"), "-o", self.work / "passthrough", *flags)

    def command(self, writable: bool) -> Sequence[object]:
        """It is in the foreground always."""
        return [self.work / "passthrough", self.source, self.path]

    def mount(self) -> None:
        """As root with modelfs's read-ahead; without, both have the kernel's default."""
        super().mount()
        with suppress(OSError):
            read_ahead_file(self.path).write_text(str(self.read_ahead_kb))


class Gocryptfs(FuseCandidate):
    """gocryptfs with its defaults: AES-256-GCM, blocks of 4 KiB."""

    programs = ("gocryptfs", "fusermount3")

    def create(self) -> None:
        """With a password file."""
        password = self.work / "password"
        password.write_text(f"{PASSWORD}\n")
        run("gocryptfs", "-init", "-q", "-passfile", password, self.store)

    def command(self, writable: bool) -> Sequence[object]:
        """-fg keeps it one process."""
        read_only = [] if writable else ["-ro"]
        return ["gocryptfs", "-fg", "-q", *read_only, "-passfile", self.work / "password", self.store, self.path]


class Securefs(FuseCandidate):
    """securefs with its default format (lite, AES-256-GCM)."""

    programs = ("securefs", "fusermount3")

    def create(self) -> None:
        """With a password on the command line, stretched once: it protects nothing here, and only mounting would be slower."""
        run("securefs", "create", "-r", 1, "--pass", PASSWORD, self.store)

    def command(self, writable: bool) -> Sequence[object]:
        """In the foreground unless told otherwise."""
        read_only = [] if writable else ["-o", "ro"]
        return ["securefs", "mount", "--pass", PASSWORD, *read_only, self.store, self.path]


class Rclone(FuseCandidate):
    """A crypt remote over a local directory, filled by `rclone copy` and mounted."""

    programs = ("rclone", "fusermount3")

    def _words(self, *words: object) -> list[object]:
        return ["rclone", "--config", self.work / "rclone.conf", *words]

    def prepare(self) -> None:
        """`rclone copy`: its mount does not write without a cache."""
        secret = run("rclone", "obscure", PASSWORD).strip()
        (self.work / "rclone.conf").write_text(f"[crypt]\ntype = crypt\nremote = {self.store}\npassword = {secret}\n")
        run(*self._words("copy", self.source, "crypt:"))
        sync(files_below(self.store))

    def command(self, writable: bool) -> Sequence[object]:
        """Its cache directory stays below ours; it is not used for reads."""
        return self._words("mount", "crypt:", self.path, "--read-only", "--cache-dir", self.work / "rclone-cache")


class Encfs(FuseCandidate):
    """encfs with its standard settings: AES, 192 bits, no authentication of blocks."""

    programs = ("encfs", "fusermount3")

    def create(self) -> None:
        """The first mount makes the store."""
        command = ["encfs", "--standard", f"--extpass=echo {PASSWORD}", self.store, self.path]
        run(*command)
        run("fusermount3", "-u", self.path)

    def command(self, writable: bool) -> Sequence[object]:
        """-f keeps it in the foreground."""
        return ["encfs", "-f", f"--extpass=echo {PASSWORD}", self.store, self.path, *([] if writable else ["--", "-o", "ro"])]


class Cryfs(FuseCandidate):
    """CryFS with its defaults."""

    programs = ("cryfs", "fusermount3")

    def variables(self) -> dict[str, str]:
        """No questions, no update check, no state in the home directory."""
        state = str(self.work / "cryfs-state")
        return {"CRYFS_FRONTEND": "noninteractive", "CRYFS_NO_UPDATE_CHECK": "true", "CRYFS_LOCAL_STATE_DIR": state}

    def command(self, writable: bool) -> Sequence[object]:
        """The password comes on stdin."""
        words = ["cryfs", "-f", self.store, self.path]
        return ["sh", "-c", f'echo {PASSWORD} | exec "$@"', "sh", *words]


class Modelfs(FuseCandidate):
    """modelfs under a file KEK; `modelfs` with its default workers, `modelfs-N` with N."""

    programs = ("fusermount3",)
    store_name = "modelfs"

    @property
    def workers(self) -> str:
        """As --workers has it."""
        return self.name.partition("-")[2] or "auto"

    def seal(self, destination: Path) -> None:
        """Seal the source; `destination` is empty or missing."""
        run(*seal_command(self.source, destination, self.work / "keys"))

    def prepare(self) -> None:
        """Seal, unless another modelfs candidate has; sealing leaves nothing to be written."""
        if not any(self.store.iterdir()):
            make_keys(self.work / "keys")
            self.seal(self.store)

    def command(self, writable: bool) -> Sequence[object]:
        """Control stays in the foreground; warden and workers descend from it."""
        return mount_command(self.store, self.path, self.work / "keys", self.work / f"state-{self.name}", "--workers", self.workers)

    def launch(self, writable: bool) -> None:
        """It is ready when it says so, which is after the mount is in the kernel's table."""
        self.daemon = start(self.command(writable), self.log, stdout=subprocess.PIPE)
        assert self.daemon.stdout is not None
        fd, said, deadline = self.daemon.stdout.fileno(), b"", time.monotonic() + MOUNT_SECONDS
        while select.select([fd], [], [], max(0.0, deadline - time.monotonic()))[0] and (part := os.read(fd, 65536)):
            said += part
            if said.endswith(b"\n}\n"):
                return
        self.unmount()
        raise BenchError(f"{self.name} did not mount: {last_words(self.log.read_text(errors='replace'))}")

    def unmount(self) -> None:
        """`modelfs unmount`, and by hand if that fails."""
        if is_mounted(self.path):
            with suppress(BenchError):
                run(*python("modelfs", "unmount", self.path), timeout=120)
        daemon = self.daemon
        super().unmount()
        if daemon is not None and daemon.stdout is not None:
            daemon.stdout.close()


def make_keys(keys: Path) -> None:
    """A signing key and a KEK, once."""
    if not keys.exists():
        keys.mkdir()
        run(*python("modelfs", "keygen", "signing", keys / "sign"))
        run(*python("modelfs", "keygen", "kek", keys / "kek"))


def seal_command(source: Path, destination: Path, keys: Path) -> list[str]:
    """`modelfs seal` of release 1."""
    names = ["--model", MODEL, "--release", 1, "--kek", f"file:{keys / 'kek'}", "--sign-key", keys / "sign"]
    return python("modelfs", "seal", source, destination, *names)


def mount_command(sealed: Path, mountpoint: Path, keys: Path, state: Path, *options: object) -> list[str]:
    """`modelfs mount` in the foreground."""
    names = ["--model", MODEL, "--kek", f"file:{keys / 'kek'}", "--trust", keys / "sign.pub", "--state-dir", state]
    return python("modelfs", "mount", sealed, mountpoint, *names, "--json", "--foreground", *options)


KINDS: dict[str, type[Candidate]] = {
    "ext4": Candidate,
    "passthrough": Passthrough,
    "gocryptfs": Gocryptfs,
    "modelfs": Modelfs,
    "securefs": Securefs,
    "rclone": Rclone,
    "encfs": Encfs,
    "cryfs": Cryfs,
}


def kind_of(name: str) -> type[Candidate]:
    """The class of a candidate; BenchError for a name that is none."""
    program, dash, options = name.partition("-")
    if program not in KINDS or (dash and not (program == "modelfs" and options.isdigit() and int(options) > 0)):
        raise BenchError(f"there is no candidate {name}: choose from {', '.join(KINDS)} and modelfs-N (N workers)")
    return KINDS[program]


def bring_up(names: Sequence[str], source: Path, work: Path) -> tuple[list[Candidate], dict[str, str]]:
    """Prepare and mount candidates, modelfs first because the passthrough takes over its read-ahead.

    Returns:
        Those that are mounted, in the order of `names`; and why each of the others is missing.
    """
    missing: dict[str, str] = {}
    absent = set(install({program for name in names for program in kind_of(name).programs}))
    ready: list[Candidate] = []
    for name in sorted(names, key=lambda name: not name.startswith("modelfs")):
        lacking = absent & set(kind_of(name).programs)
        if lacking:
            missing[name] = f"{', '.join(sorted(lacking))} is not installed (as root the benchmark installs it on Debian)"
            continue
        candidate = kind_of(name)(name, source, work)
        try:
            candidate.prepare()
            candidate.mount()
        except (BenchError, OSError) as exc:
            candidate.unmount()
            missing[name] = str(exc)
            continue
        except BaseException:
            take_down([*ready, candidate])
            raise
        if isinstance(candidate, Modelfs):
            Passthrough.read_ahead_kb = read_ahead_kb(candidate.path) or Passthrough.read_ahead_kb
        ready.append(candidate)
    return sorted(ready, key=lambda candidate: names.index(candidate.name)), missing


def take_down(candidates: Sequence[Candidate]) -> None:
    """Unmount all, whatever one of them says."""
    for candidate in candidates:
        with suppress(BenchError, OSError, subprocess.SubprocessError):
            candidate.unmount()
