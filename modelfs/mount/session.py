"""The FUSE session: mounting, clones of its descriptor, resending, aborting, detaching. The kernel's side of every process."""

import contextlib
import ctypes
import errno
import fcntl
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyfuse3
import trio

from modelfs.control.process import fork_child, kill_child, libc, wait_child
from modelfs.errors import MountError
from modelfs.mount.mountinfo import mountpoints_of, top_mount
from modelfs.mount.mountpoint import FS_TYPE
from modelfs.mount.operations import InitOperations

FUSE_DEV_IOC_CLONE = 0x8004E500
FUSE_NOTIFY_RESEND = 7
REQUEST_KB = 1024
"""The largest read request of the kernel."""
MIN_READ_AHEAD_KB, MAX_READ_AHEAD_KB = 2 * REQUEST_KB, 16 * REQUEST_KB
"""A request for each worker is under way for one stream. With more, several streams get in each other's way."""

ASK_SECONDS = 2.0
_ENDED = 1

_MNT_FORCE, _MNT_DETACH, _UMOUNT_NOFOLLOW = 1, 2, 8


@dataclass(frozen=True)
class Session:
    """An initialised FUSE session; inherited over fork."""

    mountpoint: str
    """Canonical."""
    device: str
    """`major:minor` of the mount."""
    fd: int
    """libfuse's descriptor of /dev/fuse, for notifications; requests are read from clones of it."""

    @property
    def mountpoint_bytes(self) -> bytes:
        """As mountinfo has it."""
        return os.fsencode(self.mountpoint)

    def clone(self) -> int:
        """A further descriptor on the connection, with its own queue of requests being processed."""
        fd = os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.ioctl(fd, FUSE_DEV_IOC_CLONE, struct.pack("I", self.fd))
        except BaseException:
            os.close(fd)
            raise
        return fd

    def resend(self) -> bool:
        """Have the kernel hand every unanswered request to whoever reads next (Linux >= 6.9); whether it can."""
        with contextlib.suppress(OSError):
            os.write(self.fd, struct.pack("<IiQ", 16, FUSE_NOTIFY_RESEND, 0))
            return True
        return False

    def is_on_top(self) -> bool:
        """Whether the mount that one sees at the mountpoint is this one."""
        top = top_mount(self.mountpoint_bytes)
        return top is not None and top.device == self.device

    def abort(self) -> bool:
        """End the connection; whether the kernel was told. Closing every descriptor ends it too."""
        control = Path("/sys/fs/fuse/connections") / self.device.partition(":")[2] / "abort"
        with contextlib.suppress(OSError):
            control.write_text("1")
            return True
        if os.geteuid() == 0 and self.is_on_top():
            # Also detaches where nothing is open; where something is, it aborts and says "busy".
            libc.umount2(self.mountpoint_bytes, _MNT_FORCE | _UMOUNT_NOFOLLOW)
            return True
        return False

    def detach(self) -> bool:
        """Take the mount off wherever it is on top; whether this mount namespace has it nowhere any more."""
        return detach_device(self.device)


def detach_device(device: str) -> bool:
    """Take a mount off wherever it is on top; whether this mount namespace has it nowhere any more.

    Where another mount lies over it, it stays: what is on top there is not ours to take away.
    """
    for path in reversed(mountpoints_of(device)):
        top = top_mount(path)
        if top is None or top.device != device:
            continue
        if os.geteuid() == 0:
            libc.umount2(path, _MNT_DETACH | _UMOUNT_NOFOLLOW)
        else:
            command = ["fusermount3", "-u", "-z", "-q", "--", os.fsdecode(path)]
            with contextlib.suppress(OSError, subprocess.TimeoutExpired):
                subprocess.run(command, timeout=5, check=False, stderr=subprocess.DEVNULL)
    return not mountpoints_of(device)


def detach_dead(mountpoint: str) -> bool:
    """Take a modelfs mount off a mountpoint if its connection has ended; whether there was one and it is gone.

    It is what a control process leaves that was killed before its warden was there, or with all others. The caller holds the mountpoint's
    lock. A child asks the mount, because one that lives and hangs would not answer.
    """
    top = top_mount(os.fsencode(mountpoint))
    if top is None or top.fs_type != FS_TYPE:
        return False

    def main() -> int:
        try:
            os.close(os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY))  # attributes may be cached
        except OSError as exc:
            return _ENDED if exc.errno == errno.ENOTCONN else 0
        return 0

    pid = fork_child(main)
    code = wait_child(pid, ASK_SECONDS)
    if code is None:
        kill_child(pid)
        wait_child(pid, 1.0)
    return code == _ENDED and detach_device(top.device)


@dataclass(frozen=True)
class MountOptions:
    """What the mount looks like from outside."""

    model: str
    allow_other: bool
    workers: int


def open_session(mountpoint: str, options: MountOptions) -> Session:
    """Mount, and answer the kernel's INIT; no other request is answered yet.

    Raises:
        MountError: FUSE is missing or the kernel refuses; the mountpoint is as before.
    """
    _check_fuse(options)
    operations = InitOperations()
    fuse_options = {"ro", "nosuid", "nodev", "default_permissions", f"fsname=modelfs:{options.model}", "subtype=modelfs"}
    if options.allow_other:
        fuse_options.add("allow_other")
    with _captured_stderr() as captured:
        try:
            pyfuse3.init(operations, mountpoint, fuse_options)
        except RuntimeError:
            reason = captured().replace("\n", " ").strip() or "the kernel refused"
            raise MountError(f"cannot mount at {mountpoint}: {reason}") from None
    try:
        session = Session(mountpoint, _device(mountpoint), _session_fd())
        trio.run(operations.run_until_init)
        _set_read_ahead(session.device, options.workers)
    except BaseException:
        pyfuse3.close(unmount=True)
        raise
    return session


def _check_fuse(options: MountOptions) -> None:
    if not os.path.exists("/dev/fuse"):
        raise MountError("there is no /dev/fuse: load the fuse module (modprobe fuse), or pass the device into the container")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountError("no permission for /dev/fuse: mount as root or have its mode mended")
    if os.geteuid() == 0:
        return
    if shutil.which("fusermount3") is None:
        raise MountError("fusermount3 is missing: install the package fuse3, or mount as root")
    if options.allow_other:
        try:
            allowed = "user_allow_other" in Path("/etc/fuse.conf").read_text().split("\n")
        except OSError:
            allowed = False
        if not allowed:
            raise MountError("--allow-other needs root, or the line user_allow_other in /etc/fuse.conf")


@contextlib.contextmanager
def _captured_stderr() -> Iterator[Callable[[], str]]:
    """libfuse writes its reasons to descriptor 2, not into its result."""
    saved = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)

        def captured() -> str:
            return os.pread(file.fileno(), 1000, 0).decode(errors="replace")

        try:
            yield captured
        finally:
            os.dup2(saved, 2)
            os.close(saved)


def _device(mountpoint: str) -> str:
    top = top_mount(os.fsencode(mountpoint))
    if top is None or top.fs_type != FS_TYPE:
        raise MountError(f"the mount at {mountpoint} disappeared while it was made: try again")
    return top.device


def _session_fd() -> int:
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/self/fd/{name}") == "/dev/fuse":
                return int(name)
    raise MountError("libfuse holds no /dev/fuse descriptor: this version of libfuse is not supported")


def _set_read_ahead(device: str, workers: int) -> None:
    """Larger requests, and enough of them for every worker; needs root, and works without."""
    size_kb = min(MAX_READ_AHEAD_KB, max(MIN_READ_AHEAD_KB, workers * REQUEST_KB))
    with contextlib.suppress(OSError):
        Path(f"/sys/class/bdi/{device}/read_ahead_kb").write_text(str(size_kb))


def evict_inodes(count: int) -> None:
    """Drop all cached pages and attributes of inodes 1 to `count`. May block; run it in a child.

    The kernel does not say whether every page went: `resident_bytes` does.
    """
    for inode in range(1, count + 1):
        with contextlib.suppress(OSError):  # the kernel does not know most of them
            pyfuse3.invalidate_inode(pyfuse3.InodeT(inode))


class _CachestatRange(ctypes.Structure):
    _fields_ = (("offset", ctypes.c_uint64), ("length", ctypes.c_uint64))


class _Cachestat(ctypes.Structure):
    _fields_ = tuple((name, ctypes.c_uint64) for name in ("cache", "dirty", "writeback", "evicted", "recently_evicted"))


_SYS_CACHESTAT = 451


def cached_pages(fd: int) -> int | None:
    """Pages of an open file that are in the page cache (cachestat(2), Linux >= 6.5); None if the kernel cannot tell."""
    extent, result = _CachestatRange(0, 0), _Cachestat()
    if libc.syscall(_SYS_CACHESTAT, fd, ctypes.byref(extent), ctypes.byref(result), 0) != 0:
        return None
    return int(result.cache)


def open_inode(root_fd: int, inode: int) -> int | None:
    """A descriptor of an inode that the kernel still knows, found by file handle, not by name; None if it knows none.

    Needs CAP_DAC_READ_SEARCH and a real descriptor of the mount (O_PATH will not do). FUSE's handle is (inode >> 32, inode,
    generation), type FILEID_INO64_GEN.

    Raises:
        OSError: The kernel knows the inode and does not let it be opened.
    """
    handle = struct.pack("<IiIII", 12, 0x81, inode >> 32, inode & 0xFFFFFFFF, 0)
    fd = libc.open_by_handle_at(root_fd, handle, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if fd >= 0:
        return int(fd)
    if ctypes.get_errno() in (errno.ESTALE, errno.ENOENT):
        return None
    raise OSError(ctypes.get_errno(), "open_by_handle_at")
