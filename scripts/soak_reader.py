"""A reader of scripts/soak: `soak_reader.py MODE PLAIN MOUNTED EXPECTED`. Reads at random until stdin closes, and compares every byte.

MODE is buffered, direct or mapped. EXPECTED is a file of two numbers that the soak writes and this maps: how often what is expected has
changed, and whether errors are expected now. An error counts as unexpected if none was expected before nor after the read, and nothing
has changed in between. The last line is what was seen, as JSON.
"""

import errno
import json
import mmap
import os
import random
import select
import signal
import sys
import time
from collections import Counter
from pathlib import Path

LARGEST = 1 << 18
AGAIN_SECONDS = 0.02


def main(mode: str, plain_path: str, path: str, expected_path: str, seed: str) -> None:
    """Read, compare, count."""
    plain, chance = Path(plain_path).read_bytes(), random.Random(int(seed))
    with open(expected_path, "rb") as file:
        expected = memoryview(mmap.mmap(file.fileno(), 16, prot=mmap.PROT_READ)).cast("Q")
    read = {"buffered": read_buffered, "direct": read_direct, "mapped": read_mapped}[mode]
    errors: Counter[str] = Counter()
    reads = size = wrong = unexpected = 0
    slowest_s = 0.0
    while not select.select([sys.stdin], [], [], 0)[0] and not wrong:
        length = chance.randrange(1, LARGEST)
        offset = chance.randrange(len(plain) - length) & ~4095
        before, start = (expected[0], expected[1]), time.monotonic()
        try:
            got = read(path, offset, length)
        except OSError as exc:
            name = "SIGBUS" if exc.errno == errno.EFAULT else errno.errorcode.get(exc.errno or 0, str(exc))
            errors[name] += 1
            unexpected += before[1] == 0 and before == (expected[0], expected[1])
            time.sleep(AGAIN_SECONDS)
            continue
        if before[1] == 0 and before == (expected[0], expected[1]):
            slowest_s = max(slowest_s, time.monotonic() - start)
        reads, size = reads + 1, size + len(got)
        wrong += got != plain[offset : offset + len(got)] or not got
    seen = {"reads": reads, "bytes": size, "wrong": wrong, "unexpected": unexpected, "errors": errors, "slowest_s": round(slowest_s, 3)}
    print(json.dumps(seen))


def read_buffered(path: str, offset: int, length: int) -> bytes:
    """Through the page cache, of which what is read is dropped before."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
        return os.pread(fd, length, offset)
    finally:
        os.close(fd)


def read_direct(path: str, offset: int, length: int) -> bytes:
    """Around the page cache."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECT)
    try:
        with mmap.mmap(-1, (length + 4095) & ~4095) as buffer:
            return buffer[: os.preadv(fd, [buffer], offset)]
    finally:
        os.close(fd)


def read_mapped(path: str, offset: int, length: int) -> bytes:
    """Touch a mapping in a child, which dies of SIGBUS where a read would give an error: EFAULT here."""
    fd = os.open(path, os.O_RDONLY)
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            mapping = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
            os.write(writing, mapping[offset : offset + min(length, 32768)])
            os._exit(0)
        except OSError as exc:
            os._exit(exc.errno or 1)
    os.close(writing)
    try:
        got = b""
        while part := os.read(reading, 65536):
            got += part
    finally:
        os.close(reading)
        os.close(fd)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if code == -signal.SIGBUS:
        raise OSError(errno.EFAULT, "SIGBUS")
    if code != 0:
        raise OSError(abs(code), "mmap")
    return got


if __name__ == "__main__":
    main(*sys.argv[1:])
