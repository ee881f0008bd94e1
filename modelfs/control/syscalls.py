"""Numbers of the system calls that confined processes may make, for the processors that modelfs runs on. Linux only.

0 stands for "this processor has none". Source: asm/unistd_64.h (x86-64), asm-generic/unistd.h (aarch64); a test compares them.
"""

import os
from typing import NamedTuple


class Machine(NamedTuple):
    """What a seccomp filter must know of a processor."""

    audit_arch: int
    """AUDIT_ARCH_* of linux/audit.h: a call through another ABI has other numbers."""
    column: int
    """Into the tables below."""


MACHINES = {"x86_64": Machine(0xC000003E, 0), "aarch64": Machine(0xC00000B7, 1)}


def this_machine() -> Machine | None:
    """The processor's row; None: no filter can be made for it."""
    return MACHINES.get(os.uname().machine)


OPENAT = {"openat": (257, 56)}
CLONE = {"clone": (56, 220)}
FCNTL = {"fcntl": (72, 25)}
TGKILL = {"tgkill": (234, 131)}
NOT_THERE = {"clone3": (435, 435)}
"""Answered with ENOSYS: its flags lie in memory, where no filter looks; the C library takes clone instead."""

WORKER: dict[str, tuple[int, int]] = {
    "read": (0, 63),
    "write": (1, 64),
    "readv": (19, 65),
    "writev": (20, 66),
    "pread64": (17, 67),
    "preadv": (295, 69),
    "preadv2": (327, 286),
    "lseek": (8, 62),
    "close": (3, 57),
    "fstat": (5, 80),
    "stat": (4, 0),
    "lstat": (6, 0),
    "newfstatat": (262, 79),
    "statx": (332, 291),
    "readlink": (89, 0),
    "readlinkat": (267, 78),
    "getdents64": (217, 61),
    "fadvise64": (221, 223),
    "dup": (32, 23),
    "poll": (7, 0),
    "ppoll": (271, 73),
    "mmap": (9, 222),
    "munmap": (11, 215),
    "mremap": (25, 216),
    "mprotect": (10, 226),
    "madvise": (28, 233),
    "brk": (12, 214),
    "futex": (202, 98),
    "membarrier": (324, 283),
    "set_robust_list": (273, 99),
    "rseq": (334, 293),
    "sched_yield": (24, 124),
    "sched_getaffinity": (204, 123),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "sigaltstack": (131, 132),
    "restart_syscall": (219, 128),
    "nanosleep": (35, 101),
    "clock_nanosleep": (230, 115),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "gettimeofday": (96, 169),
    "getrandom": (318, 278),
    "getpid": (39, 172),
    "getppid": (110, 173),
    "gettid": (186, 178),
    "getuid": (102, 174),
    "geteuid": (107, 175),
    "getgid": (104, 176),
    "getegid": (108, 177),
    "uname": (63, 160),
    "sysinfo": (99, 179),
    "getcpu": (309, 168),
    "exit": (60, 93),
    "exit_group": (231, 94),
}
"""Reading, answering, memory, time. No network, no program, no other process, nothing that changes a file."""

LOOKER: dict[str, tuple[int, int]] = {
    "open_by_handle_at": (304, 265),
    "cachestat": (451, 451),
    "mincore": (27, 232),
}
"""For the children of the warden that evict the page cache and count what is left in it."""

WARDEN: dict[str, tuple[int, int]] = {
    "fork": (57, 0),
    "vfork": (58, 0),
    "set_tid_address": (218, 96),
    "wait4": (61, 260),
    "waitid": (247, 95),
    "kill": (62, 129),
    "pidfd_open": (434, 434),
    "pidfd_send_signal": (424, 424),
    "prctl": (157, 167),
    "capget": (125, 90),
    "capset": (126, 91),
    "landlock_create_ruleset": (444, 444),
    "landlock_add_rule": (445, 445),
    "landlock_restrict_self": (446, 446),
    "prlimit64": (302, 261),
    "getrlimit": (97, 163),
    "setrlimit": (160, 164),
    "sendto": (44, 206),
    "recvfrom": (45, 207),
    "sendmsg": (46, 211),
    "recvmsg": (47, 212),
    "dup2": (33, 0),
    "dup3": (292, 24),
    "pipe": (22, 0),
    "pipe2": (293, 59),
    "ioctl": (16, 29),
    "flock": (73, 32),
    "fsync": (74, 82),
    "umount2": (166, 39),
    "mkdir": (83, 0),
    "mkdirat": (258, 34),
    "unlink": (87, 0),
    "unlinkat": (263, 35),
}
"""Forking and ending workers, its channel to control, detaching, and clearing away after a control process that died."""


def number(name: str, machine: Machine) -> int:
    """A system call's number; -1 where the processor has none.

    Raises:
        KeyError: It is in no table.
    """
    for table in (WORKER, LOOKER, WARDEN, OPENAT, CLONE, FCNTL, TGKILL, NOT_THERE):
        if name in table:
            found = table[name][machine.column]
            return found if found or name == "read" else -1
    raise KeyError(name)
