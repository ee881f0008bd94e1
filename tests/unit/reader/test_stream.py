"""Memory and page cache: where ciphertext is read to, and that it leaves the cache behind a stream, and only there."""

import ctypes
import os
from pathlib import Path

import pytest

from modelfs.cache.scratch import PAGE, Scratch, page_aligned, streaming
from modelfs.control.process import libc
from modelfs.reader.stream import DROP, LAG, LARGEST_FOLIO, STREAM_REQUEST, BlobStream

MIB = 1 << 20
HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def address(memory: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(memory))


@pytest.mark.parametrize("offset", [0, 1, 15, 16, 4095, 4096, 131088, 131088 * 77])
def test_scratch_lies_in_its_page_as_in_the_file(offset: int) -> None:
    scratch = Scratch()
    for length in (1, PAGE, 8 * 131088):
        framed = scratch.framed(offset, length)
        assert len(framed) == length + 1
        assert address(framed[1:]) % PAGE == offset % PAGE
        framed[:] = bytes(len(framed))  # all of it is there


def test_scratch_is_reused() -> None:
    scratch = Scratch()
    first = address(scratch.framed(0, MIB))
    assert address(scratch.framed(0, 10)) == first
    assert address(page_aligned(5)) % PAGE == 0


@pytest.fixture
def stored(tmp_path: Path) -> tuple[Path, int]:
    """A file on a disk, and its size; on tmpfs nothing can be dropped."""
    path, size = tmp_path / "blob", 128 * MIB
    path.write_bytes(os.urandom(MIB) * 128)
    os.sync()
    return path, size


def cached(path: Path) -> int:
    """Bytes of a file in the page cache, by mincore(2): an account of its own, not the one of modelfs."""
    fd, size = os.open(path, os.O_RDONLY), path.stat().st_size
    libc.mmap.restype, libc.mmap.argtypes = ctypes.c_void_p, [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    memory = libc.mmap(None, size, 1, 1, fd, 0)
    present = (ctypes.c_ubyte * -(-size // PAGE))()
    assert libc.mincore(ctypes.c_void_p(memory), ctypes.c_size_t(size), present) == 0
    libc.munmap(ctypes.c_void_p(memory), ctypes.c_size_t(size))
    os.close(fd)
    return sum(byte & 1 for byte in present) * PAGE


def test_a_stream_leaves_nothing_behind(stored: tuple[Path, int]) -> None:
    path, size = stored
    stream, memory = BlobStream(os.open(path, os.O_RDONLY), size), page_aligned(MIB)
    for offset in range(0, size, MIB):
        assert stream.read(memory, offset) == MIB
        if offset == size // 2:
            assert cached(path) <= size - offset + LAG + DROP + LARGEST_FOLIO + MIB
    assert cached(path) <= size * 0.05
    stream.close()


def test_two_streams_that_share_the_work_leave_nothing_behind(stored: tuple[Path, int]) -> None:
    path, size = stored
    streams, memory = [BlobStream(os.open(path, os.O_RDONLY), size) for _ in range(2)], page_aligned(MIB)
    for number, offset in enumerate(range(0, size, MIB)):
        assert streams[number % 2].read(memory, offset) == MIB
    assert cached(path) <= size * 0.05
    for stream in streams:
        stream.close()


def test_small_reads_keep_the_cache(stored: tuple[Path, int]) -> None:
    path, size = stored
    path.read_bytes()
    stream = BlobStream(os.open(path, os.O_RDONLY), size)
    for offset in range(0, size, STREAM_REQUEST // 2):
        stream.read(page_aligned(STREAM_REQUEST // 2), offset)
    assert cached(path) == size
    stream.close()


def test_read_tells_where_the_file_ends(stored: tuple[Path, int]) -> None:
    path, size = stored
    stream, memory = BlobStream(os.open(path, os.O_RDONLY), size), page_aligned(MIB)
    assert stream.read(memory, size - 10) == 10
    assert stream.read(memory, size) == 0
    stream.close()


def huge_kib(memory: memoryview) -> int:
    """How much of the mapping that holds `memory` lies in huge pages."""
    at, found = address(memory), False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if "-" in line.partition(" ")[0]:
            start, end = (int(part, 16) for part in line.partition(" ")[0].split("-"))
            found = start <= at < end
        elif found and line.startswith("AnonHugePages:"):
            return int(line.split()[1])
    raise AssertionError("no such mapping")


@pytest.mark.skipif("[never]" in HUGE_PAGES.read_text(), reason="this kernel is told not to use huge pages")
def test_large_memory_lies_in_huge_pages() -> None:
    scratch = Scratch()
    for memory in (streaming(MIB), scratch.framed(7, 8 * 131088)[1:]):
        assert address(memory) % PAGE == (0 if len(memory) == MIB else 7)
        memory[:] = bytes(len(memory))
        assert huge_kib(memory) >= 2048  # mappings that lie side by side are one


def test_small_memory_takes_no_more_than_it_needs() -> None:
    memory = streaming(3 * PAGE)
    memory[:] = bytes(len(memory))
    assert huge_kib(memory) == 0
