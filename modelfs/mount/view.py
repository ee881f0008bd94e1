"""The plaintext view of a sealed model as one worker has it: inodes, attributes, names, reads. Needs no FUSE to be tested.

inode = row of the index + 1, for every worker the same: any worker answers any request.
"""

import stat
from collections.abc import Iterator
from dataclasses import dataclass

from modelfs.cache.lru import LruMap
from modelfs.errors import BlockAuthError, StoreError
from modelfs.format.index import DirEntry, Entry, FileEntry, Index, SymlinkEntry
from modelfs.format.manifest import BlobEntry, Manifest
from modelfs.format.paths import parent_path
from modelfs.mount.wire import FOREVER_S, Attributes
from modelfs.reader.blob import BlobReader, ReadBuffers
from modelfs.store.local import Store

ROOT_INODE = 1
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

    def __init__(self, store: Store, manifest: Manifest, index: Index, appearance: Appearance) -> None:
        """Build the tables.

        Args:
            store: Where the blobs lie.
            manifest: Verified.
            index: Opened with the DEK; holds the blob keys.
            appearance: Owner and mode to show.
        """
        self.manifest = manifest
        self.entries: list[Entry] = index.entries
        self.appearance = appearance
        self._store = store
        self._blobs = {blob.id: blob for blob in manifest.blobs}
        self._inodes = {entry.path: inode for inode, entry in enumerate(self.entries, ROOT_INODE)}
        self._children: dict[int, list[int]] = {
            inode: [] for inode, entry in enumerate(self.entries, ROOT_INODE) if isinstance(entry, DirEntry)
        }
        for inode, entry in enumerate(self.entries[1:], ROOT_INODE + 1):
            self._children[self._inodes[parent_path(entry.path)]].append(inode)
        self._buffers = ReadBuffers()
        self._readers: LruMap[int, BlobReader] = LruMap(MAX_OPEN_BLOBS, BlobReader.close)

    def entry(self, inode: int) -> Entry | None:
        """The entry of an inode, or None."""
        return self.entries[inode - ROOT_INODE] if ROOT_INODE <= inode < ROOT_INODE + len(self.entries) else None

    def lookup(self, parent: int, name: bytes) -> int | None:
        """The inode of a name in a directory, or None."""
        directory = self.entry(parent)
        try:
            text = name.decode()
        except UnicodeDecodeError:
            return None
        if directory is None or "/" in text:
            return None
        if text == ".":
            return parent
        if text == "..":
            return self._inodes.get(parent_path(directory.path))
        return self._inodes.get(f"{directory.path}/{text}" if directory.path else text)

    def children(self, directory: int, after: int) -> Iterator[tuple[int, bytes]]:
        """(inode, name) of a directory's entries whose inode is above `after`, ascending."""
        for inode in self._children.get(directory, ()):
            if inode > after:
                yield inode, self.entries[inode - ROOT_INODE].path.rpartition("/")[2].encode()

    def mode(self, entry: Entry) -> int:
        """st_mode as shown."""
        shown = self.appearance.file_mode
        if isinstance(entry, SymlinkEntry):
            return stat.S_IFLNK | 0o777
        if isinstance(entry, FileEntry):
            return stat.S_IFREG | (entry.mode if shown is None else shown & 0o555)
        return stat.S_IFDIR | (entry.mode if shown is None else (shown & 0o444) | (shown & 0o444) >> 2)

    def attributes(self, inode: int) -> Attributes:
        """What stat(2) shows of an inode that exists; it never changes."""
        entry = self.entries[inode - ROOT_INODE]
        return Attributes(
            inode,
            mode=self.mode(entry),
            size=self.size(entry),
            links=self.link_count(inode, entry),
            uid=self.appearance.uid,
            gid=self.appearance.gid,
            block_size=self.manifest.block_size,
            mtime_ns=entry.mtime,
            valid_s=FOREVER_S,
        )

    def link_count(self, inode: int, entry: Entry) -> int:
        """st_nlink: 2 and one for each subdirectory, or 1."""
        if not isinstance(entry, DirEntry):
            return 1
        return 2 + sum(isinstance(self.entries[child - ROOT_INODE], DirEntry) for child in self._children[inode])

    def size(self, entry: Entry) -> int:
        """st_size."""
        if isinstance(entry, FileEntry):
            return entry.size
        return len(entry.target.encode()) if isinstance(entry, SymlinkEntry) else 0

    @property
    def total_size(self) -> int:
        """Plaintext bytes of all files."""
        return sum(blob.size for blob in self.manifest.blobs if blob.id != self.manifest.index)

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
        entry = self.entries[inode - ROOT_INODE]
        if not isinstance(entry, FileEntry):
            raise ValueError(f"inode {inode} is no file")
        blob: BlobEntry = self._blobs[entry.blob]
        shape = self.manifest.geometry(blob)
        reader = BlobReader(self._store, blob, shape, self.manifest.digest, entry.blob_key, self._buffers)
        self._readers.put(inode, reader)
        return reader
