"""What `scripts/bench` runs. Every figure is a ratio to a candidate of the same run: machines are shared and noisy.

First read of a large file: ciphertext cached, plaintext not, 1 MiB read(2). Before each pass only the mounted file's own pages are
dropped; the candidates take turns; the first round is thrown away; medians are compared.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

MIB = 1 << 20
MODEL = [sys.executable, "-m", "modelfs"]


def run(*command: object, **options: object) -> None:
    subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL, **options)  # type: ignore[call-overload]


def first_read(path: Path) -> float:
    """Seconds of one sequential read with no page of the mounted file in the cache."""
    buffer = bytearray(MIB)
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        while os.readv(fd, [buffer]):
            pass
        return time.perf_counter() - start
    finally:
        os.close(fd)


@contextmanager
def modelfs(base: Path, source: Path, workers: str) -> Iterator[Path]:
    """A mount of `source` by modelfs."""
    name = f"modelfs-{workers}"
    mountpoint, sealed, keys = base / name, base / "sealed", base / "keys"
    mountpoint.mkdir()
    if not keys.exists():
        keys.mkdir()
        run(*MODEL, "keygen", "signing", keys / "sign")
        run(*MODEL, "keygen", "kek", keys / "kek")
        kek = f"file:{keys / 'kek'}"
        run(*MODEL, "seal", source, sealed, "--model", "bench", "--release", 1, "--kek", kek, "--sign-key", keys / "sign")
    access = ["--kek", f"file:{keys / 'kek'}", "--trust", keys / "sign.pub", "--state-dir", base / f"state-{workers}"]
    run(*MODEL, "mount", sealed, mountpoint, "--model", "bench", *access, "--workers", workers)
    try:
        yield mountpoint
    finally:
        run(*MODEL, "unmount", mountpoint)


@contextmanager
def gocryptfs(base: Path, source: Path) -> Iterator[Path]:
    """A mount of a copy of `source` by gocryptfs, as Debian ships it."""
    cipher, mountpoint, password = base / "gocryptfs-cipher", base / "gocryptfs", base / "password"
    cipher.mkdir()
    mountpoint.mkdir()
    password.write_text("bench\n")
    run("gocryptfs", "-init", "-q", "-passfile", password, cipher)
    run("gocryptfs", "-q", "-passfile", password, cipher, mountpoint)
    try:
        for file in source.iterdir():
            run("cp", file, mountpoint / file.name)
        run("fusermount3", "-u", mountpoint)
        run("gocryptfs", "-q", "-ro", "-passfile", password, cipher, mountpoint)
        yield mountpoint
    finally:
        run("fusermount3", "-u", mountpoint)


def measure_reads(base: Path, size: int, passes: int) -> dict[str, object]:
    source = base / "source"
    source.mkdir()
    with open(source / "model.bin", "wb") as file:
        for _ in range(size):
            file.write(os.urandom(MIB))
    with ExitStack() as stack:
        mounts = {"gocryptfs": stack.enter_context(gocryptfs(base, source))}
        for workers in ("1", "auto"):
            mounts[f"modelfs, workers {workers}"] = stack.enter_context(modelfs(base, source, workers))
        times: dict[str, list[float]] = {name: [] for name in mounts}
        for number in range(passes + 1):
            for name, mountpoint in mounts.items():
                seconds = first_read(mountpoint / "model.bin")
                if number:
                    times[name].append(seconds)
    rates = {name: sorted(size * MIB / seconds / 1e9 for seconds in found) for name, found in times.items()}
    reference = statistics.median(rates["gocryptfs"])
    return {
        name: {
            "gb_per_s_median": round(statistics.median(found), 3),
            "gb_per_s_min": round(found[0], 3),
            "gb_per_s_max": round(found[-1], 3),
            "ratio_to_gocryptfs": round(statistics.median(found) / reference, 3),
        }
        for name, found in rates.items()
    }


def measure_blocks(base: Path, passes: int) -> dict[str, object]:
    """pread + digest + tag of one block after the other, and of random ones, for three block sizes; one core, cached."""
    import random

    from modelfs.format.geometry import geometry
    from modelfs.format.manifest import BlobEntry
    from modelfs.reader.blob import BlobReader, ReadBuffers
    from modelfs.store.local import Store
    from tests.helpers import KeySet, Sealed, seal

    keys_dir, source = base / "keys", base / "source"
    keys_dir.mkdir()
    source.mkdir()
    keys, size = KeySet.generate(keys_dir), 256 * MIB
    (source / "model.bin").write_bytes(os.urandom(size))
    readers: dict[int, Callable[[int, memoryview], int]] = {}
    times: dict[int, tuple[list[float], list[float]]] = {}
    for block_size in (128 << 10, 256 << 10, 1 << 20):
        sealed = Sealed(base / f"sealed{block_size}", source, keys)
        seal(keys, source, sealed.path, block_size=block_size)
        entry, manifest = sealed.entry("model.bin"), sealed.manifest
        blob = BlobEntry(id=entry.blob, root=next(b.root for b in manifest.blobs if b.id == entry.blob), size=size)
        shape, buffers = geometry(size, block_size), ReadBuffers()
        readers[block_size] = BlobReader(Store(sealed.path), blob, shape, "blake3", entry.blob_key, buffers).read_into
        times[block_size] = ([], [])
    out = memoryview(bytearray(MIB))
    for number in range(passes + 1):
        for block_size, read_into in readers.items():
            start = time.perf_counter()
            for offset in range(0, size, MIB):
                read_into(offset, out)
            sequential = size / (time.perf_counter() - start) / 1e9
            waits = []
            for _ in range(1000):
                offset = random.randrange(size // 4096) * 4096
                start = time.perf_counter()
                read_into(offset, out[:4096])
                waits.append((time.perf_counter() - start) * 1e6)
            if number:
                times[block_size][0].append(sequential)
                times[block_size][1].append(statistics.median(waits))
    return {
        f"{block_size >> 10} KiB": {
            "sequential_gb_per_s": round(statistics.median(sequential), 2),
            "random_4k_us": round(statistics.median(waits), 1),
        }
        for block_size, (sequential, waits) in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--passes", type=int, default=10, help="rounds that count; one more is thrown away")
    parser.add_argument("--size", type=int, default=256, metavar="MIB", help="size of the file")
    parser.add_argument("--blocks", action="store_true", help="compare block sizes instead of file systems")
    parser.add_argument("--results", type=Path, default=Path("results"), help="where the JSON goes")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="modelfs-bench-") as temporary:
        base = Path(temporary)
        found = measure_blocks(base, args.passes) if args.blocks else measure_reads(base, args.size, args.passes)
    args.results.mkdir(exist_ok=True)
    report = {"command": ["scripts/bench", *sys.argv[1:]], "results": found}
    (args.results / ("blocks.json" if args.blocks else "reads.json")).write_text(json.dumps(report, indent=2) + "\n")
    columns = list(next(iter(found.values())))  # type: ignore[call-overload]
    print(f"| | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, row in found.items():
        print(f"| {name} | {' | '.join(str(row[column]) for column in columns)} |")  # type: ignore[index]


if __name__ == "__main__":
    main()
