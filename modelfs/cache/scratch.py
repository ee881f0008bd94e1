"""Private memory for ciphertext: page-aligned, reused, laid out so that nothing is copied twice or slowly."""

import contextlib
import mmap

PAGE = mmap.PAGESIZE
HUGE_PAGE = 2 << 20
"""Of x86-64, and of aarch64 with pages of 4 KiB."""


class Scratch:
    """Grows to the largest request and stays. One thread; the next `framed` call overwrites what the last one returned."""

    def __init__(self) -> None:
        """Take no memory yet."""
        self._memory = memoryview(b"")

    def framed(self, offset: int, length: int) -> memoryview:
        """Memory for `length` bytes of a file from `offset`, and one byte before them.

        The bytes lie as far into a page as they do in the file: a copy out of the page cache to an address that is a few bytes
        off takes many times as long. The byte in front is room for a digest's prefix (`leaf_hash_in_place`).

        Returns:
            length + 1 bytes, owned by this object.
        """
        start = (offset - 1) % PAGE
        if start + 1 + length > len(self._memory):
            pages = -(-(length + 1) // PAGE) + 1
            self._memory = streaming(pages * PAGE)
        return self._memory[start : start + 1 + length]

    def from_page(self, offset: int, length: int) -> memoryview:
        """The bytes of `framed(offset, length)`, and before them as much room as there is in the file's page before `offset`.

        Returns:
            offset % PAGE + length bytes that begin at a page, owned by this object.
        """
        begin = (offset - 1) % PAGE + 1
        return self._memory[begin - offset % PAGE : begin + length]


def page_aligned(size: int) -> memoryview:
    """Zeroed private memory that starts at a page and takes none before it is touched."""
    return memoryview(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def streaming(size: int) -> memoryview:
    """As `page_aligned`, for memory through which all that is read goes: a MiB and more lies in huge pages, where there are any.

    Under a hypervisor an address is looked up in two tables at once; 512 times fewer lookups make a worker an eighth faster.
    """
    if size < HUGE_PAGE // 2:
        return page_aligned(size)
    memory = mmap.mmap(-1, -(-size // HUGE_PAGE) * HUGE_PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without them
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memoryview(memory)[:size]
