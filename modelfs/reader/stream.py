"""One blob's file as a stream: read ahead of the reader, and dropped from the page cache behind it.

The plaintext of what was read stays in the page cache; its ciphertext would be the same bytes in memory a second time.
"""

import contextlib
import os

from modelfs.store.local import pread_up_to

STREAM_REQUEST = 512 << 10
"""Requests of this many bytes come from the kernel reading ahead of somebody who goes through the file in order."""
LAG = 24 << 20
"""How far behind the newest request ciphertext stays: more than the largest read-ahead, so that every worker's request lies within it."""
DROP = 8 << 20
"""Drop so much at once: each call writes the file's dirty pages back first, and there are none."""
LARGEST_FOLIO = 2 << 20
"""The kernel drops only folios that lie in the range as a whole: start this much earlier, for one that lay across the last end."""


class BlobStream:
    """Owns one descriptor of a blob's file. One thread."""

    def __init__(self, fd: int, size: int) -> None:
        """Take over a descriptor.

        Args:
            fd: Of the blob's file; `close` closes it.
            size: Bytes that the file should have.
        """
        self._fd = fd
        self._size = size
        self._is_sequential = False
        self._dropped = 0
        """Where the part ends that was dropped last."""

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)

    def read(self, out: memoryview, offset: int) -> int:
        """Fill `out` from `offset`; the bytes read, fewer only where the file ends.

        Raises:
            StoreError: The system could not read.
        """
        is_stream = len(out) >= STREAM_REQUEST
        if is_stream and not self._is_sequential:
            self._is_sequential = True
            self._advise(0, 0, os.POSIX_FADV_SEQUENTIAL)  # a larger window of the kernel's read-ahead, for this descriptor only
        count = pread_up_to(self._fd, out, offset)
        if is_stream:
            self._drop_behind(offset + len(out))
        return count

    def _drop_behind(self, end: int) -> None:
        until = self._size if end >= self._size else max(0, end - LAG)
        if until < self._dropped:
            self._dropped = 0  # read again from further ahead
        if until - self._dropped >= DROP or self._dropped < until == self._size:
            start = max(0, self._dropped - LARGEST_FOLIO)
            self._advise(start, until - start, os.POSIX_FADV_DONTNEED)
            self._dropped = until

    def _advise(self, start: int, length: int, advice: int) -> None:
        with contextlib.suppress(OSError):  # advice: a store that takes none is slower, not wrong
            os.posix_fadvise(self._fd, start, length, advice)
