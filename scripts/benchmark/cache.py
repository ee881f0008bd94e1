"""The page cache: drop files from it, fill it with them, count what is in it, and how far ahead a file system reads."""

import ctypes
import mmap
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmark.system import MIB, BenchError

libc = ctypes.CDLL(None, use_errno=True)
_SYS_CACHESTAT = 451
PAGE = mmap.PAGESIZE


def files_below(path: Path) -> list[Path]:
    """A file itself, or every regular file below a directory."""
    if path.is_file():
        return [path]
    return sorted(Path(folder) / name for folder, _, names in os.walk(path) for name in names)


@contextmanager
def opened(path: Path) -> Iterator[int]:
    """A descriptor for reading."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def cached_bytes(paths: Iterable[Path]) -> int:
    """Bytes of these files that are in the page cache."""
    total = 0
    for path in paths:
        with opened(path) as fd:
            total += cached_pages(fd) * PAGE
    return total


def cached_pages(fd: int) -> int:
    """Pages of an open file in the page cache. A mount may drop them when the file is opened anew: ask the reader's descriptor."""
    pages = _cachestat(fd)
    return filled_pages(fd, os.fstat(fd).st_size) if pages is None else pages


def _cachestat(fd: int) -> int | None:
    """By cachestat(2); None where the kernel has none (before 6.5)."""
    extent, result = (ctypes.c_uint64 * 2)(0, 0), (ctypes.c_uint64 * 5)()
    return None if libc.syscall(_SYS_CACHESTAT, fd, extent, result, 0) else int(result[0])


def filled_pages(fd: int, size: int) -> int:
    """Those that hold content (mincore(2)). cachestat(2) counts pages too that the kernel has only just made for a read.

    Args:
        fd: Open for reading.
        size: Of the file, in bytes. It is not asked for: a locked mount would not say.
    """
    if size == 0:
        return 0
    with mmap.mmap(fd, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as mapping:  # from_buffer wants it writable
        vector = (ctypes.c_ubyte * -(-size // PAGE))()
        start = ctypes.c_char.from_buffer(mapping)
        failed = libc.mincore(ctypes.byref(start), ctypes.c_size_t(size), vector)
        del start
    if failed:
        raise OSError(ctypes.get_errno(), f"the kernel does not tell what is cached: {os.strerror(ctypes.get_errno())}")
    return sum(byte & 1 for byte in vector)


def sync(paths: Iterable[Path]) -> None:
    """Write dirty pages out: only clean ones can be dropped."""
    for path in paths:
        with opened(path) as fd:
            os.fsync(fd)


def drop(paths: Iterable[Path]) -> None:
    """Drop these files' own pages and nobody else's.

    Raises:
        BenchError: More than a hundredth stayed: somebody maps them.
    """
    for path in paths:
        with opened(path) as fd:
            drop_fd(fd)


def drop_fd(fd: int) -> None:
    """As `drop`, for an open file."""
    for _ in range(3):  # pages that are being read just now stay
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        left, size = cached_pages(fd) * PAGE, os.fstat(fd).st_size
        if left <= size // 100 + PAGE:
            return
    raise BenchError(f"{left} of {size} bytes stay in the page cache: is the file mapped, or the work directory a tmpfs?")


def warm(paths: Iterable[Path]) -> None:
    """Have all of these files in the page cache."""
    buffer = mmap.mmap(-1, MIB)
    for path in paths:
        with opened(path) as fd:
            if cached_pages(fd) * PAGE < os.fstat(fd).st_size:
                while os.readv(fd, [buffer]):
                    pass


def read_ahead_file(path: Path) -> Path:
    """Where the kernel has the read-ahead of the file system at `path`."""
    device = os.stat(path).st_dev
    return Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb")


def read_ahead_kb(path: Path) -> int | None:
    """KiB that the file system at `path` reads ahead at most; None if the kernel does not say."""
    with suppress(OSError, ValueError):
        return int(read_ahead_file(path).read_text())
    return None


@contextmanager
def read_ahead(path: Path, kib: int) -> Iterator[None]:
    """Another read-ahead for files that are opened meanwhile; what was there comes back, whatever happens.

    Raises:
        BenchError: It cannot be set.
    """
    place = read_ahead_file(path)
    try:
        before = place.read_text()
        place.write_text(str(kib))
    except OSError as exc:
        raise BenchError(f"cannot set {place}: {exc.strerror}") from None
    try:
        yield
    finally:
        place.write_text(before)
