"""What a worker answers: plaintext, or errors when no key is left. Inodes in, bytes of the FUSE protocol out."""

import errno
import os
from collections.abc import Iterator
from typing import Protocol

from modelfs.cache.scratch import streaming
from modelfs.control.fence import Fence
from modelfs.control.pins import Rows
from modelfs.errors import BlockAuthError, StoreError
from modelfs.mount.faults import FaultLog
from modelfs.mount.view import View
from modelfs.mount.wire import (
    Attributes,
    pack_attributes,
    pack_directory,
    pack_entry,
    pack_no_entry,
    pack_open,
    pack_statfs,
)

REPLY_SIZE = 1 << 20
"""Largest read request: 256 pages."""


class Refused(Exception):
    """The answer is an errno."""

    def __init__(self, number: int) -> None:
        """Refuse with `number`."""
        super().__init__(os.strerror(number))
        self.errno = number


class Answers(Protocol):
    """The requests of a read-only file system. Each method returns a reply's bytes, or raises Refused."""

    def check_fence(self) -> None:
        """Return if an answer may leave now; called after a request came and right before its reply goes."""

    def lookup(self, parent: int, name: bytes) -> bytes: ...
    def attributes(self, inode: int, pid: int) -> bytes: ...
    def open(self, inode: int, pid: int) -> bytes: ...
    def read(self, inode: int, offset: int, size: int) -> memoryview: ...
    def readlink(self, inode: int) -> bytes: ...
    def readdir(self, inode: int, after: int, size: int, *, with_attributes: bool) -> bytes: ...
    def statfs(self) -> bytes: ...


class KeylessAnswers:
    """Errors for everybody, whatever is asked: EKEYEXPIRED while locked, EKEYREVOKED after revocation.

    Except to the residency check of this mount, which may open inodes (never read them) to count their cached pages.
    """

    def __init__(self, fence: Fence, rows: Rows) -> None:
        """Take what is left when no key is."""
        self._fence = fence
        self._rows = rows

    def check_fence(self) -> None:
        """An error may always leave."""

    def _dark(self) -> Refused:
        return Refused(self._fence.errno)

    def _checked_row(self, inode: int, pid: int) -> tuple[int, int]:
        row = self._rows.row(inode)
        if pid == 0 or pid != self._fence.checker_pid or row is None:
            raise self._dark()
        return row

    def lookup(self, parent: int, name: bytes) -> bytes:
        """EKEY*."""
        raise self._dark()

    def attributes(self, inode: int, pid: int) -> bytes:
        """EKEY*; size and mode for the residency check. The size must be the true one: a smaller one would truncate the cache."""
        size, mode = self._checked_row(inode, pid)
        return pack_attributes(Attributes(inode, mode, size))

    def open(self, inode: int, pid: int) -> bytes:
        """EKEY*; allowed to the residency check."""
        self._checked_row(inode, pid)
        return pack_open(inode)

    def read(self, inode: int, offset: int, size: int) -> memoryview:
        """EKEY*."""
        raise self._dark()

    def readlink(self, inode: int) -> bytes:
        """EKEY*."""
        raise self._dark()

    def readdir(self, inode: int, after: int, size: int, *, with_attributes: bool) -> bytes:
        """EKEY*."""
        raise self._dark()

    def statfs(self) -> bytes:
        """EKEY*."""
        raise self._dark()


class KeyedAnswers:
    """The plaintext view. Every answer passes the fence twice; a worker that the fence no longer allows ends at once."""

    def __init__(self, view: View, fence: Fence, epoch: int) -> None:
        """Serve `view` while `fence` allows `epoch`."""
        self._view = view
        self._fence = fence
        self._epoch = epoch
        self._reply = streaming(REPLY_SIZE)
        self._faults = FaultLog()

    def check_fence(self) -> None:
        """Return if plaintext may leave now; otherwise end this process, and its keys with it. The request stays unanswered
        until another worker gets it."""
        if not self._fence.allows(self._epoch):
            os._exit(0)

    def lookup(self, parent: int, name: bytes) -> bytes:
        """A name's inode and attributes; that there is none, the kernel may remember."""
        inode = self._view.lookup(parent, name)
        return pack_no_entry() if inode is None else pack_entry(self._view.attributes(inode))

    def attributes(self, inode: int, pid: int) -> bytes:
        """Attributes of an inode."""
        self._known(inode)
        return pack_attributes(self._view.attributes(inode))

    def open(self, inode: int, pid: int) -> bytes:
        """Nothing is kept: the handle is the inode, so that any worker answers any request."""
        self._known(inode)
        return pack_open(inode)

    def _known(self, inode: int) -> None:
        if self._view.row(inode) is None:
            raise Refused(errno.ENOENT)

    def read(self, inode: int, offset: int, size: int) -> memoryview:
        """Verified plaintext, in a buffer that the next read overwrites; EIO and a log line for a block that fails."""
        row = self._view.row(inode)
        if row is None or not row.is_file:
            raise Refused(errno.EISDIR)
        if size > len(self._reply):
            self._reply = streaming(size)
        out = self._reply[: max(0, min(size, row.size - offset))]
        try:
            count = self._view.read_into(inode, offset, out)
        except (BlockAuthError, StoreError) as exc:
            out[:] = bytes(len(out))
            self._faults.report(f"{self._view.describe(inode)}: {exc}")
            raise Refused(errno.EIO) from None
        return out[:count]

    def readlink(self, inode: int) -> bytes:
        """Target of a symlink."""
        row = self._view.row(inode)
        if row is None or not row.is_symlink:
            raise Refused(errno.EINVAL)
        return self._view.target(inode)

    def readdir(self, inode: int, after: int, size: int, *, with_attributes: bool) -> bytes:
        """Entries with an inode above `after`: the offset is an inode, so another worker can go on."""
        row = self._view.row(inode)
        if row is None or not row.is_directory:
            raise Refused(errno.ENOTDIR)
        return pack_directory(self._children(inode, after), size, with_attributes=with_attributes)

    def _children(self, inode: int, after: int) -> Iterator[tuple[bytes, Attributes]]:
        for child, name in self._view.children(inode, after):
            yield name, self._view.attributes(child)

    def statfs(self) -> bytes:
        """Sizes of the view."""
        return pack_statfs(self._view.total_size, self._view.entry_count)
