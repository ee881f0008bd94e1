"""The table: what a mount's workers know of the index, as rows of one size and a heap of names instead of an object for each file.

inode = row of the table, the root's is 1. The children of a directory follow each other, sorted by name: a listing is a range of rows, a
lookup a binary search. Row 0 is the header. No row and no name crosses the end of a page (`reader/table_pages.py`), so whoever reads
the table decrypts a page or two at a time, and holds a bounded number of them, however many files there are.

It is not part of the sealed format: a mount's first prover makes it from an index and a manifest that it has validated, and nobody outside
of this mount ever sees it.
"""

import stat
import struct
from bisect import bisect_left
from collections.abc import Iterator
from typing import NamedTuple

from modelfs.errors import BlockAuthError
from modelfs.format.index import DirEntry, Entry, FileEntry, Index
from modelfs.format.manifest import BlobEntry, Manifest
from modelfs.format.paths import parent_path
from modelfs.reader.table_pages import PAGE_SIZE, TablePages

ROOT_INODE = 1

_ROW_SIZE = 128
_ROWS_PER_PAGE = PAGE_SIZE // _ROW_SIZE
_HEADER = struct.Struct("<16sQQQ")
_MAGIC = b"modelfs/1/table\0"
_ENTRY = struct.Struct("<IIIIIIHxxQQ")
_NAME = struct.Struct("<II")
"""The beginning of an `_ENTRY`: all that a step of a binary search looks at."""
_BLOB = struct.Struct("<16s32s32s")
_BLOB_AT = _ENTRY.size


class Row(NamedTuple):
    """One entry, all but its name and the blob."""

    name_at: int
    """Where in the heap its name starts."""
    name_size: int
    parent: int
    """Inode of its directory; the root's is the root."""
    first: int
    """Of a directory: inode of its first child. Of a symlink: where in the heap its target starts."""
    child_count: int
    """Of a directory: how many children."""
    links: int
    """st_nlink: 2 and one for each subdirectory, or 1."""
    mode: int
    """Type and sealed permission bits."""
    mtime_ns: int
    size: int
    """st_size: plaintext bytes; of a symlink, bytes of its target."""

    @property
    def is_file(self) -> bool:
        """Whether it has a blob."""
        return stat.S_ISREG(self.mode)

    @property
    def is_directory(self) -> bool:
        """Whether it has children."""
        return stat.S_ISDIR(self.mode)

    @property
    def is_symlink(self) -> bool:
        """Whether it has a target."""
        return stat.S_ISLNK(self.mode)


class Table:
    """A table as a worker reads it. Not thread-safe."""

    def __init__(self, pages: TablePages) -> None:
        """Open a table.

        Args:
            pages: Opened with the key; what is read of them is authentic.

        Raises:
            BlockAuthError: These pages hold no table.
        """
        self._pages = pages
        self._count: int
        self._heap: int
        self.total_size: int
        """Plaintext bytes of all files."""
        magic, self._count, self._heap, self.total_size = _HEADER.unpack_from(pages.page(0))
        if magic != _MAGIC:
            raise BlockAuthError("the table of this mount is of another program")

    def __len__(self) -> int:
        """How many entries: inodes 1 to this."""
        return self._count

    def row(self, inode: int) -> Row | None:
        """The row of an inode, or None."""
        if not ROOT_INODE <= inode <= self._count:
            return None
        page, slot = divmod(inode, _ROWS_PER_PAGE)
        return Row._make(_ENTRY.unpack_from(self._pages.page(page), slot * _ROW_SIZE))

    def name(self, inode: int) -> bytes:
        """The last component of an existing entry's path; the root's is empty."""
        if not ROOT_INODE <= inode <= self._count:
            raise ValueError(f"no inode {inode}")
        page, slot = divmod(inode, _ROWS_PER_PAGE)
        return self._text(*_NAME.unpack_from(self._pages.page(page), slot * _ROW_SIZE))

    def path(self, inode: int) -> str:
        """The whole path of an existing entry, for messages."""
        names: list[bytes] = []
        while inode != ROOT_INODE:
            names.append(self.name(inode))
            inode = self._existing(inode).parent
        return b"/".join(reversed(names)).decode()

    def target(self, inode: int) -> bytes:
        """Where an existing symlink leads."""
        row = self._existing(inode)
        return self._text(row.first, row.size)

    def find(self, directory: int, name: bytes) -> int | None:
        """The inode of `name` in a directory, or None."""
        row = self.row(directory)
        if row is None or not row.is_directory:
            return None
        children = range(row.first, row.first + row.child_count)
        at = bisect_left(children, name, key=self.name)
        return children[at] if at < row.child_count and self.name(children[at]) == name else None

    def children(self, directory: int, after: int) -> Iterator[int]:
        """Inodes of a directory's entries above `after`, ascending, which is also by name."""
        row = self.row(directory)
        if row is None or not row.is_directory:
            return iter(())
        return iter(range(max(row.first, after + 1), row.first + row.child_count))

    def blob(self, inode: int) -> tuple[BlobEntry, bytes]:
        """The signed blob of an existing file, and the blob key."""
        page, slot = divmod(inode, _ROWS_PER_PAGE)
        blob_id, root, key = _BLOB.unpack_from(self._pages.page(page), slot * _ROW_SIZE + _BLOB_AT)
        return BlobEntry(id=blob_id.hex(), root=root.hex(), size=self._existing(inode).size), key

    def _existing(self, inode: int) -> Row:
        row = self.row(inode)
        if row is None:
            raise ValueError(f"no inode {inode}")
        return row

    def _text(self, at: int, size: int) -> bytes:
        page, start = divmod(self._heap + at, PAGE_SIZE)
        return bytes(self._pages.page(page)[start : start + size]) if size else b""


class NewTable:
    """A table in the making."""

    def __init__(self, index: Index, manifest: Manifest) -> None:
        """Lay out the rows.

        Args:
            index: Validated, and matched with the manifest.
            manifest: Verified.
        """
        self._roots = {blob.id: blob.root for blob in manifest.blobs}
        self._size = sum(blob.size for blob in manifest.blobs if blob.id != manifest.index)
        self._heap = bytearray()
        entries, parents, firsts = _by_directory(index)
        self._rows = bytearray(-(-(len(entries) + 1) // _ROWS_PER_PAGE) * PAGE_SIZE)
        _HEADER.pack_into(self._rows, 0, _MAGIC, len(entries), len(self._rows), self._size)
        self.shapes: list[tuple[int, int]] = []
        """(size, st_mode) of inodes 1, 2, ..."""
        for inode, (entry, parent) in enumerate(zip(entries, parents, strict=True), ROOT_INODE):
            self._add(inode, entry, parent, firsts.get(inode))

    @property
    def plaintext(self) -> bytes:
        """What `write_pages` takes."""
        return bytes(self._rows + self._heap)

    def _add(self, inode: int, entry: Entry, parent: int, children: tuple[int, int, int] | None) -> None:
        name = entry.path.rpartition("/")[2].encode()
        at = inode * _ROW_SIZE
        first, count, links, size = 0, 0, 1, 0
        if isinstance(entry, FileEntry):
            mode, size = stat.S_IFREG | entry.mode, entry.size
            blob = bytes.fromhex(entry.blob + self._roots[entry.blob] + entry.key)
            self._rows[at + _BLOB_AT : at + _BLOB_AT + _BLOB.size] = blob
        elif isinstance(entry, DirEntry):
            mode = stat.S_IFDIR | entry.mode
            first, count, subdirectories = children or (0, 0, 0)
            links = 2 + subdirectories
        else:
            target = entry.target.encode()
            mode, size, first = stat.S_IFLNK | 0o777, len(target), self._keep(target)
        self.shapes.append((size if stat.S_ISREG(mode) else 0, mode))
        _ENTRY.pack_into(self._rows, at, self._keep(name), len(name), parent, first, count, links, mode, entry.mtime, size)

    def _keep(self, text: bytes) -> int:
        """Where in the heap `text` now lies, within one page."""
        left = -len(self._heap) % PAGE_SIZE
        if len(text) > left:
            self._heap += bytes(left)
        at = len(self._heap)
        self._heap += text
        return at


def _by_directory(index: Index) -> tuple[list[Entry], list[int], dict[int, tuple[int, int, int]]]:
    """Every entry, breadth first: the children of a directory together, in the order of the index, which is by name.

    Returns:
        The entries of inodes 1, 2, ...; their parents' inodes; by the inode of a directory that is not empty: inode of the first
        child, how many there are, and how many of them are directories.
    """
    below: dict[str, list[Entry]] = {}
    for entry in index.entries[1:]:
        below.setdefault(parent_path(entry.path), []).append(entry)
    entries: list[Entry] = [index.entries[0]]
    parents, firsts = [ROOT_INODE], {}
    for inode, entry in enumerate(entries, ROOT_INODE):  # grows while it is walked
        if isinstance(entry, DirEntry) and entry.path in below:
            children = below[entry.path]
            firsts[inode] = (len(entries) + ROOT_INODE, len(children), sum(isinstance(child, DirEntry) for child in children))
            entries += children
            parents += [inode] * len(children)
    return entries, parents, firsts
