"""What a mount keeps from the moment it was verified: sealed memfds, so that no replaced worker trusts the store again."""

import fcntl
import os
from dataclasses import dataclass

from modelfs.format.manifest import Manifest

_ROW = 16


def pin(name: str, data: bytes) -> int:
    """A memfd that holds `data` and that nobody can change any more."""
    fd = empty_pin(name)
    fill_pin(fd, data)
    return fd


def empty_pin(name: str) -> int:
    """A memfd for `fill_pin`, which a child may do."""
    return os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)


def fill_pin(fd: int, data: bytes) -> None:
    """Write `data`, for good."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
    seals = fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)


class Rows:
    """Size and mode of each inode (row of the index + 1): what eviction and the residency check need when no key is left.

    Sizes are public anyway (the blobs'); names are not here. Written once, by the prover that has opened the index.
    """

    def __init__(self) -> None:
        """Make an empty table, inherited over fork."""
        self.fd = empty_pin("modelfs-rows")

    def write(self, rows: list[tuple[int, int]]) -> None:
        """Store (size, st_mode) for inodes 1, 2, ..., once and for good: an unmount counts by them."""
        fill_pin(self.fd, b"".join(size.to_bytes(8, "little") + mode.to_bytes(8, "little") for size, mode in rows))

    def __len__(self) -> int:
        return os.fstat(self.fd).st_size // _ROW

    def row(self, inode: int) -> tuple[int, int] | None:
        """(size, st_mode) of an inode, or None."""
        data = os.pread(self.fd, _ROW, (inode - 1) * _ROW) if inode >= 1 else b""
        if len(data) != _ROW:
            return None
        return int.from_bytes(data[:8], "little"), int.from_bytes(data[8:], "little")


@dataclass(frozen=True)
class Pinned:
    """The verified release as a mount holds it."""

    manifest: Manifest
    """Less its blobs: they are in the table."""
    table_fd: int
    """Encrypted (reader/table.py): index and blobs, as far as workers need them. Empty before the first proof."""
    keys_fd: int
    """The keys file."""

    def keys_data(self) -> bytes:
        """The pinned keys file."""
        return _read_all(self.keys_fd)


def _read_all(fd: int) -> bytes:
    size = os.fstat(fd).st_size
    parts, at = [], 0
    while at < size:
        part = os.pread(fd, size - at, at)
        parts.append(part)
        at += len(part)
    return b"".join(parts)
