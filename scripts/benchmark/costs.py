"""What a daemon costs: processor time and memory of all its processes."""

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TICK_S = 1 / os.sysconf("SC_CLK_TCK")
SAMPLE_SECONDS = 0.05


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    found = [pid]
    for each in found:
        with suppress(OSError):
            for task in os.listdir(f"/proc/{each}/task"):
                found += [int(child) for child in Path(f"/proc/{each}/task/{task}/children").read_text().split()]
    return found


def cpu_seconds(pids: Iterable[int]) -> float:
    """User and system time of these processes, and of the children that they had and that have ended.

    A process's own time comes from its CPU clock (clock_getcpuclockid(3)): /proc/PID/stat counts in ticks of 10 ms.
    """
    total = 0.0
    for pid in pids:
        with suppress(OSError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[13]) + int(fields[14])) * TICK_S  # cutime, cstime
            try:
                total += time.clock_gettime((~pid << 3) | 2)
            except OSError:
                total += (int(fields[11]) + int(fields[12])) * TICK_S
    return total


def pss_bytes(pids: Iterable[int]) -> int:
    """Proportional set size of these processes together; pages that they share count once."""
    total = 0
    for pid in pids:
        with suppress(OSError):
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total


@contextmanager
def peak_pss(pids: Callable[[], list[int]]) -> Iterator[list[int]]:
    """Sample while the body runs; afterwards the list holds the peak in bytes."""
    peak, done = [pss_bytes(pids())], threading.Event()

    def sample() -> None:
        while not done.wait(SAMPLE_SECONDS):
            peak[0] = max(peak[0], pss_bytes(pids()))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    try:
        yield peak
    finally:
        done.set()
        thread.join()
        peak[0] = max(peak[0], pss_bytes(pids()))
