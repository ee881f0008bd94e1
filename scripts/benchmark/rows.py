"""The rows of the report: what is measured, in which unit, and the bars that modelfs has set itself."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Bar:
    """What modelfs has to reach, relative to another candidate of the same run, or (reference "") as a value of its own."""

    reference: str
    bar: float | None = None
    aim: float | None = None
    row: str = ""
    """Where the reference's value stands, if it is another row."""
    per_worker: float = 0.0
    """Added to bar and aim for each worker but the first."""


@dataclass(frozen=True)
class Row:
    """One line of the report."""

    name: str
    title: str
    unit: str
    more_is_better: bool
    bars: tuple[Bar, ...] = ()


READ = "GB/s"
ROWS = [
    Row("first-read", "first read, sequential, ciphertext cached", READ, True, (Bar("gocryptfs", 1.3, 2.0), Bar("passthrough", aim=0.7))),
    Row(
        "cold-read",
        "first read from cold disk",
        READ,
        True,
        (Bar("ext4", 0.85, 1.0), Bar("ext4, same read-ahead", aim=1.0), Bar("gocryptfs", 1.3)),
    ),
    Row("second-read", "second read, file kept open", READ, True, (Bar("passthrough", 0.95, 1.0), Bar("ext4"))),
    Row("second-read-reopened", "second read, after close and reopen", READ, True, (Bar("passthrough", 0.95, 1.0), Bar("ext4"))),
    Row(
        "mmap-first",
        "mmap, sequential touch, ciphertext cached",
        READ,
        True,
        (Bar("gocryptfs", 1.3), Bar("ext4", aim=0.9, row="mmap-cold")),
    ),
    Row("mmap-cold", "mmap, sequential touch, from cold disk", READ, True, (Bar("ext4"), Bar("gocryptfs"))),
    Row("random-1-median", "random 4 KiB pread, 1 thread, median", "µs", False, (Bar("gocryptfs", aim=1.0),)),
    Row("random-1-p99", "random 4 KiB pread, 1 thread, p99", "µs", False, (Bar("gocryptfs", 1.2, 1.0),)),
    Row("random-8-median", "random 4 KiB pread, 8 threads, median", "µs", False, (Bar("gocryptfs", aim=1.0),)),
    Row("random-8-p99", "random 4 KiB pread, 8 threads, p99", "µs", False, (Bar("gocryptfs", 1.2, 1.0),)),
    Row("four-readers", "4 readers of 4 files at once, sum", READ, True, (Bar("gocryptfs", 1.3, 2.0),)),
    Row("cpu", "processor time, first read, all daemon processes", "s/GB", False, (Bar("gocryptfs", 0.8, 0.5),)),
    Row("memory", "PSS of all daemon processes, peak of a first read", "MiB", False, (Bar("", 200, per_worker=40),)),
    Row("page-cache", "page cache after a cold read, ciphertext and plaintext, per byte read", "B/B", False, (Bar("", 1.15, 1.05),)),
    Row("load-minilm", "cold load: MiniLM, safetensors, to the first answer", "s", False, (Bar("ext4", 1.10, 1.0),)),
    Row("load-smollm2-shards", "cold load: SmolLM2 in 3 safetensors shards, to the first answer", "s", False, (Bar("ext4", 1.10, 1.0),)),
    Row("load-smollm2-gguf", "cold load: SmolLM2 by a llama.cpp server, to the first answer", "s", False, (Bar("ext4", 1.10, 1.0),)),
    Row("ready", "time to ready: 1,000 files, 1 TB of manifest", "s", False, (Bar("", 1.0, 0.3),)),
    Row("seal", "seal, result fsynced", READ, True, (Bar("cp", 0.7, 0.9), Bar("gocryptfs", 2.0))),
    Row("verify", "verify without key, cached, the whole command", READ, True, (Bar("blake3", 0.7, 1.0),)),
    Row("verify-inside", "verify without key, cached, without the interpreter's start", READ, True, (Bar("blake3"),)),
]
BY_NAME = {row.name: row for row in ROWS}


@dataclass(frozen=True)
class Curve:
    """How a cost or a rate grows with something."""

    name: str
    title: str
    unit: str
    along: str
    """What x is."""
    cost: Callable[[float, float], float] | None = None
    """The cost that must not grow faster than x, from x and the value; None where nothing grows."""


def _value(_x: float, value: float) -> float:
    return value


def _all_of_it(x: float, rate: float) -> float:
    return x / rate


CURVES = [
    Curve("file-size", "first read against file size", READ, "MiB in the file", _all_of_it),
    Curve("file-count", "open, read and close small files", "files/s", "files in the model", _all_of_it),
    Curve("workers", "first read of 4 files by 4 readers against workers", READ, "workers"),
    Curve("readers", "first read against readers", READ, "readers"),
    Curve("mount-time", "mount time against model size", "s", "GB in the model, 1 GB files", _value),
    Curve("mount-memory", "PSS after mounting against model size", "MiB", "GB in the model, 1 GB files", _value),
    Curve("mount-time-files", "mount time against number of files", "s", "files in the model", _value),
    Curve("mount-memory-files", "PSS after mounting against number of files", "MiB", "files in the model", _value),
]
