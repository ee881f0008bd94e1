"""How cost grows: with the size of a file, the number of files, workers, readers, and the size of the whole model."""

import mmap
import os
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from benchmark.cache import drop_fd, files_below, opened, warm
from benchmark.candidate import Candidate
from benchmark.candidates import Modelfs, bring_up, take_down
from benchmark.costs import pss_bytes
from benchmark.data import write_random
from benchmark.reads import read_parallel
from benchmark.results import Results
from benchmark.synthetic import SyntheticModelfs
from benchmark.system import MIB, BenchError, run, start

GB = 10**9
WINDOW = 256 * MIB
WINDOWS = 4
SMALL_TOTAL = 64 * MIB
SMALL_FILE = 4096
SMALL_READS = 1000
PROVIDERS = ("hvac", "boto3", "botocore", "google.cloud", "azure", "obstore")


class Scale:
    """Curves; each point is measured `rounds` times, candidates in turn, after one round that is thrown away."""

    def __init__(self, work: Path, results: Results, rounds: int, quick: bool) -> None:
        """Nothing is made yet."""
        self.work, self.results, self.rounds, self.quick = work / "scale", results, rounds, quick
        self.work.mkdir(exist_ok=True)

    def _interleave(self, curve: str, x: float, measures: Mapping[str, Callable[[], float]]) -> None:
        """One point of a curve: by candidate what a pass gives, in turn."""
        for number in range(self.rounds + 1):
            for name, measure in measures.items():
                value = measure()
                if number:
                    self.results.add_point(curve, name, x, value)

    def _mounted(self, names: Sequence[str], source: Path, measure: Callable[[list[Candidate]], None]) -> None:
        """Mount candidates over `source` for as long as `measure` runs; all of it goes afterwards."""
        work = Path(f"{source}.work")
        work.mkdir()
        candidates, missing = bring_up(names, source, work)
        try:
            for name, reason in missing.items():
                raise BenchError(f"{name}: {reason}")
            measure(candidates)
        finally:
            take_down(candidates)
            shutil.rmtree(source, ignore_errors=True)
            shutil.rmtree(work, ignore_errors=True)

    def file_size(self) -> None:
        """First reads of files from 1 MiB to 8 GiB: of large ones four windows, from their beginning to their end."""
        sizes = [1, 16, 64] if self.quick else [1, 16, 256, 1024, 8192]
        room = available_memory() // 2  # the ciphertext has to stay cached
        sizes = [size for size in sizes if size * MIB <= room]
        source = self.work / "sizes"
        source.mkdir()
        for size in sizes:
            write_random(source / str(size), size * MIB)

        def first(candidate: Candidate, size: int) -> float:
            by_likeness = sorted(candidate.stored_files(), key=lambda path: abs(path.stat().st_size - size * MIB))
            warm(by_likeness[:2])  # the file's blob is the one with almost its size
            return read_windows(candidate.path / str(size))

        def measure(candidates: list[Candidate]) -> None:
            for size in sizes:
                self._interleave("file-size", size, {each.name: partial(first, each, size) for each in candidates})

        self._mounted(["passthrough", "modelfs", "modelfs-1"], source, measure)

    def file_count(self) -> None:
        """Opening, reading and closing small files, of models with more and more of them."""
        for count in [1, 100, 1000] if self.quick else [1, 100, 1_000, 10_000, 100_000]:
            source = self.work / f"files-{count}"
            for number in range(count):
                path = source / f"{number // 1000:03}" / f"{number % 1000:03}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(number.to_bytes(8, "big") * (SMALL_FILE // 8))
            names = [str(path.relative_to(source)) for path in files_below(source)]
            chosen = random.Random(1).sample(names, min(count, SMALL_READS))

            def measure(candidates: list[Candidate], count: int = count, chosen: list[str] = chosen) -> None:
                plain = Candidate("ext4", candidates[0].source, candidates[0].work)
                passes = {each.name: partial(read_small, each, chosen) for each in [plain, *candidates]}
                self._interleave("file-count", count, passes)

            self._mounted(["modelfs"], source, measure)

    def _eight_files(self) -> tuple[Path, list[str]]:
        source, names = self.work / "eight", [f"{number}.bin" for number in range(8)]
        source.mkdir()
        for name in names:
            write_random(source / name, (16 if self.quick else 128) * MIB)
        return source, names

    def workers(self) -> None:
        """Four readers against 1, 2, 4 workers, and twice as many as there are cores."""
        source, names = self._eight_files()
        counts = sorted({1, 2, 4, 2 * (os.cpu_count() or 1)})

        def measure(candidates: list[Candidate]) -> None:
            for number in range(self.rounds + 1):
                for workers, candidate in zip(counts, candidates, strict=True):
                    rate = first_parallel(candidate, names[:4])
                    if number:
                        self.results.add_point("workers", "modelfs", workers, rate)

        self._mounted([f"modelfs-{count}" for count in counts], source, measure)

    def readers(self) -> None:
        """1 to 8 readers, each of a file of its own."""
        source, names = self._eight_files()

        def measure(candidates: list[Candidate]) -> None:
            for readers in (1, 2, 4, 8):
                self._interleave("readers", readers, {each.name: partial(first_parallel, each, names[:readers]) for each in candidates})

        self._mounted(["passthrough", "modelfs"], source, measure)

    def model_size(self) -> None:
        """Mount time and memory against the size of the model, to 1 TB in 1,000 files."""
        for files in [1, 100, 1000] if self.quick else [1, 10, 100, 1000]:
            seconds, memory = self._mount_times(files, GB)
            for value, peak in zip(seconds, memory, strict=True):
                self.results.add_point("mount-time", "modelfs", files, value)
                self.results.add_point("mount-memory", "modelfs", files, peak / MIB)

    def model_files(self) -> None:
        """Mount time and memory against the number of files."""
        for files in [1, 1000] if self.quick else [1, 100, 1_000, 10_000, 100_000]:
            seconds, memory = self._mount_times(files, SMALL_FILE)
            for value, peak in zip(seconds, memory, strict=True):
                self.results.add_point("mount-time-files", "modelfs", files, value)
                self.results.add_point("mount-memory-files", "modelfs", files, peak / MIB)

    def ready(self) -> None:
        """The row of the same name: 1,000 files of 1 GB; and which key providers such a mount imports."""
        seconds, _ = self._mount_times(1000, GB, count_imports=True)
        for value in seconds:
            begin = time.perf_counter()
            run(sys.executable, "-c", "pass")
            self.results.add("ready", "python -c pass", time.perf_counter() - begin)
            self.results.add("ready", "modelfs", value)

    def _mount_times(self, files: int, size: int, count_imports: bool = False) -> tuple[list[float], list[int]]:
        """Seconds from the start of the command until it says that it is mounted, and PSS then; the first mount warms the imports."""
        candidate = SyntheticModelfs(self.work, files, size)
        seconds, memory = [], []
        try:
            candidate.prepare()
            for number in range(self.rounds + 1):
                begin = time.perf_counter()
                candidate.mount()
                taken = time.perf_counter() - begin
                if number:
                    seconds.append(taken)
                    memory.append(pss_bytes(candidate.pids()))
                candidate.unmount()
            if count_imports:
                self.results.notes.append(_imported(candidate))
        finally:
            candidate.unmount()
            candidate.remove()
        return seconds, memory


def _imported(candidate: Modelfs) -> str:
    """Which key providers a mount under a file KEK has imported, by the interpreter's own account (-X importtime)."""
    words = [str(word) for word in candidate.command(writable=False)]
    log = candidate.work / "imports.log"
    daemon = start([words[0], "-X", "importtime", *words[1:]], log)
    try:
        deadline = time.monotonic() + 60
        while '"mountpoint"' not in log.read_text() and daemon.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
    finally:
        candidate.daemon = daemon
        candidate.unmount()
    modules = set(re.findall(r"^import time:.*\|\s+([\w.]+)$", log.read_text(), re.MULTILINE))
    if "modelfs.mount.start" not in modules:
        return "which key providers a mount imports could not be told"
    found = sorted(name for name in PROVIDERS if any(module == name or module.startswith(f"{name}.") for module in modules))
    return f"Imported by a mount with a file KEK: {len(modules)} modules; of other key providers: {', '.join(found) or 'none'}."


def available_memory() -> int:
    """Bytes that can be had without swapping."""
    found = re.search(r"^MemAvailable:\s+(\d+) kB$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return int(found[1]) * 1024 if found else 0


def read_windows(path: Path) -> float:
    """GB/s of first reads of up to four windows of 256 MiB, evenly over the file; of a small file, again and again."""
    size = path.stat().st_size
    length = min(WINDOW, size // WINDOWS) if size > WINDOW else size
    starts = [(size - length) * number // (WINDOWS - 1) // MIB * MIB for number in range(WINDOWS)]
    starts *= max(1, SMALL_TOTAL // (length * WINDOWS))
    buffer, nanoseconds = mmap.mmap(-1, MIB), 0
    with opened(path) as fd:
        for begin in starts:
            drop_fd(fd)
            clock = time.perf_counter_ns()
            for offset in range(begin, begin + length, MIB):
                os.preadv(fd, [buffer], offset)
            nanoseconds += time.perf_counter_ns() - clock
    return length * len(starts) / nanoseconds


def read_small(candidate: Candidate, names: list[str]) -> float:
    """Files a second: opened, read and closed; through a mount each is a first read. Few files are read again and again."""
    seconds, repeats = 0.0, max(1, SMALL_READS // len(names))
    paths = [candidate.path / name for name in names]
    warm(candidate.stored_files() or paths)
    for _ in range(repeats):
        for path in paths if candidate.is_mount else []:
            with opened(path) as fd:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        begin = time.perf_counter()
        for path in paths:
            with opened(path) as fd:
                os.read(fd, 2 * SMALL_FILE)
        seconds += time.perf_counter() - begin
    return len(paths) * repeats / seconds


def first_parallel(candidate: Candidate, names: list[str]) -> float:
    """GB/s of first reads of several files at once, ciphertext cached."""
    warm([candidate.store / name for name in names] if candidate.store == candidate.source else candidate.stored_files())
    for name in names:
        with opened(candidate.path / name) as fd:
            drop_fd(fd)
    return read_parallel([candidate.path / name for name in names])


def measure_scale(work: Path, results: Results, rounds: int, quick: bool, rows: set[str]) -> None:
    """The curves and the row `ready`, as far as they are wanted."""
    scale = Scale(work, results, rounds, quick)
    parts: dict[str, Callable[[], None]] = {
        "ready": scale.ready,
        "file-size": scale.file_size,
        "file-count": scale.file_count,
        "workers": scale.workers,
        "readers": scale.readers,
        "model-size": scale.model_size,
        "model-files": scale.model_files,
    }
    for name, measure in parts.items():
        if name in rows:
            try:
                measure()
            except (BenchError, OSError) as exc:
                results.missing[name] = str(exc)
