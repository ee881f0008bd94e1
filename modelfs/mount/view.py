"""The plaintext view of a sealed model as one worker has it: attributes, names, reads, by inode. Needs no FUSE to be tested.

inode = row of the table, for every worker the same: any worker answers any request.
"""

import stat
from collections.abc import Iterator
from dataclasses import dataclass

from modelfs.cache.lru import LruMap
from modelfs.errors import BlockAuthError, StoreError
from modelfs.format.manifest import Manifest
from modelfs.mount.wire import FOREVER_S, Attributes
from modelfs.reader.blob import BlobReader, ReadBuffers
from modelfs.reader.table import Row, Table
from modelfs.store.local import Store

MAX_OPEN_BLOBS = 256


@dataclass(frozen=True)
class Appearance:
    """How entries look, whatever was sealed."""

    uid: int
    gid: int
    file_mode: int | None
    """Permission bits of files instead of the sealed ones; directories get x where this has r."""


class View:
    """One sealed model, opened with its keys. One thread."""

    def __init__(self, store: Store, manifest: Manifest, table: Table, appearance: Appearance) -> None:
        """Take what a view is made of.

        Args:
            store: Where the blobs lie.
            manifest: Verified; its blobs are not needed.
            table: Opened with the DEK; holds the blobs and their keys.
            appearance: Owner and mode to show.
        """
        self.manifest = manifest
        self.appearance = appearance
        self._table = table
        self._store = store
        self._buffers = ReadBuffers()
        self._readers: LruMap[int, BlobReader] = LruMap(MAX_OPEN_BLOBS, BlobReader.close)

    def row(self, inode: int) -> Row | None:
        """What is known of an inode, or None."""
        return self._table.row(inode)

    def lookup(self, parent: int, name: bytes) -> int | None:
        """The inode of a name in a directory, or None."""
        if name in (b".", b".."):
            row = self._table.row(parent)
            return None if row is None else row.parent if name == b".." else parent
        return self._table.find(parent, name)

    def children(self, directory: int, after: int) -> Iterator[tuple[int, bytes]]:
        """(inode, name) of a directory's entries whose inode is above `after`, ascending."""
        for inode in self._table.children(directory, after):
            yield inode, self._table.name(inode)

    def target(self, inode: int) -> bytes:
        """Where a symlink that exists leads."""
        return self._table.target(inode)

    def describe(self, inode: int) -> str:
        """Path and blob of a file that exists, for the log."""
        return f"{self._table.path(inode)} (blob {self._table.blob(inode)[0].id})"

    def mode(self, row: Row) -> int:
        """st_mode as shown."""
        shown = self.appearance.file_mode
        if shown is None or row.is_symlink:
            return row.mode
        if row.is_file:
            return stat.S_IFREG | shown & 0o555
        return stat.S_IFDIR | (shown & 0o444) | (shown & 0o444) >> 2

    def attributes(self, inode: int) -> Attributes:
        """What stat(2) shows of an inode that exists; it never changes."""
        row = self._table.row(inode)
        if row is None:
            raise ValueError(f"no inode {inode}")
        return Attributes(
            inode,
            mode=self.mode(row),
            size=row.size,
            links=row.links,
            uid=self.appearance.uid,
            gid=self.appearance.gid,
            block_size=self.manifest.block_size,
            mtime_ns=row.mtime_ns,
            valid_s=FOREVER_S,
        )

    @property
    def entry_count(self) -> int:
        """How many files, directories and symlinks."""
        return len(self._table)

    @property
    def total_size(self) -> int:
        """Plaintext bytes of all files."""
        return self._table.total_size

    def read_into(self, inode: int, offset: int, out: memoryview) -> int:
        """Fill `out` with a file's plaintext; see `BlobReader.read_into`.

        Raises:
            BlockAuthError: A block or the digest tree is not what was signed; the text names file and block.
            StoreError: The store failed.
        """
        try:
            return (self._readers.find(inode) or self._open(inode)).read_into(offset, out)
        except (BlockAuthError, StoreError):
            # The blob may have been mended by a new file in its place since this one was opened.
            if not self._readers.drop(inode):
                raise
            return self._open(inode).read_into(offset, out)

    def _open(self, inode: int) -> BlobReader:
        row = self._table.row(inode)
        if row is None or not row.is_file:
            raise ValueError(f"inode {inode} is no file")
        blob, key = self._table.blob(inode)
        shape = self.manifest.geometry(blob)
        reader = BlobReader(self._store, blob, shape, self.manifest.digest, key, self._buffers)
        self._readers.put(inode, reader)
        return reader
