"""Workers that die as fast as they are started: throttled, said, and over again; and nothing grows with reads or deaths."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest

from modelfs.mount.warden import CALM_CREDIT, RESPAWN_BURST, RESPAWN_SECONDS
from tests.faults.conftest import BadStore, children, status
from tests.helpers import Sealed
from tests.mount.conftest import Mounted, modelfs, wait_until


@contextmanager
def killing(warden: int, after_s: float) -> Iterator[None]:
    """Every worker dies `after_s` after it was started."""
    stop = threading.Event()
    seen: dict[int, float] = {}

    def kill() -> None:
        while not stop.wait(0.005):
            now = time.monotonic()
            for pid in children(warden):
                if now - seen.setdefault(pid, now) >= after_s:
                    with suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def processor_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def test_throttled_and_said(model: Sealed, mount: Callable[..., Mounted]) -> None:
    mounted = mount(model, "--workers", 2)
    warden = mounted.facts["warden"]
    with killing(warden, 0):
        wait_until(lambda: status(mounted)["crash_loop"], 30, "the crash loop in status")
        before, processor, start = status(mounted)["worker_deaths"], processor_s(warden), time.monotonic()
        assert before > RESPAWN_BURST - 2, "the first two workers are of the burst too"
        assert "crash loop: workers die as fast as they are started" in modelfs("status", mounted.path).stdout
        time.sleep(3)
        took = time.monotonic() - start
        assert status(mounted)["worker_deaths"] - before <= took / RESPAWN_SECONDS + 2, "not spun"
        assert status(mounted)["worker_deaths"] > before, "and not given up"
        assert processor_s(warden) - processor < 0.2 * took
    wait_until(lambda: len(status(mounted)["workers"]) == 2, 10, "two workers that live")
    assert (mounted.path / "model.bin").read_bytes() == model.plain["model.bin"]
    assert mounted.log.count("workers die as fast as they are started") == 1, "said once, not with each death"
    proof = mounted.unmount()
    assert (proof["resident_bytes"], proof["detached"]) == (0, True)


@pytest.mark.slow
def test_over_after_some_calm(model: Sealed, mount: Callable[..., Mounted]) -> None:
    mounted = mount(model, "--workers", 1)
    with killing(mounted.facts["warden"], 0):
        wait_until(lambda: status(mounted)["crash_loop"], 30, "the crash loop in status")
    wait_until(lambda: not status(mounted)["crash_loop"], 2 * CALM_CREDIT * RESPAWN_SECONDS + 5, "the end of the crash loop")
    assert "workers live again" in mounted.log


def test_a_request_that_kills_every_worker_is_got_rid_of(
    model: Sealed, bad_store: Callable[[Path], BadStore], mount: Callable[..., Mounted]
) -> None:
    """Handed on for ever it would keep everybody else from being answered, and its own reader waiting."""
    store = bad_store(model.path)
    mounted = mount(replace(model, path=store.mountpoint), "--workers", 1)
    with killing(mounted.facts["warden"], 0):
        wait_until(lambda: status(mounted)["crash_loop"], 30, "the crash loop in status")
    store.goes(sleep=2)
    with killing(mounted.facts["warden"], 0.5):  # before the store has answered
        fd = os.open(mounted.path / "model.bin", os.O_RDONLY)
        with pytest.raises(ConnectionAbortedError):
            os.pread(fd, 4096, 0)
        os.close(fd)
    store.goes()
    wait_until(lambda: len(status(mounted)["workers"]) == 1, 10, "a worker that lives")
    assert (mounted.path / "config.json").read_bytes() == model.plain["config.json"]


def grown(pid: int) -> dict[str, int]:
    """Descriptors, threads and memory of its own (KiB) that a process has."""
    told = Path(f"/proc/{pid}/status").read_text()
    words = {line.split(":")[0]: line.split()[1] for line in told.splitlines() if len(line.split()) > 1}
    return {"descriptors": len(os.listdir(f"/proc/{pid}/fd")), "threads": int(words["Threads"]), "memory_kb": int(words["RssAnon"])}


def read_it(mounted: Mounted, times: int) -> None:
    plain = mounted.sealed.plain["model.bin"]
    for turn in range(times):
        fd = os.open(mounted.path / "model.bin", os.O_RDONLY)
        offset = turn * 7919 * 4096 % (len(plain) - 8192)
        assert os.pread(fd, 8192, offset) == plain[offset : offset + 8192]
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


@pytest.mark.parametrize(("opens", "deaths"), [(2000, 6), pytest.param(10_000, 100, marks=pytest.mark.slow)])
def test_nothing_grows(model: Sealed, mount: Callable[..., Mounted], opens: int, deaths: int) -> None:
    mounted = mount(model, "--workers", 2, "--renew-every", 0.5, "--ttl", 60)
    control, warden = mounted.facts["control"], mounted.facts["warden"]

    def replace_workers(count: int) -> None:
        for done in range(1, count + 1):
            before = status(mounted)["worker_deaths"]
            os.kill(status(mounted)["workers"][done % 2], signal.SIGKILL)
            wait_until(lambda before=before: status(mounted)["worker_deaths"] == before + 1)
            wait_until(lambda: len(status(mounted)["workers"]) == 2)
            if done > 10:
                time.sleep(RESPAWN_SECONDS)

    read_it(mounted, 500)
    replace_workers(3)
    read_it(mounted, 500)
    workers = status(mounted)["workers"]
    before = {pid: grown(pid) for pid in (control, warden, *workers)}
    read_it(mounted, opens)
    after = {pid: grown(pid) for pid in (control, warden, *workers)}
    replace_workers(deaths)
    read_it(mounted, 500)
    last = {pid: grown(pid) for pid in (control, warden)}
    fresh = [grown(pid) for pid in status(mounted)["workers"]]
    print(f"before {before}\nafter {opens} times open, read, close {after}\nafter {deaths} deaths {last} {fresh}")
    for what in ("descriptors", "threads"):
        for pid, counts in before.items():
            under_way = 2 if what == "descriptors" and pid == control else 0  # a proof: a pipe, a pidfd
            assert after[pid][what] <= counts[what] + under_way, (what, pid)
        for pid, counts in last.items():
            assert counts[what] <= before[pid][what] + 3 * (what == "descriptors" and pid == control), (what, pid)
        assert max(each[what] for each in fresh) <= max(before[pid][what] for pid in workers)
    for pid, counts in before.items():
        assert after[pid]["memory_kb"] - counts["memory_kb"] <= 256, (pid, before, after)
    for pid, counts in last.items():
        assert counts["memory_kb"] - before[pid]["memory_kb"] <= 512, (pid, before, last)
