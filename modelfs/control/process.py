"""Forking, hardening and waiting, for processes that are forks of one program. Linux only."""

import contextlib
import ctypes
import gc
import logging
import os
import resource
import select
import signal
import sys
from collections.abc import Callable, Iterator

libc = ctypes.CDLL(None, use_errno=True)

_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4


def harden() -> None:
    """No core dump, no ptrace by the same user, no /proc/PID/mem. Inherited over fork."""
    libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def die_with_parent(parent: int) -> None:
    """SIGKILL this process when its parent ends; exit now if that has happened already.

    Args:
        parent: The parent's pid, taken before the fork.
    """
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(0)


def outlive_parent() -> None:
    """Undo `die_with_parent`."""
    libc.prctl(_PR_SET_PDEATHSIG, 0, 0, 0, 0)


def fork_child(main: Callable[[], int]) -> int:
    """Run `main` in a forked child, which exits with its result (70 after an exception, which is logged). The child's pid.

    Fork only from a process of one thread. The child never returns into the caller's code.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        signal.set_wakeup_fd(-1)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, signal.SIG_DFL)
        code = main()
    except BaseException:
        logging.getLogger(__name__).exception("a child process failed")
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def without_collector() -> Iterator[None]:
    """Make very many objects that are all kept: the garbage collector would go through them again and again and find nothing."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def return_free_memory() -> None:
    """Give the system back what this process has freed; the C library keeps some of it otherwise, and forks would inherit it."""
    gc.collect()
    with contextlib.suppress(AttributeError):  # glibc's; another C library may have none
        libc.malloc_trim(0)


def close_others(keep: set[int]) -> None:
    """Close every descriptor but the standard streams, the log's and `keep`: a forked process holds only what it is meant to.

    The log's, because another file gets a number that is free, and the next line of the log would be written there.
    """
    keep = keep | _log_descriptors()
    for name in os.listdir("/proc/self/fd"):
        if (fd := int(name)) > 2 and fd not in keep:
            with contextlib.suppress(OSError):
                os.close(fd)


def _log_descriptors() -> set[int]:
    found = set()
    for handler in logging.root.handlers:
        if type(handler) is logging.StreamHandler:  # as the command line installs it
            with contextlib.suppress(OSError, ValueError):  # a stream of a test has none
                found.add(handler.stream.fileno())
    return found


def wait_child(pid: int, timeout_s: float) -> int | None:
    """Reap a child: its exit code (negative signal number if killed), or None if it still runs after `timeout_s`."""
    fd = os.pidfd_open(pid)
    try:
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        if not poll.poll(max(0, int(timeout_s * 1000))):
            return None
    finally:
        os.close(fd)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_child(pid: int, number: int = signal.SIGKILL) -> None:
    """Send a signal to a child that has not been reaped."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def is_running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except (FileNotFoundError, ProcessLookupError):
        return False
