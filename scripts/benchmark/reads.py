"""Reads through a mount: first, cold, again, mapped, at random, four at once; and what they cost.

Each pass restores its own beginning: the store's files are put into the page cache or dropped from it, the mount's pages are
dropped last, right before the clock starts. Readers use page-aligned buffers: a displacement between source and destination makes
the kernel's copies several times slower on some processors, and would be measured instead.
"""

import json
import mmap
import os
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmark.cache import cached_bytes, cached_pages, drop, drop_fd, opened, read_ahead, read_ahead_kb, warm
from benchmark.candidate import Candidate
from benchmark.costs import cpu_seconds, peak_pss
from benchmark.results import Results
from benchmark.system import MIB, BenchError, run

FILE = "model.bin"
PARTS = [f"part{number}.bin" for number in range(4)]
REREADS = 3
RANDOM_READS = 4000
RANDOM_SECONDS = 5


@dataclass
class Reads:
    """The mounted candidates, and where samples go."""

    candidates: list[Candidate]
    results: Results
    rounds: int
    mount_read_ahead_kb: int
    """modelfs's."""

    def interleave(self, row: str, measure: Callable[[Candidate], dict[str, float]], candidates: list[Candidate] | None = None) -> None:
        """A B C A B C: one pass of each candidate a round; the first round is thrown away. A candidate that fails drops out.

        Args:
            row: For the reason, if one fails.
            measure: One pass: values by row.
            candidates: All that are mounted unless given.
        """
        running = list(self.candidates if candidates is None else candidates)
        for number in range(self.rounds + 1):
            for candidate in list(running):
                try:
                    values = measure(candidate)
                except (BenchError, OSError, subprocess.SubprocessError) as exc:
                    self.results.missing[f"{row}: {candidate.name}"] = str(exc)
                    running.remove(candidate)
                    continue
                if number:
                    for name, value in values.items():
                        self.results.add(name, candidate.name, value)

    def first_read(self) -> None:
        """Ciphertext cached, plaintext not; and the processor time that it took."""
        self.interleave("first-read", _first_read, _mounts(self.candidates))

    def cold_read(self) -> None:
        """Neither cached. ext4 once as it is and once with the mount's read-ahead."""
        self.interleave("cold-read", self._cold_read, [*self.candidates, *self._ext4_same()])

    def _ext4_same(self) -> list[Candidate]:
        return [SameReadAhead(each, self.mount_read_ahead_kb) for each in self.candidates if each.name == "ext4"]

    def _cold_read(self, candidate: Candidate) -> dict[str, float]:
        with _adjusted(candidate):
            _chill(candidate)
            return {"cold-read": _sequential(candidate.path / FILE)[0]}

    def second_read(self) -> None:
        """From the page cache: on the same descriptor, and after closing and opening again."""
        self.interleave("second-read", _second_read)

    def mapped(self) -> None:
        """One byte of every 4 KiB of a mapping, in a process of its own."""
        self.interleave("mmap-first", lambda each: {"mmap-first": _mapped(each, cold=False)}, _mounts(self.candidates))
        self.interleave("mmap-cold", lambda each: {"mmap-cold": _mapped(each, cold=True)})

    def random(self) -> None:
        """fio, each 4 KiB read once; ciphertext cached, plaintext not."""
        for threads in (1, 8):
            self.interleave(f"random-{threads}", partial(_random, threads=threads), _mounts(self.candidates))

    def four_readers(self) -> None:
        """Four files by four threads at once, ciphertext cached."""
        self.interleave("four-readers", _four_readers, _mounts(self.candidates))

    def memory(self) -> None:
        """PSS is sampled in passes of their own: sampling slows the daemon down."""
        self.interleave("memory", _memory, _mounts(self.candidates))

    def page_cache(self) -> None:
        """From cold, what is in the page cache when a file has been read."""
        self.interleave("page-cache", _page_cache)


class SameReadAhead(Candidate):
    """Plain files, read with another read-ahead."""

    def __init__(self, plain: Candidate, kib: int) -> None:
        """The same files."""
        super().__init__("ext4, same read-ahead", plain.source, plain.work)
        self.kib = kib


@contextmanager
def _adjusted(candidate: Candidate) -> Iterator[None]:
    if isinstance(candidate, SameReadAhead):
        with read_ahead(candidate.path, candidate.kib):
            yield
    else:
        yield


def _mounts(candidates: list[Candidate]) -> list[Candidate]:
    """Those for which a first read with a cached store means something."""
    return [each for each in candidates if each.is_mount]


def _chill(candidate: Candidate, *names: str) -> None:
    """Neither the store nor these files of the mount are in the page cache."""
    for name in names or (FILE,):
        drop([candidate.path / name])
    drop(candidate.stored_files())


def _heat(candidate: Candidate, *names: str) -> None:
    """The store is in the page cache, these files of the mount are not.

    Read anew for everybody: a store that drew good pages of memory when it was written would keep them for all rounds.
    """
    # The passthrough's store: only what is read.
    stored = [candidate.store / name for name in names or (FILE,)] if candidate.store == candidate.source else candidate.stored_files()
    drop(stored)
    warm(stored)
    drop([candidate.path / name for name in names or (FILE,)])


def _read_all(fd: int) -> float:
    """Read from the start with read(2) of 1 MiB; bytes a nanosecond."""
    buffer, total = mmap.mmap(-1, MIB), 0
    os.lseek(fd, 0, os.SEEK_SET)
    start = time.perf_counter_ns()
    while count := os.readv(fd, [buffer]):
        total += count
    return total / (time.perf_counter_ns() - start)


def _sequential(path: Path) -> tuple[float, int]:
    """GB/s of one first read, and the bytes of the file that are cached when it ends."""
    with opened(path) as fd:
        drop_fd(fd)
        rate = _read_all(fd)
        return rate, cached_pages(fd) * mmap.PAGESIZE


def _first_read(candidate: Candidate) -> dict[str, float]:
    _heat(candidate)
    pids = candidate.pids()
    before = cpu_seconds(pids)
    rate, _ = _sequential(candidate.path / FILE)
    spent = cpu_seconds(candidate.pids()) - before
    return {"first-read": rate, "cpu": spent / ((candidate.path / FILE).stat().st_size / 1e9)}


def _second_read(candidate: Candidate) -> dict[str, float]:
    path = candidate.path / FILE
    with opened(path) as fd:
        drop_fd(fd)  # which pages of memory a file got decides by a third: each round gets others
        _read_all(fd)
        again = statistics.median(_read_all(fd) for _ in range(REREADS))
    rates = []
    for _ in range(REREADS):
        with opened(path) as fd:
            rates.append(_read_all(fd))
    return {"second-read": again, "second-read-reopened": statistics.median(rates)}


def _mapped(candidate: Candidate, cold: bool) -> float:
    (_chill if cold else _heat)(candidate)

    def touch() -> float:
        with opened(candidate.path / FILE) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapping, memoryview(mapping) as view:
            start = time.perf_counter_ns()
            pages = len(bytes(view[:: mmap.PAGESIZE]))
            return pages * mmap.PAGESIZE / (time.perf_counter_ns() - start)

    return in_child(touch)


def in_child(measure: Callable[[], float]) -> float:
    """A number from a forked process: a SIGBUS is its own, and so is a mapping, which ends with it.

    Raises:
        BenchError: The process died.
    """
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(writing, repr(measure()).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        answer = pipe.read()
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if not answer:
        raise BenchError(f"the reading process ended with {status}")
    return float(answer)


def _random(candidate: Candidate, threads: int) -> dict[str, float]:
    _heat(candidate)
    path = candidate.path / FILE
    part = path.stat().st_size // threads // 4096 * 4096
    sizes = [f"--size={part}", f"--offset_increment={part}", f"--number_ios={max(1, RANDOM_READS // threads)}"]
    # Every thread reads its own part, in which fio reads nothing twice: each read is a first one.
    load = ["--rw=randread", "--bs=4k", "--ioengine=psync", "--thread", f"--numjobs={threads}", *sizes, f"--runtime={RANDOM_SECONDS}"]
    how = ["--readonly", "--invalidate=0", "--group_reporting", "--output-format=json"]
    answer = run("fio", "--name=random", f"--filename={path}", *load, *how)
    latency = json.loads(answer[answer.index("{") :])["jobs"][0]["read"]["clat_ns"]["percentile"]
    return {f"random-{threads}-median": latency["50.000000"] / 1e3, f"random-{threads}-p99": latency["99.000000"] / 1e3}


def read_parallel(paths: list[Path]) -> float:
    """GB/s of all files together, one thread for each."""

    def read(path: Path) -> None:
        with opened(path) as fd:
            _read_all(fd)

    with ThreadPoolExecutor(len(paths)) as pool:
        start = time.perf_counter_ns()
        list(pool.map(read, paths))
        return sum(path.stat().st_size for path in paths) / (time.perf_counter_ns() - start)


def _four_readers(candidate: Candidate) -> dict[str, float]:
    _heat(candidate, *PARTS)
    return {"four-readers": read_parallel([candidate.path / name for name in PARTS])}


def _memory(candidate: Candidate) -> dict[str, float]:
    _heat(candidate)
    with peak_pss(candidate.pids) as peak:
        _sequential(candidate.path / FILE)
    return {"memory": peak[0] / MIB}


def _page_cache(candidate: Candidate) -> dict[str, float]:
    _chill(candidate)
    path = candidate.path / FILE
    _, plain = _sequential(path)
    return {"page-cache": (plain + cached_bytes(candidate.stored_files())) / path.stat().st_size}


def read_ahead_of(candidates: list[Candidate]) -> int:
    """KiB that modelfs's mount reads ahead; 1024 where none is mounted."""
    found = [read_ahead_kb(each.path) for each in candidates if each.name.startswith("modelfs")]
    return next((kib for kib in found if kib), 1024)
