"""What an operator can get wrong on a host. Each check reads only what a `Host` names, so that it can be given another tree."""

import ctypes
import os
import re
import shutil
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

from modelfs.control.keypage import has_secret_memory
from modelfs.control.process import libc
from modelfs.control.sandbox import missing
from modelfs.crypto.measure import aead_drops_gil, has_decrypt_into
from modelfs.doctor.check import Check

MIB = 1 << 20
EARLIEST = 1_735_689_600.0
"""2025-01-01: no clock of a host that has this program is right before that."""
LATEST = 4_102_444_800.0
"""2100-01-01."""
_CAP_IPC_LOCK = 14
_MIN_LOCKED = 64 * 1024
_TIME_ERROR = 5


def is_clock_synchronised() -> bool | None:
    """What the kernel says; None if it does not."""
    # struct timex has some 200 bytes; all zero, it asks and sets nothing.
    state = libc.adjtimex(ctypes.create_string_buffer(1024))
    return None if state < 0 else state != _TIME_ERROR


def _import_mount() -> None:
    import_module("modelfs.mount.session")


@dataclass(frozen=True)
class Host:
    """Everything that the checks look at."""

    state_dir: Path
    root: Path = Path("/")
    """Where proc, sys, dev, etc and the programs are."""
    euid: int = field(default_factory=os.geteuid)
    search_path: str = field(default_factory=lambda: os.environ.get("PATH", os.defpath))
    may: Callable[[Path, int], bool] = os.access
    open_device: Callable[[Path, int], int] = os.open
    free_bytes: Callable[[Path], int] = lambda path: shutil.disk_usage(path).free
    import_mount: Callable[[], object] = _import_mount
    has_secret_memory: Callable[[], bool] = has_secret_memory
    not_confined: Callable[[], list[str]] = missing
    cryptography_version: Callable[[], str] = lambda: version("cryptography")
    has_decrypt_into: Callable[[], bool] = has_decrypt_into
    aead_drops_gil: Callable[[], bool] = aead_drops_gil
    now: Callable[[], float] = time.time
    is_clock_synchronised: Callable[[], bool | None] = is_clock_synchronised

    @property
    def is_root(self) -> bool:
        """Whether modelfs runs as root."""
        return self.euid == 0

    def read(self, path: str) -> str | None:
        """A small text file below the root; None if it is not there or not to be read."""
        try:
            return (self.root / path).read_text(errors="replace")
        except OSError:
            return None


def check_fusermount(host: Host) -> Check:
    """The program that mounts for others than root."""
    name = "fusermount3"
    for directory in filter(None, host.search_path.split(":")):
        try:
            mode = (host.root / directory.lstrip("/") / name).stat().st_mode
        except OSError:
            continue
        if not stat.S_ISREG(mode) or not mode & 0o111:
            continue
        if host.is_root or mode & stat.S_ISUID:
            return Check(name, "ok", f"in {directory}")
        return Check(name, "warning", f"in {directory}, but not setuid root", "install the package fuse3 anew, or mount as root")
    if host.is_root:
        return Check(name, "ok", "missing, and root does not need it")
    return Check(name, "error", "missing", "install the package fuse3, or mount as root")


def check_pyfuse3(host: Host) -> Check:
    """pyfuse3 and with it libfuse3."""
    name = "libfuse"
    try:
        host.import_mount()
    except Exception as exc:  # a library of the wrong build raises what it likes
        return Check(name, "error", f"pyfuse3 cannot be imported ({type(exc).__name__}: {exc})", "install fuse3 and modelfs[mount]")
    return Check(name, "ok", "pyfuse3 and libfuse3 can be used")


def check_dev_fuse(host: Host) -> Check:
    """The device, by opening it: a container's rules say no only then."""
    name, path = "dev-fuse", host.root / "dev/fuse"
    try:
        if not stat.S_ISCHR(path.stat().st_mode):
            return Check(name, "error", "/dev/fuse is no device", "remove it, and load the module: modprobe fuse")
        os.close(host.open_device(path, os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        return Check(name, "error", "there is no /dev/fuse", "modprobe fuse, or pass the device into the container (--device /dev/fuse)")
    except PermissionError:
        return Check(name, "error", "no permission for /dev/fuse", "mount as root, chmod 666 /dev/fuse, or allow the container the device")
    except OSError as exc:
        return Check(name, "error", f"/dev/fuse cannot be opened: {os.strerror(exc.errno or 0)}", "load the module: modprobe fuse")
    return Check(name, "ok", "/dev/fuse can be opened")


def check_allow_other(host: Host) -> Check:
    """Whether other users can be let in."""
    name = "user-allow-other"
    if host.is_root:
        return Check(name, "ok", "not needed by root")
    # The whole line, as `modelfs mount` reads it.
    if "user_allow_other" in (host.read("etc/fuse.conf") or "").split("\n"):
        return Check(name, "ok", "in /etc/fuse.conf")
    return Check(
        name, "warning", "not in /etc/fuse.conf: --allow-other will be refused", "add the line user_allow_other, if other users shall read"
    )


def check_bdi(host: Host) -> Check:
    """Whether the size of the kernel's requests can be set."""
    name = "read-ahead"
    try:
        knobs = [path / "read_ahead_kb" for path in (host.root / "sys/class/bdi").iterdir()]
    except OSError:
        knobs = []
    knobs = [path for path in knobs if path.exists()]
    if not knobs:
        return Check(name, "unknown", "no /sys/class/bdi/*/read_ahead_kb to try", "mount sysfs at /sys")
    if host.is_root and any(host.may(path, os.W_OK) for path in knobs):
        return Check(name, "ok", "can be set: requests of 1 MiB")
    return Check(
        name,
        "warning",
        "cannot be set: requests stay at 128 KiB, about half the speed of a first read",
        "give the container a writable /sys"
        if host.is_root
        else "mount as root, or set /sys/class/bdi/MAJOR:MINOR/read_ahead_kb to 1024 as root",
    )


def _kernel(host: Host) -> tuple[str, tuple[int, int] | None]:
    release = (host.read("proc/sys/kernel/osrelease") or "").strip()
    found = re.match(r"(\d{1,4})\.(\d{1,4})", release)
    return release or "not said", (int(found[1]), int(found[2])) if found else None


def _check_kernel(host: Host, name: str, needed: tuple[int, int], gives: str, lost: str) -> Check:
    release, number = _kernel(host)
    if number is None:
        return Check(name, "unknown", f"Linux {release}", f"{gives} needs {needed[0]}.{needed[1]}")
    if number >= needed:
        return Check(name, "ok", f"Linux {release} has {gives}")
    return Check(name, "warning", f"Linux {release} lacks {gives}: {lost}", f"use Linux {needed[0]}.{needed[1]} or later")


def check_resend(host: Host) -> Check:
    """FUSE_NOTIFY_RESEND."""
    lost = "when a worker dies, reads in flight get an error, and an unmount while the store hangs is forced instead of clean"
    return _check_kernel(host, "kernel-resend", (6, 9), "FUSE_NOTIFY_RESEND", lost)


def check_cachestat(host: Host) -> Check:
    """cachestat(2)."""
    lost = "the proof of an unmount cannot count what is left in the page cache"
    return _check_kernel(host, "kernel-cachestat", (6, 5), "cachestat", lost)


def check_aes(host: Host) -> Check:
    """Instructions for AES-GCM, on x86-64 and aarch64."""
    name, text = "aes", host.read("proc/cpuinfo") or ""
    for title, needed in (("flags", {"aes", "pclmulqdq"}), ("Features", {"aes", "pmull"})):
        lines = re.findall(rf"^{title}\s*:(.*)$", text, re.MULTILINE)
        if not lines:
            continue
        missing = needed - set.intersection(*(set(line.split()) for line in lines))
        if not missing:
            return Check(name, "ok", f"every core has {' and '.join(sorted(needed))}")
        found = f"the processor lacks {' and '.join(sorted(missing))}: decryption is many times slower"
        return Check(name, "warning", found, "use another machine type, or let the hypervisor pass the processor's AES through")
    return Check(name, "unknown", "/proc/cpuinfo says nothing of AES")


def check_aead(host: Host) -> Check:
    """Whether the installed cryptography is new enough, by measuring."""
    name, release = "aead", f"cryptography {host.cryptography_version()}"
    update = "install cryptography 46 or later"
    if not host.has_decrypt_into():
        return Check(name, "error", f"{release} has no decrypt_into", f"{update}: this one is too old for modelfs")
    if not host.aead_drops_gil():
        found = f"{release} holds the GIL while it decrypts (measured: no other thread ran meanwhile)"
        return Check(name, "warning", found, f"{update}, or look again when the host is less busy: sealing uses one core only")
    return Check(name, "ok", f"{release} drops the GIL while it decrypts (measured) and has decrypt_into")


def check_swap(host: Host) -> Check:
    """Swap space that keeps on a disk what was in memory."""
    name, text = "swap", host.read("proc/swaps")
    if text is None:
        return Check(name, "unknown", "/proc/swaps cannot be read")
    areas = [line.split()[0] for line in text.splitlines()[1:] if line.strip()]
    risky = [area for area in areas if not _stays_safe(host, area)]
    if risky:
        found = f"on {', '.join(risky)}: blob keys and plaintext of worker processes can be written there (the DEK's page is locked)"
        return Check(name, "warning", found, "swapoff, or swap on zram or on dm-crypt with a random key")
    return Check(name, "ok", f"only {', '.join(areas)}: in memory or encrypted" if areas else "none")


def _stays_safe(host: Host, area: str) -> bool:
    device = area.rpartition("/")[2]
    if re.fullmatch(r"zram\d+", device):
        return (host.read(f"sys/block/{device}/backing_dev") or "none").strip() == "none"
    return (host.read(f"sys/class/block/{device}/dm/uuid") or "").startswith("CRYPT-")


def check_core_pattern(host: Host) -> Check:
    """Where cores go: not those of modelfs, which makes none, but those of the programs that read models."""
    name, pattern = "core-pattern", host.read("proc/sys/kernel/core_pattern")
    if pattern is None:
        return Check(name, "unknown", "/proc/sys/kernel/core_pattern cannot be read")
    pattern = pattern.strip()
    if pattern.startswith("|") and pattern[1:].split(" ")[0] not in ("/bin/false", "/usr/bin/false"):
        found = f"a pipe ({pattern[1:].split(' ')[0]}): modelfs makes no cores, but those of programs that read models hold plaintext"
        return Check(name, "warning", found, "see that the crash handler keeps none of the runtimes: a pipe is used even with ulimit -c 0")
    return Check(name, "ok", f"{pattern or 'none'}: modelfs makes no cores; run the programs that read models with ulimit -c 0")


def check_init_on_free(host: Host) -> Check:
    """Whether freed kernel pages are zeroed."""
    name, text = "init-on-free", host.read("proc/cmdline")
    said = re.findall(r"(?:^|\s)init_on_free=(\S*)", text or "")
    if not said:
        return Check(name, "unknown", "not on the kernel's command line; its configuration decides", "add init_on_free=1 to be sure")
    if said[-1].lower() in ("1", "y", "yes", "on", "t", "true"):
        return Check(name, "ok", "on: freed pages are zeroed")
    return Check(name, "warning", "off: freed pages keep plaintext and keys until they are used again", "boot with init_on_free=1")


def check_memlock(host: Host) -> Check:
    """Whether the page with the key can be locked."""
    name, advice = "memlock", "raise it: ulimit -l 1024, or LimitMEMLOCK=1M in the unit"
    found = re.search(r"^CapEff:\s*([0-9a-f]+)$", host.read("proc/self/status") or "", re.MULTILINE)
    if found and int(found[1], 16) >> _CAP_IPC_LOCK & 1:
        return Check(name, "ok", "no limit (CAP_IPC_LOCK)")
    limit = re.search(r"^Max locked memory\s+(\d+|unlimited)\s", host.read("proc/self/limits") or "", re.MULTILINE)
    if not limit:
        return Check(name, "unknown", "/proc/self/limits does not say")
    if limit[1] != "unlimited" and int(limit[1]) < _MIN_LOCKED:
        return Check(name, "warning", f"{limit[1]} bytes: the page with the key may stay unlocked, and be swapped out", advice)
    return Check(name, "ok", limit[1] if limit[1] == "unlimited" else f"{limit[1]} bytes")


def check_secret_memory(host: Host) -> Check:
    """memfd_secret(2)."""
    name = "memfd-secret"
    if host.has_secret_memory():
        return Check(name, "ok", "keys are in memory that not even root reads")
    return Check(
        name,
        "warning",
        "not there: keys are in a locked page, which root can read through /proc",
        "use Linux 6.5 or later, or boot with secretmem.enable=1; raise memlock; let the container call memfd_secret",
    )


def check_confinement(host: Host) -> Check:
    """Whether the processes of a mount can give up what they do not need."""
    name, lost = "confinement", host.not_confined()
    if not lost:
        return Check(name, "ok", "capabilities, new privileges, system calls and paths can be taken away")
    advice = "mount as root" if not host.is_root else "boot a kernel that has them, or let the container use them"
    return Check(name, "warning", "; ".join(lost), advice)


def check_state_dir(host: Host) -> Check:
    """Where releases that were served are remembered: room, permission, and who else may change it."""
    name, path = "state-dir", host.state_dir
    there = path
    while not there.exists() and there != there.parent:
        there = there.parent
    what = str(path) if there == path else f"{path} (to be made in {there})"
    if not there.is_dir():
        return Check(name, "error", f"{there} is no directory", "name another with --state-dir")
    if not host.may(there, os.W_OK | os.X_OK):
        return Check(name, "error", f"{what} cannot be written", "give it to the user of modelfs, or name another with --state-dir")
    if there == path and path.stat().st_mode & 0o022:
        return Check(name, "warning", f"others may write in {what}, and so undo the protection from old releases", f"chmod 700 {path}")
    free = host.free_bytes(there) // MIB
    if free < 1:
        return Check(name, "error", f"no space left for {what}", "make room: a mount that cannot remember its release is refused")
    if free < 100:
        return Check(name, "warning", f"only {free} MiB left for {what}", "make room: releases and logs are written there")
    return Check(name, "ok", f"{what}, {free} MiB free")


def check_clock(host: Host) -> Check:
    """Expiry dates and certificates are judged by the wall clock."""
    name, now = "clock", host.now()
    if not EARLIEST <= now < LATEST:
        year = time.gmtime(now).tm_year
        return Check(name, "error", f"it says {year}: expiry dates and certificates are judged wrong", "set the clock, and run NTP")
    said = time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(now))
    synchronised = host.is_clock_synchronised()
    if synchronised is None:
        return Check(name, "unknown", f"{said}; the kernel does not say whether it is synchronised")
    if not synchronised:
        return Check(name, "warning", f"{said}, not synchronised", "run chrony, systemd-timesyncd or another NTP client")
    return Check(name, "ok", f"{said}, synchronised")


CHECKS: tuple[Callable[[Host], Check], ...] = (
    check_fusermount,
    check_pyfuse3,
    check_dev_fuse,
    check_allow_other,
    check_bdi,
    check_resend,
    check_cachestat,
    check_aes,
    check_aead,
    check_swap,
    check_core_pattern,
    check_init_on_free,
    check_memlock,
    check_secret_memory,
    check_confinement,
    check_state_dir,
    check_clock,
)


def check_host(host: Host) -> list[Check]:
    """All of them."""
    return [check(host) for check in CHECKS]
