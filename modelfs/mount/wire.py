"""Requests and replies of the FUSE protocol as bytes: the part of linux/fuse.h (7.31 to 7.45) that a read-only view needs.

Little is packed here because little is asked: what the kernel asks beyond it is answered with ENOSYS, which it remembers.
"""

import os
import struct
from collections.abc import Iterable
from enum import IntEnum
from typing import NamedTuple

FOREVER_S = 365 * 86400
"""How long the kernel may keep names and attributes: the view never changes."""
NAME_MAX = 255


class Opcode(IntEnum):
    """What the kernel asks."""

    LOOKUP = 1
    FORGET = 2
    GETATTR = 3
    READLINK = 5
    OPEN = 14
    READ = 15
    STATFS = 17
    RELEASE = 18
    OPENDIR = 27
    READDIR = 28
    RELEASEDIR = 29
    INTERRUPT = 36
    DESTROY = 38
    BATCH_FORGET = 42
    READDIRPLUS = 44


WITHOUT_REPLY = frozenset({Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT})

_IN_HEADER = struct.Struct("<IIQQIIIHH")
_OUT_HEADER = struct.Struct("<IiQ")
_READ_IN = struct.Struct("<QQI")
_ATTR = struct.Struct("<QQQQQQIIIIIIIIII")
_ENTRY_HEAD = struct.Struct("<QQQQII")
_ATTR_HEAD = struct.Struct("<QII")
_OPEN_OUT = struct.Struct("<QIi")
_STATFS_OUT = struct.Struct("<QQQQQIIII24x")
_DIRENT = struct.Struct("<QQII")

_FOPEN_KEEP_CACHE = 1 << 1
_BLOCK = 512


class Request(NamedTuple):
    """One request, still in the buffer that it was read into."""

    opcode: int
    unique: int
    inode: int
    pid: int
    """Of the process that asks; 0 if the kernel itself does."""
    body: memoryview


class Attributes(NamedTuple):
    """What stat(2) says of an inode."""

    inode: int
    mode: int
    """Type and permission bits."""
    size: int
    links: int = 1
    uid: int = 0
    gid: int = 0
    block_size: int = 4096
    mtime_ns: int = 0
    valid_s: int = 0
    """How long the kernel may keep them, and a name that led to them."""


def parse_request(data: memoryview) -> Request:
    """Split what one read(2) of /dev/fuse returned.

    Raises:
        ValueError: It is no request.
    """
    if len(data) < _IN_HEADER.size:
        raise ValueError(f"a FUSE request of {len(data)} bytes")
    length, opcode, unique, inode, _uid, _gid, pid, _, _ = _IN_HEADER.unpack_from(data)
    return Request(opcode, unique, inode, pid, data[_IN_HEADER.size : length])


def parse_name(body: memoryview) -> bytes:
    """The name that a LOOKUP asks for."""
    return bytes(body).partition(b"\0")[0]


def parse_read(body: memoryview) -> tuple[int, int]:
    """(offset, size) of a READ, READDIR or READDIRPLUS."""
    _handle, offset, size = _READ_IN.unpack_from(body)
    return offset, size


def pack_header(unique: int, error: int, length: int) -> bytes:
    """The header of a reply with `length` bytes after it; `error` is 0 or an errno, and then there are none."""
    return _OUT_HEADER.pack(_OUT_HEADER.size + length, -error, unique)


def _pack_attributes(attributes: Attributes) -> bytes:
    seconds, nanoseconds = divmod(attributes.mtime_ns, 1_000_000_000)
    blocks = -(-attributes.size // _BLOCK)
    return _ATTR.pack(
        *(attributes.inode, attributes.size, blocks, seconds, seconds, seconds, nanoseconds, nanoseconds, nanoseconds),
        *(attributes.mode, attributes.links, attributes.uid, attributes.gid, 0, attributes.block_size, 0),
    )


def pack_entry(attributes: Attributes) -> bytes:
    """Answer of a LOOKUP that found something (struct fuse_entry_out)."""
    head = _ENTRY_HEAD.pack(attributes.inode, 0, attributes.valid_s, attributes.valid_s, 0, 0)
    return head + _pack_attributes(attributes)


def pack_no_entry() -> bytes:
    """Answer of a LOOKUP that found nothing, and will not ever."""
    return _ENTRY_HEAD.pack(0, 0, FOREVER_S, 0, 0, 0) + bytes(_ATTR.size)


def pack_attributes(attributes: Attributes) -> bytes:
    """Answer of a GETATTR (struct fuse_attr_out)."""
    return _ATTR_HEAD.pack(attributes.valid_s, 0, 0) + _pack_attributes(attributes)


def pack_open(inode: int) -> bytes:
    """Answer of an OPEN or OPENDIR: the handle is the inode, and pages stay cached between opens."""
    return _OPEN_OUT.pack(inode, _FOPEN_KEEP_CACHE, 0)


def pack_statfs(size: int, files: int) -> bytes:
    """Answer of a STATFS: bytes and number of entries; nothing is free."""
    return _STATFS_OUT.pack(-(-size // 4096), 0, 0, files, 0, 4096, NAME_MAX, 4096, 0)


def pack_directory(entries: Iterable[tuple[bytes, Attributes]], size: int, *, with_attributes: bool) -> bytes:
    """Answer of a READDIR or, `with_attributes`, a READDIRPLUS: as many entries as fit into `size` bytes.

    The offset of an entry is its inode: one that is asked to go on "after" it needs no more.
    """
    parts, left = [], size
    for name, attributes in entries:
        inode = attributes.inode
        part = _DIRENT.pack(inode, inode, len(name), (attributes.mode >> 12) & 15) + name
        part += bytes(-len(part) % 8)
        if with_attributes:
            part = pack_entry(attributes) + part
        if len(part) > left:
            break
        left -= len(part)
        parts.append(part)
    return b"".join(parts)


def read_request(fd: int, buffer: memoryview) -> Request:
    """Wait for a request.

    Args:
        fd: A descriptor of /dev/fuse.
        buffer: As large as the kernel demands: 1 MiB and a page.

    Raises:
        OSError: ENODEV when the connection has ended; ENOENT when a request was withdrawn meanwhile.
    """
    return parse_request(buffer[: os.readv(fd, [buffer])])
