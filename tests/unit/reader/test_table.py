"""The table answers as the index that it was made from, and nothing that was altered is believed."""

import os
import stat
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings

from modelfs.control.pins import empty_pin, fill_pin
from modelfs.errors import BlockAuthError
from modelfs.format import canonical
from modelfs.format.geometry import TAG_SIZE
from modelfs.format.index import DirEntry, Entry, FileEntry, Index, SymlinkEntry, build_index, parse_index
from modelfs.format.manifest import BlobEntry, Manifest
from modelfs.format.paths import parent_path
from modelfs.reader import table_pages
from modelfs.reader.table import ROOT_INODE, NewTable, Table
from modelfs.reader.table_pages import PAGE_SIZE, TablePages, encrypt_pages
from tests.property.test_format import indexes

DEK, ID = bytes(range(32)), b"i" * 16
HEAD = 16 + 8
STORED_PAGE = PAGE_SIZE + TAG_SIZE


def directory(path: str = "", mode: int = 0o555, mtime: int = 7) -> DirEntry:
    return DirEntry(kind="dir", mode=mode, mtime=mtime, path=path)


def file(path: str, size: int = 0, mode: int = 0o444) -> FileEntry:
    blob, digest, key = (os.urandom(length).hex() for length in (16, 32, 32))
    return FileEntry(blob=blob, digest=digest, key=key, kind="file", mode=mode, mtime=9, path=path, size=size)


def symlink(path: str, target: str) -> SymlinkEntry:
    return SymlinkEntry(kind="symlink", mtime=8, path=path, target=target)


def manifest_of(index: Index) -> Manifest:
    """One that names the blobs of `index`, and an index blob."""
    blobs = [BlobEntry(id=entry.blob, root=os.urandom(32).hex(), size=entry.size) for entry in index.files]
    blobs.append(BlobEntry(id="f" * 32, root="0" * 64, size=1234))
    return Manifest(
        blobs=sorted(blobs, key=lambda blob: blob.id), block_size=4096, cipher="AES-256-GCM", created="2025-06-01T12:00:00Z",
        digest="blake3", expires=None, format="modelfs/1", index="f" * 32, key_commitment="0" * 64, key_id="0" * 32, model="demo",
        release=1,
    )  # fmt: skip


class Stored:
    """A table in a memfd, as a mount has it."""

    def __init__(self, index: Index, dek: bytes = DEK, table_id: bytes = ID) -> None:
        self.manifest = manifest_of(index)
        self.new = NewTable(index, self.manifest)
        self.data = encrypt_pages(self.new.plaintext, dek, table_id)

    def open(self, data: bytes | None = None, dek: bytes = DEK) -> Table:
        fd = empty_pin("table")
        fill_pin(fd, self.data if data is None else data)
        return Table(TablePages(fd, dek))


def walk(table: Table) -> dict[str, int]:
    """Path by path what listing the directories finds."""
    found, todo = {"": ROOT_INODE}, [("", ROOT_INODE)]
    while todo:
        path, inode = todo.pop()
        for child in table.children(inode, 0):
            name = table.name(child).decode()
            below = f"{path}/{name}" if path else name
            found[below] = child
            todo.append((below, child))
    return found


def check(index: Index) -> None:
    """Every question that a mount asks has the answer that the entries give."""
    stored = Stored(index)
    table = stored.open()
    inodes = walk(table)
    assert len(table) == len(index.entries)
    assert sorted(inodes) == sorted(entry.path for entry in index.entries)
    assert sorted(inodes.values()) == list(range(1, len(index.entries) + 1))
    assert table.total_size == sum(entry.size for entry in index.files)
    blobs = {blob.id: blob for blob in stored.manifest.blobs}
    for entry in index.entries:
        inode = inodes[entry.path]
        row = table.row(inode)
        assert row is not None
        parent = inodes[parent_path(entry.path)]
        assert (row.parent, table.path(inode), row.mtime_ns) == (parent, entry.path, entry.mtime)
        if entry.path:
            name = entry.path.rpartition("/")[2].encode()
            assert table.find(parent, name) == inode
            for other in (name + b"\0", name[:-1], name.swapcase() + b"x", b"/" + name):
                expected = inodes.get(f"{parent_path(entry.path)}/{other.decode(errors='replace')}".lstrip("/")) if other else None
                assert table.find(parent, other) == (expected if b"/" not in other else None)
        check_kind(index, table, entry, inode, blobs)
        assert stored.new.shapes[inode - 1] == (row.size if row.is_file else 0, row.mode)
    for inode in (-1, 0, len(index.entries) + 1, 1 << 40):
        assert table.row(inode) is None
        assert table.find(inode, b"a") is None
        assert list(table.children(inode, 0)) == []


def check_kind(index: Index, table: Table, entry: Entry, inode: int, blobs: dict[str, BlobEntry]) -> None:
    row = table.row(inode)
    assert row is not None
    children = [other for other in index.entries[1:] if parent_path(other.path) == entry.path]
    if isinstance(entry, FileEntry):
        assert (row.mode, row.size, row.links) == (stat.S_IFREG | entry.mode, entry.size, 1)
        assert table.blob(inode) == (blobs[entry.blob], entry.blob_key)
    elif isinstance(entry, SymlinkEntry):
        assert (row.mode, row.size, row.links) == (stat.S_IFLNK | 0o777, len(entry.target.encode()), 1)
        assert table.target(inode) == entry.target.encode()
    else:
        links = 2 + sum(isinstance(child, DirEntry) for child in children)
        assert (row.mode, row.size, row.links) == (stat.S_IFDIR | entry.mode, 0, links)
        listed = list(table.children(inode, 0))
        assert [table.path(child) for child in listed] == [child.path for child in children]
        for number, after in enumerate(listed):
            assert list(table.children(inode, after)) == listed[number + 1 :], "another worker goes on where one stopped"
        return
    assert list(table.children(inode, 0)) == []
    assert table.find(inode, b"a") is None


@settings(deadline=None)
@given(indexes())
def test_every_index_has_the_same_answers(index: Index) -> None:
    check(parse_index(canonical.serialize(index)))


TREES: dict[str, Callable[[], list[Any]]] = {
    "the root alone": lambda: [directory()],
    "deep": lambda: [directory("/".join("d" * depth)) for depth in range(301)],
    "order of paths is not that of names": lambda: [directory(), directory("a"), file("a/z"), file("a.b"), file("a0"), file("a-")],
    "any bytes in names": lambda: [
        directory(),
        *(file(name) for name in ("\x01", "\n", " ", '"', "\\", "é", "名前", "\U0001f600", "\x7f")),
    ],
    "the longest names": lambda: [directory(), *(file(f"{number:03}" + "n" * 252, number) for number in range(200))],
    "the longest targets": lambda: [directory(), *(symlink(f"l{number}", "x/" * 2047 + f"{number}") for number in range(9))],
    "modes and sizes": lambda: [directory(mode=0), directory("d", 0o111), file("f", 1 << 44, 0), file("g", 1, 0o555)],
    "more rows than a page has": lambda: [directory(), directory("d"), *(file(f"d/{number:03}", number) for number in range(300))],
    "a row that ends its page": lambda: [directory(), *(file(f"{number:03}", number) for number in range(126))],
}


@pytest.mark.parametrize("entries", TREES.values(), ids=TREES)
def test_trees(entries: Callable[[], list[Any]]) -> None:
    check(build_index(entries()))


def test_pages_that_leave_the_memory_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(table_pages, "_KEPT_PAGES", 1)
    check(build_index([directory(), *(file(f"{number:04}", number) for number in range(400))]))


# -- what was altered


@pytest.fixture(scope="module")
def stored() -> Stored:
    return Stored(build_index([directory(), *(file(f"{number:04}", number) for number in range(400)), symlink("l", "0001")]))


def read_all(table: Table) -> None:
    for path, inode in walk(table).items():
        assert table.path(inode) == path
        row = table.row(inode)
        assert row is not None
        if row.is_file:
            table.blob(inode)
        elif row.is_symlink:
            table.target(inode)


def test_reading_all_of_it_would_find_a_fault(stored: Stored) -> None:
    read_all(stored.open())
    assert len(stored.data) > HEAD + 4 * STORED_PAGE


@pytest.mark.parametrize(
    "at", [0, 15, 16, 23, HEAD, HEAD + PAGE_SIZE - 1, HEAD + PAGE_SIZE, HEAD + STORED_PAGE, HEAD + 3 * STORED_PAGE + 99, -1]
)
def test_a_flipped_bit_is_refused(stored: Stored, at: int) -> None:
    data = bytearray(stored.data)
    data[at] ^= 1
    with pytest.raises(BlockAuthError):
        read_all(stored.open(bytes(data)))


@pytest.mark.parametrize(
    "length", [0, 1, HEAD - 1, HEAD, HEAD + TAG_SIZE, HEAD + STORED_PAGE - 1, HEAD + STORED_PAGE, HEAD + 4 * STORED_PAGE, -1]
)
def test_a_truncated_table_is_refused(stored: Stored, length: int) -> None:
    with pytest.raises(BlockAuthError):
        read_all(stored.open(stored.data[:length]))


def test_pages_that_changed_places_are_refused(stored: Stored) -> None:
    first, second = (stored.data[HEAD + number * STORED_PAGE :][:STORED_PAGE] for number in (1, 2))
    with pytest.raises(BlockAuthError):
        read_all(stored.open(stored.data[: HEAD + STORED_PAGE] + second + first + stored.data[HEAD + 3 * STORED_PAGE :]))


def test_a_page_of_another_mount_of_the_same_release_is_refused(stored: Stored) -> None:
    """Its key is another one, though the DEK is the same."""
    other = encrypt_pages(stored.new.plaintext, DEK, b"j" * 16)
    mixed = stored.data[: HEAD + STORED_PAGE] + other[HEAD + STORED_PAGE :][:STORED_PAGE] + stored.data[HEAD + 2 * STORED_PAGE :]
    assert len(mixed) == len(stored.data)
    with pytest.raises(BlockAuthError):
        read_all(stored.open(mixed))


def test_another_dek_is_refused(stored: Stored) -> None:
    with pytest.raises(BlockAuthError):
        stored.open(dek=bytes(32))


def test_what_is_authentic_but_no_table_is_refused(stored: Stored) -> None:
    with pytest.raises(BlockAuthError):
        stored.open(encrypt_pages(bytes(PAGE_SIZE), DEK, ID))


def test_no_page_repeats_under_another_id(stored: Stored) -> None:
    """Zeros encrypt to a key stream: were it the same for two tables, a nonce had been used twice."""
    pages = set()
    for number in range(8):
        data = encrypt_pages(bytes(2 * PAGE_SIZE), DEK, bytes([number]) * 16)
        pages |= {data[HEAD:][:PAGE_SIZE], data[HEAD + STORED_PAGE :][:PAGE_SIZE]}
    assert len(pages) == 16


def test_neither_names_nor_keys_are_in_the_clear() -> None:
    index = build_index([directory(), file("weights-of-the-crown.bin"), symlink("a-secret-link", "weights-of-the-crown.bin")])
    stored = Stored(index)
    (entry,) = index.files
    for secret in (b"crown", b"secret", entry.blob_key, bytes.fromhex(entry.blob), entry.key.encode()):
        assert secret in stored.new.plaintext or secret == entry.key.encode()
        assert secret not in stored.data


def test_no_key_is_shown_by_what_a_worker_could_log(stored: Stored) -> None:
    table = stored.open()
    row = table.row(2)
    _, key = table.blob(2)
    assert key.hex() not in repr(row)
    assert repr(key) not in repr(row)
