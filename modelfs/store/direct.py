"""Writing one large new file past the page cache (O_DIRECT): no copy, no page to find, and the disk is busy from the first piece on.

Where the file system refuses that (EINVAL), the same pieces go through the page cache. Durability is the caller's: fsync, as ever.
"""

import contextlib
import ctypes
import errno
import fcntl
import mmap
import os
from concurrent.futures import Future

PAGE = mmap.PAGESIZE

_libc = ctypes.CDLL(None, use_errno=True)
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)

Seam = Future[bytes]
"""The bytes between the last page boundary and the end of a piece: the piece after it writes them, with its own."""


class PieceWriter:
    """Writes the consecutive pieces of one file, from several threads, in whole pages.

    A piece ends where its ciphertext ends, hardly ever on a page. What lies beyond its last whole page is handed on to the next piece
    (the seam), so every byte is written once, every write begins and ends on a page, and no two threads write to one page.
    """

    def __init__(self, fd: int, size: int) -> None:
        """Take a new, empty file and reserve its room.

        Args:
            fd: Open for writing; stays the caller's.
            size: Bytes that the file will have.

        Raises:
            OSError: There is no room for it: better said before hours of work than after.
        """
        self._fd = fd
        _reserve(fd, size)
        self._is_direct = _set_direct(fd, True)

    def write(self, memory: memoryview, offset: int, before: Seam | None, after: Seam) -> None:
        """Write the piece at `offset`; blocks until the piece before has ended, which must be under way or done.

        Args:
            memory: `offset % PAGE` bytes of room, which are overwritten, then the piece; begins at a page.
            offset: Where the piece, not the room, begins in the file.
            before: The seam of the piece before; None for the first.
            after: Set to this piece's seam; whoever calls cancels it if this fails.

        Raises:
            OSError: The system says no.
            CancelledError: The piece before has failed.
        """
        room = offset % PAGE
        whole = len(memory) // PAGE * PAGE
        if whole:  # first of all: somebody waits for it
            after.set_result(bytes(memory[whole:]))
        if before is not None:
            memory[:room] = before.result()
        if not whole:
            after.set_result(bytes(memory))
        self._write_all(memory[:whole], offset - room)

    def finish(self, seam: bytes, end: int) -> None:
        """Write what the last piece, which ends at `end`, has left."""
        self._fall_back()
        self._write_all(memoryview(seam), end - len(seam))

    def _write_all(self, data: memoryview, offset: int) -> None:
        done = 0
        while done < len(data):
            was_direct = self._is_direct  # another thread may fall back meanwhile
            try:
                count = os.pwrite(self._fd, data[done:], offset + done)
            except OSError as exc:
                if exc.errno != errno.EINVAL or not was_direct:
                    raise
                self._fall_back()
                continue
            if not was_direct:
                start_writing(self._fd, offset + done, count)
            done += count

    def _fall_back(self) -> None:
        _set_direct(self._fd, False)
        self._is_direct = False  # now, not before: whoever sees it writes through the page cache


def start_writing(fd: int, offset: int, length: int) -> None:
    """Have the disk begin with what is in the page cache: the fsync at the end would otherwise wait for all of it at once."""
    with contextlib.suppress(OSError):
        os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)


def _set_direct(fd: int, wanted: bool) -> bool:
    """Turn O_DIRECT on or off; whether it is on now."""
    flags = fcntl.fcntl(fd, fcntl.F_GETFL)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, flags | os.O_DIRECT if wanted else flags & ~os.O_DIRECT)
    except OSError:
        return not wanted
    return wanted


def _reserve(fd: int, size: int) -> None:
    """Have the file system give the whole room at once: in few extents, and direct writes need not wait for each other.

    fallocate(2) and not posix_fallocate(3), which where there is none writes every block.
    """
    if _libc.fallocate(fd, 0, ctypes.c_int64(0), ctypes.c_int64(size)) != 0:
        number = ctypes.get_errno()
        if number in _NO_SPACE:
            raise OSError(number, os.strerror(number))
