"""The comparison of block sizes behind docs/FORMAT.md, section 9: pread, digest and tag, one core, cached, no mount."""

import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

from benchmark.cache import sync, warm
from benchmark.system import MIB
from modelfs.format.geometry import geometry
from modelfs.format.manifest import BlobEntry
from modelfs.reader.blob import BlobReader, ReadBuffers
from modelfs.store.local import Store
from tests.helpers import KeySet, Sealed, seal

BLOCK_SIZES = (128 << 10, 256 << 10, 1 << 20)
RANDOM_READS = 1000


def measure_blocks(work: Path, size: int, rounds: int) -> str:
    """A Markdown table: sequential reads, and random ones of 4 KiB, for three block sizes."""
    keys_dir, source = work / "keys", work / "source"
    keys_dir.mkdir()
    source.mkdir()
    keys = KeySet.generate(keys_dir)
    (source / "model.bin").write_bytes(os.urandom(size))
    readers: dict[int, Callable[[int, memoryview], int]] = {}
    times: dict[int, tuple[list[float], list[float]]] = {}
    blobs: dict[int, Path] = {}
    for block_size in BLOCK_SIZES:
        sealed = Sealed(work / f"sealed{block_size}", source, keys)
        seal(keys, source, sealed.path, block_size=block_size)
        entry, manifest = sealed.entry("model.bin"), sealed.manifest
        blob = BlobEntry(id=entry.blob, root=next(b.root for b in manifest.blobs if b.id == entry.blob), size=size)
        shape, buffers = geometry(size, block_size), ReadBuffers()
        readers[block_size] = BlobReader(Store(sealed.path), blob, shape, "blake3", entry.blob_key, buffers).read_into
        times[block_size], blobs[block_size] = ([], []), sealed.path / "blobs" / blob.id
    sync(blobs.values())
    out = memoryview(bytearray(MIB))
    for number in range(rounds + 1):
        for block_size, read_into in readers.items():
            warm([blobs[block_size]])  # a reader may drop behind itself what it has read
            start = time.perf_counter()
            for offset in range(0, size, MIB):
                read_into(offset, out)
            sequential = size / (time.perf_counter() - start) / 1e9
            waits = []
            warm([blobs[block_size]])
            for _ in range(RANDOM_READS):
                offset = random.randrange(size // 4096) * 4096
                start = time.perf_counter()
                read_into(offset, out[:4096])
                waits.append((time.perf_counter() - start) * 1e6)
            if number:
                times[block_size][0].append(sequential)
                times[block_size][1].append(statistics.median(waits))
    lines = ["| block size | sequential, GB/s | one random 4 KiB read, µs |", "|---|---:|---:|"]
    for block_size, (rates, waits) in times.items():
        lines.append(f"| {block_size >> 10} KiB | {statistics.median(rates):.2f} | {statistics.median(waits):.0f} |")
    return "\n".join(lines) + "\n"
