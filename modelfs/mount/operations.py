"""pyfuse3's side of a worker: a thin shell around `Answers`, which fences every reply and turns errors into errno.

Until a process has chosen its answers, only INIT is answered. The only exception a handler lets out is FUSEError.
"""

import errno
import logging
import os
from collections.abc import Callable, Coroutine
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import pyfuse3
import trio
from pyfuse3 import FileHandleT, FlagT, InodeT, RequestContext

from modelfs.control.fence import Fence
from modelfs.control.pins import Rows
from modelfs.errors import BlockAuthError, ModelfsError, StoreError
from modelfs.format.index import DirEntry, FileEntry, SymlinkEntry
from modelfs.mount.faults import FaultLog
from modelfs.mount.view import View

FOREVER_S = 365 * 86400.0
"""How long the kernel may keep names and attributes: the view never changes."""
REPLY_SIZE = 1 << 20
"""Largest read request: 256 pages."""

logger = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")


class Answers(Protocol):
    """What a worker answers with: plaintext (`KeyedAnswers`) or errors (`KeylessAnswers`)."""

    def lookup(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes: ...
    def attributes(self, inode: int, pid: int) -> pyfuse3.EntryAttributes: ...
    def open(self, inode: int, pid: int) -> None: ...
    def read(self, inode: int, offset: int, size: int) -> memoryview: ...
    def readlink(self, inode: int) -> bytes: ...
    def readdir(self, inode: int, after: int, token: pyfuse3.ReaddirToken) -> None: ...
    def statfs(self) -> pyfuse3.StatvfsData: ...


class KeylessAnswers:
    """Errors for everybody, whatever is asked: EKEYEXPIRED while locked, EKEYREVOKED after revocation.

    Except to the residency check of this mount, which may open inodes (never read them) to count their cached pages.
    """

    def __init__(self, fence: Fence, rows: Rows) -> None:
        """Take what is left when no key is."""
        self._fence = fence
        self._rows = rows

    def _dark(self) -> pyfuse3.FUSEError:
        return pyfuse3.FUSEError(self._fence.errno)

    def _checked_row(self, inode: int, pid: int) -> tuple[int, int]:
        row = self._rows.row(inode)
        if pid == 0 or pid != self._fence.checker_pid or row is None:
            raise self._dark()
        return row

    def lookup(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        """EKEY*."""
        raise self._dark()

    def attributes(self, inode: int, pid: int) -> pyfuse3.EntryAttributes:
        """EKEY*; size and mode for the residency check. The size must be the true one: a smaller one would truncate the cache."""
        size, mode = self._checked_row(inode, pid)
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino, attributes.st_mode, attributes.st_size = InodeT(inode), pyfuse3.ModeT(mode), size
        attributes.attr_timeout = attributes.entry_timeout = 0
        return attributes

    def open(self, inode: int, pid: int) -> None:
        """EKEY*; allowed to the residency check."""
        self._checked_row(inode, pid)

    def read(self, inode: int, offset: int, size: int) -> memoryview:
        """EKEY*."""
        raise self._dark()

    def readlink(self, inode: int) -> bytes:
        """EKEY*."""
        raise self._dark()

    def readdir(self, inode: int, after: int, token: pyfuse3.ReaddirToken) -> None:
        """EKEY*."""
        raise self._dark()

    def statfs(self) -> pyfuse3.StatvfsData:
        """EKEY*."""
        raise self._dark()


class KeyedAnswers:
    """The plaintext view. Every answer passes the fence twice; a worker that the fence no longer allows ends at once."""

    def __init__(self, view: View, fence: Fence, epoch: int) -> None:
        """Serve `view` while `fence` allows `epoch`."""
        self._view = view
        self._fence = fence
        self._epoch = epoch
        self._reply = memoryview(bytearray(REPLY_SIZE))
        self._faults = FaultLog()

    def check_fence(self) -> None:
        """Return if plaintext may leave now; otherwise end this process, and its keys with it. The request stays unanswered
        until another worker gets it."""
        if not self._fence.allows(self._epoch):
            os._exit(0)

    def lookup(self, parent: int, name: bytes) -> pyfuse3.EntryAttributes:
        """ENOENT for a name that is not sealed; the kernel may remember that."""
        inode = self._view.lookup(parent, name)
        if inode is None:
            missing = pyfuse3.EntryAttributes()
            missing.st_ino = InodeT(0)
            missing.entry_timeout = FOREVER_S
            return missing
        return self.attributes(inode, 0)

    def attributes(self, inode: int, pid: int) -> pyfuse3.EntryAttributes:
        """Attributes of an inode."""
        view = self._view
        entry = view.entry(inode)
        if entry is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = InodeT(inode)
        attributes.st_mode = pyfuse3.ModeT(view.mode(entry))
        attributes.st_nlink = view.link_count(inode, entry)
        attributes.st_uid, attributes.st_gid = view.appearance.uid, view.appearance.gid
        attributes.st_size = view.size(entry)
        attributes.st_blksize = view.manifest.block_size
        attributes.st_blocks = -(-attributes.st_size // 512)
        attributes.st_atime_ns = attributes.st_mtime_ns = attributes.st_ctime_ns = entry.mtime
        attributes.attr_timeout = attributes.entry_timeout = FOREVER_S
        return attributes

    def open(self, inode: int, pid: int) -> None:
        """Nothing is kept: fh = inode, so that any worker answers any request."""

    def read(self, inode: int, offset: int, size: int) -> memoryview:
        """Verified plaintext, in a buffer that the next read overwrites; EIO and a log line for a block that fails."""
        entry = self._view.entry(inode)
        if not isinstance(entry, FileEntry):
            raise pyfuse3.FUSEError(errno.EISDIR)
        if size > len(self._reply):
            self._reply = memoryview(bytearray(size))
        out = self._reply[: max(0, min(size, entry.size - offset))]
        try:
            count = self._view.read_into(inode, offset, out)
        except (BlockAuthError, StoreError) as exc:
            out[:] = bytes(len(out))
            self._faults.report(f"{entry.path} (blob {entry.blob}): {exc}")
            raise pyfuse3.FUSEError(errno.EIO) from None
        return out[:count]

    def readlink(self, inode: int) -> bytes:
        """Target of a symlink."""
        entry = self._view.entry(inode)
        if not isinstance(entry, SymlinkEntry):
            raise pyfuse3.FUSEError(errno.EINVAL)
        return entry.target.encode()

    def readdir(self, inode: int, after: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries with an inode above `after`: the offset is an inode, so another worker can go on."""
        if not isinstance(self._view.entry(inode), DirEntry):
            raise pyfuse3.FUSEError(errno.ENOTDIR)
        for child, name in self._view.children(inode, after):
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), self.attributes(child, 0), child):
                break

    def statfs(self) -> pyfuse3.StatvfsData:
        """Sizes of the view; nothing is free."""
        data = pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = 4096
        data.f_blocks = -(-self._view.total_size // 4096)
        data.f_bfree = data.f_bavail = data.f_ffree = data.f_favail = 0
        data.f_files = len(self._view.entries)
        data.f_namemax = 255
        return data


class _NoAnswers(KeylessAnswers):
    """Before a process has chosen: never asked, because nobody reads requests then."""

    def __init__(self) -> None:
        """Nothing to hold."""

    def _dark(self) -> pyfuse3.FUSEError:
        return pyfuse3.FUSEError(errno.EIO)

    def _checked_row(self, inode: int, pid: int) -> tuple[int, int]:
        raise self._dark()


def _answer(
    handler: "Callable[Concatenate[MountOperations, P], T]",
) -> "Callable[Concatenate[MountOperations, P], Coroutine[Any, Any, T]]":
    """Fence before and after, and let nothing but FUSEError out: the one place where errors become errno."""

    async def wrapped(self: "MountOperations", /, *args: P.args, **kwargs: P.kwargs) -> T:
        try:
            self.check_fence()
            result = handler(self, *args, **kwargs)
        except pyfuse3.FUSEError:
            self.check_fence()
            raise
        except ModelfsError as exc:
            logger.error("%s: %s", handler.__name__, exc)
            self.check_fence()
            raise pyfuse3.FUSEError(exc.errno) from None
        except Exception:
            logger.exception("a bug in %s: the reader gets EIO", handler.__name__)
            self.check_fence()
            raise pyfuse3.FUSEError(errno.EIO) from None
        # Right before the reply: pyfuse3 sends it without another await in between.
        self.check_fence()
        return result

    wrapped.__name__, wrapped.__doc__ = handler.__name__, handler.__doc__
    return wrapped


class MountOperations(pyfuse3.Operations):
    """The handlers that pyfuse3 calls. Synchronous inside: one request at a time for each worker."""

    supports_dot_lookup = False  # open_inode finds what the kernel knows; it must never ask a dark mount for more
    enable_writeback_cache = False

    def __init__(self) -> None:
        """Answer nothing yet."""
        super().__init__()
        self.answers: Answers = _NoAnswers()
        self.check_fence: Callable[[], None] = lambda: None
        self._init_scope: trio.CancelScope | None = None

    async def run_until_init(self) -> None:
        """Read requests until the kernel's INIT is answered, and not one more."""
        with trio.CancelScope() as self._init_scope:
            await pyfuse3.main(1, 1)

    def init(self) -> None:
        """INIT is being answered: the next await in the loop ends it."""
        if self._init_scope is not None:
            self._init_scope.cancel()

    def serve_keyed(self, answers: KeyedAnswers) -> None:
        """From now on this process answers with plaintext."""
        self.answers, self.check_fence = answers, answers.check_fence

    def serve_keyless(self, answers: KeylessAnswers) -> None:
        """From now on this process answers with errors."""
        self.answers, self.check_fence = answers, lambda: None

    @_answer
    def lookup(self, parent_inode: InodeT, name: bytes, ctx: RequestContext) -> pyfuse3.EntryAttributes:
        """LOOKUP."""
        return self.answers.lookup(parent_inode, name)

    @_answer
    def getattr(self, inode: InodeT, ctx: RequestContext) -> pyfuse3.EntryAttributes:
        """GETATTR."""
        return self.answers.attributes(inode, ctx.pid)

    @_answer
    def readlink(self, inode: InodeT, ctx: RequestContext) -> bytes:
        """READLINK."""
        return self.answers.readlink(inode)

    @_answer
    def open(self, inode: InodeT, flags: FlagT, ctx: RequestContext) -> pyfuse3.FileInfo:
        """OPEN: pages stay cached between opens."""
        self.answers.open(inode, ctx.pid)
        return pyfuse3.FileInfo(fh=FileHandleT(inode), keep_cache=True)

    @_answer
    def read(self, fh: FileHandleT, off: int, size: int) -> bytes:
        """READ."""
        return cast(bytes, self.answers.read(fh, off, size))  # pyfuse3 takes any buffer and copies it at once

    @_answer
    def opendir(self, inode: InodeT, ctx: RequestContext) -> FileHandleT:
        """OPENDIR."""
        self.answers.attributes(inode, ctx.pid)
        return FileHandleT(inode)

    @_answer
    def readdir(self, fh: FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """READDIRPLUS."""
        self.answers.readdir(fh, start_id, token)

    @_answer
    def statfs(self, ctx: RequestContext) -> pyfuse3.StatvfsData:
        """STATFS."""
        return self.answers.statfs()

    async def release(self, fh: FileHandleT) -> None:
        """RELEASE: nothing is kept."""

    async def releasedir(self, fh: FileHandleT) -> None:
        """RELEASEDIR: nothing is kept."""

    async def forget(self, inode_list: Any) -> None:
        """FORGET: inodes are rows, nothing is counted."""
