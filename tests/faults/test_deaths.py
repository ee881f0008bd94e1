"""Every process of a mount dies in every way, at random moments under eight readers: no wrong byte, and always a defined end."""

import itertools
import os
import random
import resource
import signal
import socket
import stat
import statistics
import time
from collections.abc import Callable

import pytest

from modelfs.control.process import is_running, libc
from tests.faults.conftest import REVOKED, Crowd, MemoryGroup, assert_dark, assert_gone, children, status
from tests.helpers import Sealed
from tests.mount.conftest import Mounted, Program, modelfs, mount_command, wait_until

KILL, SEGV, ABRT, BUS, STOP = signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGSTOP
PIDFD_GETFD = 438
WORKER_ENDS = [KILL, SEGV, STOP, ABRT, KILL, BUS, STOP, KILL]
"""SIGSEGV, SIGABRT and SIGBUS are what a bug in native code comes to."""
REPAIRED_SECONDS = 1.0


def first_read(path: str, size: int) -> float:
    """Seconds until a read that no page cache can answer is answered."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        buffer = __import__("mmap").mmap(-1, size)
        start = time.monotonic()
        assert os.preadv(fd, [buffer], 0) == size
        return time.monotonic() - start
    finally:
        os.close(fd)


def kill_workers(mounted: Mounted, chance: random.Random, ends: list[signal.Signals], wanted: int) -> list[float]:
    """End one worker after the other; the seconds until as many as before are there, and one has answered."""
    took = []
    for number in ends:
        time.sleep(chance.uniform(0.02, 0.2))
        victim = chance.choice(status(mounted)["workers"])
        start = time.monotonic()
        os.kill(victim, number)
        wait_until(lambda victim=victim: victim not in (now := status(mounted)["workers"]) and len(now) == wanted, 10, "a new worker")
        first_read(str(mounted.path / "model.bin"), 4096)
        took.append(time.monotonic() - start)
    return took


@pytest.mark.parametrize("workers", [1, 2])
def test_a_worker(model: Sealed, mount: Callable[..., Mounted], crowd: Callable[..., Crowd], chance: random.Random, workers: int) -> None:
    mounted = mount(model, "--workers", workers)
    readers = crowd(mounted)
    took = kill_workers(mounted, chance, WORKER_ENDS, workers)
    assert readers.finish() == set(), "a worker's end costs no reader an error"
    print(f"repaired within {max(took):.2f} s at most, workers {workers}")
    assert statistics.median(took) < REPAIRED_SECONDS, took  # the machine may have other work to do
    after = status(mounted)
    assert (after["worker_deaths"], after["state"], after["crash_loop"]) == (len(WORKER_ENDS), "serving", False)
    assert mounted.log.count("was stopped: ending it") == WORKER_ENDS.count(STOP)


@pytest.mark.slow
def test_a_worker_a_hundred_times(model: Sealed, mount: Callable[..., Mounted], crowd: Callable[..., Crowd], chance: random.Random) -> None:
    mounted = mount(model, "--workers", 2)
    readers = crowd(mounted)
    took = []
    for _ in range(100):
        took += kill_workers(mounted, chance, [chance.choice(WORKER_ENDS)], 2)
        time.sleep(0.9)  # one a second is what is replaced for ever
    assert readers.finish() == set()
    assert statistics.median(took) < REPAIRED_SECONDS, took


def test_a_worker_out_of_memory(
    model: Sealed, mount: Callable[..., Mounted], crowd: Callable[..., Crowd], memory_group: Callable[[int], MemoryGroup]
) -> None:
    """The kernel's OOM killer, in a control group that holds less than a worker takes: SIGKILL in the middle of an allocation."""
    mounted = mount(model, "--workers", 2)
    readers = crowd(mounted)
    for turn in range(3):
        group, before = memory_group(256 << 10), status(mounted)["workers"]
        # What a process has is counted elsewhere, only what it takes from now on is counted here: a worker that has just been started.
        os.kill(before[0], KILL)
        wait_until(lambda before=before: set(status(mounted)["workers"]) - set(before) != set(), 10, "a new worker")
        (fresh,) = set(status(mounted)["workers"]) - set(before)
        group.take(fresh)
        wait_until(lambda group=group: group.kills() > 0, 20, "an OOM kill")
        wait_until(lambda turn=turn: status(mounted)["worker_deaths"] == 2 * (turn + 1), 10, "a worker in its place")
    assert readers.finish() == set()
    assert "signal 9" in mounted.log


def test_a_worker_that_gets_no_memory(model: Sealed, mount: Callable[..., Mounted], crowd: Callable[..., Crowd]) -> None:
    """A limit on its addresses is MemoryError in the middle of an answer: a bug's exception. EIO, a line in the log, no wrong byte."""
    mounted = mount(model, "--workers", 1)
    (worker,) = status(mounted)["workers"]
    readers = crowd(mounted)
    time.sleep(0.2)
    for limit in (1 << 30, 1 << 20, 0):
        resource.prlimit(worker, resource.RLIMIT_AS, (limit, limit))
        time.sleep(0.2)
    assert readers.finish() <= {"EIO"}
    os.kill(worker, KILL)
    wait_until(lambda: status(mounted)["worker_deaths"] == 1)
    assert (mounted.path / "model.bin").read_bytes() == model.plain["model.bin"]


def raise_in(pid: int) -> None:
    """No descriptor can be opened any more: an OSError where nobody expects one, which is an exception that nobody catches."""
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (3, 3))


def say_nonsense(warden: int) -> None:
    """In the warden's name, to control: an exception that nobody catches."""
    process = os.pidfd_open(warden)
    said = 0
    for name in os.listdir(f"/proc/{warden}/fd"):
        fd = libc.syscall(PIDFD_GETFD, process, int(name), 0)
        if fd >= 0 and stat.S_ISSOCK(os.fstat(fd).st_mode):
            with socket.socket(fileno=fd) as taken:
                if taken.type == socket.SOCK_SEQPACKET:
                    said += taken.send(b"no message")
        elif fd >= 0:
            os.close(fd)
    os.close(process)
    assert said, "the warden's channel was not found"


ENDS: dict[str, Callable[[int], None]] = {
    "SIGKILL": lambda pid: os.kill(pid, KILL),
    "SIGSEGV": lambda pid: os.kill(pid, SEGV),
    "exception": raise_in,
}


@pytest.mark.parametrize("end", ["SIGKILL", "exception", pytest.param("SIGSEGV", marks=pytest.mark.slow)])
@pytest.mark.parametrize("role", ["control", "warden"])
def test_control_or_warden(
    model: Sealed,
    mount: Callable[..., Mounted],
    crowd: Callable[..., Crowd],
    program: Callable[..., Program],
    chance: random.Random,
    role: str,
    end: str,
) -> None:
    """Fenced, evicted, detached by whoever is left, and the next mount is made at once."""
    mounted = mount(model, "--workers", 2, "--renew-every", 0.5, "--ttl", 60)
    holder = program("hold", mounted.path / "config.json")
    assert holder.line()["resident"] == 4096, "the page cache must hold the plaintext, or the test shows nothing"
    readers = crowd(mounted)
    pids = mounted.pids()
    time.sleep(chance.uniform(0.05, 0.5))
    if (role, end) == ("control", "exception"):
        say_nonsense(mounted.facts["warden"])
    else:
        ENDS[end](mounted.facts[role])
    if (role, end) == ("warden", "exception"):
        os.kill(pids[2], KILL)  # its replacement needs a descriptor
    assert_gone(mounted, pids)
    assert readers.finish() <= REVOKED | {"SIGBUS"}
    assert_dark(holder.finish())
    assert ("Traceback" in mounted.log) == (end == "exception"), "an exception is told with where it came from"
    done = modelfs(*mount_command(model, mounted.path, mounted.state_dir))
    assert done.returncode == 0, done.stderr
    assert (mounted.path / "model.bin").read_bytes() == model.plain["model.bin"]
    mounted.unmount()


@pytest.mark.parametrize("role", ["control", "warden"])
def test_control_or_warden_out_of_memory(
    model: Sealed,
    mount: Callable[..., Mounted],
    program: Callable[..., Program],
    memory_group: Callable[[int], MemoryGroup],
    role: str,
) -> None:
    """As above, by the OOM killer: provers and workers are forked, which takes memory."""
    mounted = mount(model, "--workers", 1, "--renew-every", 0.5, "--ttl", 60)
    holder = program("hold", mounted.path / "config.json")
    holder.line()
    pids = mounted.pids()
    group = memory_group(64 << 10)
    group.take(mounted.facts[role])
    if role == "warden":
        os.kill(pids[2], KILL)
    # Whatever the OOM killer chose to end, the mount or the victim: nothing is served without a lease, and nothing is stuck.
    wait_until(lambda: group.kills() > 0, 20, "an OOM kill")
    if is_running(mounted.facts[role]):
        os.kill(mounted.facts[role], KILL)
    assert_gone(mounted, pids)
    assert_dark(holder.finish())


def test_a_prover(model: Sealed, mount: Callable[..., Mounted], crowd: Callable[..., Crowd], chance: random.Random) -> None:
    """A proof that dies or hangs is no answer: the lease runs on, the next proof is granted, nobody reads an error."""
    mounted = mount(model, "--workers", 1, "--renew-every", 0.5, "--ttl", 60, "--proof-timeout", 0.5)
    readers = crowd(mounted)
    control, warden = mounted.facts["control"], mounted.facts["warden"]
    signals, deadline = itertools.cycle((KILL, SEGV, STOP, KILL, STOP)), time.monotonic() + 60
    sent = 0
    while sent < 5 or "lease unreachable after no answer" not in mounted.log:  # a proof is over in milliseconds: not all are hit
        assert time.monotonic() < deadline, f"no prover was hit by {sent} signals"
        provers = [child for child in children(control) if child != warden]
        if not provers:
            continue
        time.sleep(chance.uniform(0, 0.004))
        try:
            os.kill(provers[0], next(signals))
        except ProcessLookupError:
            continue
        sent += 1
        wait_until(lambda prover=provers[0]: not is_running(prover), 5, "the end of a prover that was stopped or killed")
    wait_until(lambda: status(mounted)["lease"] == "granted", 10, "a grant")
    assert readers.finish() == set()
    assert status(mounted)["worker_deaths"] == 0
    assert [child for child in children(control) if child != warden] == [] or status(mounted)["lease"] == "granted"
