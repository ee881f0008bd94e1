"""Taking away what a process of a mount does not need, once it is set up: capabilities, new privileges, system calls, paths.

By prctl(2), capset(2), Landlock and a seccomp filter, without a library. Nothing here can be undone, and it is inherited over fork. What
the kernel has it must do: OSError ends the process otherwise. What it lacks `missing` says.
"""

import contextlib
import ctypes
import errno
import fcntl
import os
import struct
import sysconfig
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import modelfs
from modelfs.control import syscalls
from modelfs.control.process import libc
from modelfs.store.local import Store

CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH, CAP_SYS_ADMIN = 1, 2, 21

_PR_GET_SECCOMP, _PR_SET_SECCOMP, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT = 21, 22, 24, 38, 47
_PR_CAP_AMBIENT_CLEAR_ALL, _SECCOMP_MODE_FILTER = 4, 2
_SYS_LANDLOCK_CREATE, _SYS_LANDLOCK_ADD, _SYS_LANDLOCK_RESTRICT = 444, 445, 446  # the same on every processor
_LAST_CAPABILITY = 63
_MANY_BLOBS = 10_000
_CAPABILITY_HEADER = struct.pack("Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, this thread


# -- one for each kind of process


def confine_control() -> None:
    """The control process, once the mount is made: it detaches and counts if the warden dies, and reads key files of others."""
    _limit_capabilities({CAP_SYS_ADMIN, CAP_DAC_READ_SEARCH})
    if os.geteuid() == 0:
        _no_new_privileges()


def confine_prover() -> None:
    """A prover speaks to the key service, and reads key files."""
    _limit_capabilities({CAP_DAC_READ_SEARCH})
    _no_new_privileges()


def confine_warden() -> None:
    """The warden detaches (CAP_SYS_ADMIN); its child that counts pages finds files by handle (CAP_DAC_READ_SEARCH).

    Not root: fusermount3 detaches, which is setuid root and speaks through a socket. It takes new privileges, and so nothing but the
    capabilities can be given up.
    """
    _limit_capabilities({CAP_SYS_ADMIN, CAP_DAC_READ_SEARCH})
    if os.geteuid() == 0:
        _no_new_privileges()
        more = {**syscalls.OPENAT, **syscalls.CLONE, **syscalls.FCNTL, **syscalls.TGKILL, **syscalls.WARDEN}
        _filter_calls({**syscalls.WORKER, **syscalls.LOOKER, **more})


def confine_looker() -> None:
    """The warden's children that evict pages and count what is left. No Landlock: it knows no path of a file found by handle."""
    _limit_capabilities({CAP_DAC_READ_SEARCH})
    _no_new_privileges()
    _filter_calls({**syscalls.WORKER, **syscalls.LOOKER})


def confine_worker(store_fd: int | None, capabilities: Iterable[int] = ()) -> None:
    """A worker reads the store and its own program, and writes to what is open already.

    Args:
        store_fd: The store's directory; None: a worker without keys reads nothing.
        capabilities: From `needed_to_read`.
    """
    _limit_capabilities(() if store_fd is None else capabilities)
    _no_new_privileges()
    _read_only_below(store_fd)
    _filter_calls(syscalls.WORKER)


def missing(worker_capabilities: Iterable[int] = ()) -> list[str]:
    """What cannot be had here, or for a mount whose workers keep capabilities; a sentence each."""
    found = []
    if CAP_DAC_READ_SEARCH in worker_capabilities:
        found.append("workers keep CAP_DAC_READ_SEARCH, because root may not read the sealed model without: chown it to root")
    if os.geteuid() != 0:
        found.append("control and warden may gain privileges and make any system call, because fusermount3 is setuid root")
        found.append("the kernel's read-ahead cannot be raised, and the page cache not be counted, without root")
    if not _has_seccomp():
        found.append("no system call is filtered: the kernel has no seccomp, or modelfs no table for this processor")
    if not _landlock_version():
        found.append("workers may read what their user may: the kernel has no Landlock (Linux 5.13, lsm=landlock)")
    return found


# -- capabilities


def needed_to_read(store: Store, blobs: Iterable[str]) -> frozenset[int]:
    """The capabilities without which this process could not read a sealed model: none, or CAP_DAC_READ_SEARCH.

    Of more than 10,000 blobs the rest is not tried, and the capability kept.
    """
    if not _permitted() >> CAP_DAC_READ_SEARCH & 1:
        return frozenset()
    tried = list(islice(blobs, _MANY_BLOBS + 1))
    with _without({CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH}):
        is_needed = len(tried) > _MANY_BLOBS or store.refuses_blob(tried)
    return frozenset({CAP_DAC_READ_SEARCH}) if is_needed else frozenset()


def _permitted() -> int:
    data = ctypes.create_string_buffer(24)
    if libc.capget(_CAPABILITY_HEADER, data) != 0:
        raise OSError(ctypes.get_errno(), "capget")
    _, low, _, _, high, _ = struct.unpack("6I", data.raw)
    return int(high) << 32 | int(low)


def _set_capabilities(effective: int, permitted: int) -> None:
    words = [value >> shift & 0xFFFFFFFF for shift in (0, 32) for value in (effective, permitted, 0)]
    if libc.capset(_CAPABILITY_HEADER, struct.pack("6I", *words)) != 0:
        raise OSError(ctypes.get_errno(), "capset")


@contextlib.contextmanager
def _without(capabilities: Iterable[int]) -> Iterator[None]:
    permitted = _permitted()
    _set_capabilities(permitted & ~sum(1 << number for number in capabilities), permitted)
    try:
        yield
    finally:
        _set_capabilities(permitted, permitted)


def _limit_capabilities(keep: Iterable[int]) -> None:
    """Nothing but `keep`, of what is there; and none by executing a program, where root says so (CAP_SETPCAP)."""
    if os.geteuid() == 0:  # others may have to execute fusermount3, which needs its own
        for number in range(_LAST_CAPABILITY + 1):
            libc.prctl(_PR_CAPBSET_DROP, number, 0, 0, 0)
    libc.prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    kept = _permitted() & sum(1 << number for number in keep)
    _set_capabilities(kept, kept)


def _no_new_privileges() -> None:
    if libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_NO_NEW_PRIVS)")


# -- Landlock: linux/landlock.h

_READ = 1 << 2 | 1 << 3  # files, directories


def _landlock_version() -> int:
    return max(0, int(libc.syscall(_SYS_LANDLOCK_CREATE, None, ctypes.c_size_t(0), 1)))


def _library() -> set[str]:
    """Where Python may still find a module of its own, or of this program, to import."""
    paths = {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
    return {path for path in paths if path} | {str(Path(modelfs.__file__).parent)}


def _read_only_below(store_fd: int | None) -> None:
    version = _landlock_version()
    if not version:
        return
    # All rights that this version knows: what is not handled is allowed. 1: 13 of them; 2 refer; 3 truncate; 5 ioctl.
    handled = (1 << {1: 13, 2: 14, 3: 15, 4: 15}.get(version, 16)) - 1
    # Since 4, TCP: bind and connect. Since 6, no abstract socket and no signal to a process outside.
    attributes = struct.pack("3Q", handled, 0b11, 0b11) if version >= 6 else struct.pack("Q", handled)
    ruleset = libc.syscall(_SYS_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), 0)
    if ruleset < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    opened = []
    for path in _library():
        with contextlib.suppress(OSError):
            opened.append(os.open(path, os.O_PATH | os.O_CLOEXEC))
    for fd in [*opened, *(() if store_fd is None else (store_fd,))]:
        if libc.syscall(_SYS_LANDLOCK_ADD, ruleset, 1, struct.pack("=Qi", _READ, fd), 0) != 0:
            raise OSError(ctypes.get_errno(), "landlock_add_rule")
    if libc.syscall(_SYS_LANDLOCK_RESTRICT, ruleset, 0) != 0:
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    for fd in [*opened, ruleset]:
        os.close(fd)


# -- seccomp: linux/filter.h, linux/seccomp.h

_LOAD, _EQUAL, _ANY_BIT, _RETURN = 0x20, 0x15, 0x45, 0x06
_NUMBER_AT, _ARCH_AT = 0, 4
_ALLOW, _KILL, _ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
_WRITES = os.O_ACCMODE | os.O_CREAT | os.O_TRUNC | os.O_APPEND | (os.O_TMPFILE & ~os.O_DIRECTORY)
_CLONE_THREAD, _FIONBIO = 0x10000, 0x5421
_ASKING = [fcntl.F_DUPFD, fcntl.F_DUPFD_CLOEXEC, fcntl.F_GETFD, fcntl.F_SETFD, fcntl.F_GETFL]


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def _has_seccomp() -> bool:
    return syscalls.this_machine() is not None and libc.prctl(_PR_GET_SECCOMP, 0, 0, 0, 0) >= 0


def _filter_calls(allowed: dict[str, tuple[int, int]]) -> None:
    """Let these calls through, and what `call_filter` says of a few others; EPERM for all else."""
    machine = syscalls.this_machine()
    if machine is None or not _has_seccomp():
        return
    instructions = b"".join(struct.pack("HBBI", *each) for each in call_filter(allowed, machine))
    program = _Program(len(instructions) // 8, instructions)
    if libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_SECCOMP)")


def call_filter(allowed: dict[str, tuple[int, int]], machine: syscalls.Machine) -> list[tuple[int, int, int, int]]:
    """The filter's instructions (code, jump if true, jump if false, value), for `machine`.

    Args:
        allowed: From the tables of syscalls.py. Without `openat`, `clone`, `ioctl`, `tgkill` and `fcntl` in it, those open for
            reading, make threads, set a descriptor (not) blocking, signal this process, and duplicate a descriptor or ask for its
            flags only. fcntl(2) could have the kernel send any signal to any process (F_SETOWN).
        machine: A call through any other ABI ends the process.
    """
    refuse = _ERRNO | errno.EPERM
    found = [(_LOAD, 0, 0, _ARCH_AT), (_EQUAL, 1, 0, machine.audit_arch), (_RETURN, 0, 0, _KILL), (_LOAD, 0, 0, _NUMBER_AT)]
    for name in allowed:
        if (number := syscalls.number(name, machine)) >= 0:
            found += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    for name, argument, test, operands, if_true, if_false in (
        ("openat", 2, _ANY_BIT, [_WRITES], refuse, _ALLOW),
        ("clone", 0, _ANY_BIT, [_CLONE_THREAD], _ALLOW, refuse),
        ("ioctl", 1, _EQUAL, [_FIONBIO], _ALLOW, refuse),  # os.set_blocking
        ("tgkill", 0, _EQUAL, [os.getpid()], _ALLOW, refuse),  # abort(3)
        ("fcntl", 1, _EQUAL, _ASKING, _ALLOW, refuse),
    ):
        tests = [each for operand in operands for each in ((test, 0, 1, operand), (_RETURN, 0, 0, if_true))]
        rule = [(_LOAD, 0, 0, 16 + 8 * argument), *tests, (_RETURN, 0, 0, if_false)]
        found += [(_EQUAL, 0, len(rule), syscalls.number(name, machine)), *rule]
    found += [(_EQUAL, 0, 1, syscalls.number("clone3", machine)), (_RETURN, 0, 0, _ERRNO | errno.ENOSYS)]
    return [*found, (_RETURN, 0, 0, refuse)]
