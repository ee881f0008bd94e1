"""Requests and replies as bytes, against the kernel's own layout, compiled from its header."""

import stat
import struct
import subprocess
from pathlib import Path

import pytest

from modelfs.mount import wire
from modelfs.mount.wire import Attributes, Opcode, pack_directory, parse_name, parse_read, parse_request

LAYOUT = r"""
#include <linux/fuse.h>
#include <stddef.h>
#include <stdio.h>
#define SIZE(type) printf(#type " %zu\n", sizeof(struct type));
#define AT(type, field) printf(#type "." #field " %zu\n", offsetof(struct type, field));
#define CODE(name) printf(#name " %d\n", FUSE_##name);
int main(void) {
  SIZE(fuse_in_header) SIZE(fuse_out_header) SIZE(fuse_entry_out) SIZE(fuse_attr_out) SIZE(fuse_open_out) SIZE(fuse_statfs_out)
  AT(fuse_in_header, opcode) AT(fuse_in_header, unique) AT(fuse_in_header, nodeid) AT(fuse_in_header, pid)
  AT(fuse_read_in, offset) AT(fuse_read_in, size)
  AT(fuse_entry_out, nodeid) AT(fuse_entry_out, entry_valid) AT(fuse_entry_out, attr_valid) AT(fuse_entry_out, attr)
  AT(fuse_attr_out, attr_valid) AT(fuse_attr_out, attr) AT(fuse_open_out, fh) AT(fuse_open_out, open_flags)
  AT(fuse_attr, ino) AT(fuse_attr, size) AT(fuse_attr, blocks) AT(fuse_attr, mtime) AT(fuse_attr, mtimensec) AT(fuse_attr, mode)
  AT(fuse_attr, nlink) AT(fuse_attr, uid) AT(fuse_attr, gid) AT(fuse_attr, blksize)
  AT(fuse_kstatfs, blocks) AT(fuse_kstatfs, files) AT(fuse_kstatfs, bsize) AT(fuse_kstatfs, namelen) AT(fuse_kstatfs, frsize)
  AT(fuse_dirent, ino) AT(fuse_dirent, off) AT(fuse_dirent, namelen) AT(fuse_dirent, type) AT(fuse_dirent, name)
  CODE(LOOKUP) CODE(FORGET) CODE(GETATTR) CODE(READLINK) CODE(OPEN) CODE(READ) CODE(STATFS) CODE(RELEASE) CODE(OPENDIR)
  CODE(READDIR) CODE(RELEASEDIR) CODE(INTERRUPT) CODE(DESTROY) CODE(BATCH_FORGET) CODE(READDIRPLUS)
  return 0;
}
"""


@pytest.fixture(scope="module")
def layout(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Sizes, offsets and numbers of linux/fuse.h as the compiler has them."""
    folder: Path = tmp_path_factory.mktemp("layout")
    (folder / "layout.c").write_text(LAYOUT)
    subprocess.run(["gcc", "-o", folder / "layout", folder / "layout.c"], check=True)
    lines = subprocess.run([folder / "layout"], check=True, capture_output=True, text=True).stdout.splitlines()
    return {name: int(value) for name, value in (line.split() for line in lines)}


SHOWN = Attributes(7, stat.S_IFREG | 0o440, 1025, 1, 11, 12, 4096, 3_000_000_005, 99)


def u32(data: bytes, at: int) -> int:
    return struct.unpack_from("<I", data, at)[0]


def u64(data: bytes, at: int) -> int:
    return struct.unpack_from("<Q", data, at)[0]


def check_attributes(data: bytes, layout: dict[str, int]) -> None:
    at = {name.partition(".")[2]: offset for name, offset in layout.items() if name.startswith("fuse_attr.")}
    wide = {name: u64(data, at[name]) for name in ("ino", "size", "blocks", "mtime")}
    assert wide == {"ino": 7, "size": 1025, "blocks": 3, "mtime": 3}
    narrow = {name: u32(data, at[name]) for name in ("mtimensec", "mode", "nlink", "uid", "gid", "blksize")}
    assert narrow == {"mtimensec": 5, "mode": stat.S_IFREG | 0o440, "nlink": 1, "uid": 11, "gid": 12, "blksize": 4096}


def test_opcodes_are_the_kernels(layout: dict[str, int]) -> None:
    assert {code.name: code.value for code in Opcode} == {name: layout[name] for name in Opcode.__members__}


def test_request(layout: dict[str, int]) -> None:
    data = bytearray(layout["fuse_in_header"] + 6)
    struct.pack_into("<I", data, 0, len(data))
    for field, value, form in (("opcode", 1, "<I"), ("unique", 1 << 63 | 8, "<Q"), ("nodeid", 1 << 40, "<Q"), ("pid", 77, "<I")):
        struct.pack_into(form, data, layout[f"fuse_in_header.{field}"], value)
    data[-6:] = b"name\0\0"
    request = parse_request(memoryview(data + b"what an earlier request left in the buffer"))
    assert request[:4] == (Opcode.LOOKUP, 1 << 63 | 8, 1 << 40, 77)
    assert parse_name(request.body) == b"name"
    with pytest.raises(ValueError, match="39 bytes"):
        parse_request(memoryview(data)[:39])


def test_read(layout: dict[str, int]) -> None:
    body = bytearray(40)
    struct.pack_into("<Q", body, layout["fuse_read_in.offset"], 5 << 40)
    struct.pack_into("<I", body, layout["fuse_read_in.size"], 1 << 20)
    assert parse_read(memoryview(body)) == (5 << 40, 1 << 20)


def test_header(layout: dict[str, int]) -> None:
    assert wire.pack_header(3, 0, 10) == struct.pack("<IiQ", layout["fuse_out_header"] + 10, 0, 3)
    assert wire.pack_header(3, 5, 0) == struct.pack("<IiQ", 16, -5, 3)


def test_entry(layout: dict[str, int]) -> None:
    data = wire.pack_entry(SHOWN)
    assert len(data) == layout["fuse_entry_out"]
    fields = [u64(data, layout[f"fuse_entry_out.{name}"]) for name in ("nodeid", "entry_valid", "attr_valid")]
    assert fields == [7, 99, 99]
    check_attributes(data[layout["fuse_entry_out.attr"] :], layout)
    none = wire.pack_no_entry()
    assert len(none) == len(data)
    assert u64(none, layout["fuse_entry_out.nodeid"]) == 0
    assert u64(none, layout["fuse_entry_out.entry_valid"]) == wire.FOREVER_S


def test_attributes(layout: dict[str, int]) -> None:
    data = wire.pack_attributes(SHOWN)
    assert len(data) == layout["fuse_attr_out"]
    assert u64(data, layout["fuse_attr_out.attr_valid"]) == 99
    check_attributes(data[layout["fuse_attr_out.attr"] :], layout)


def test_open_and_statfs(layout: dict[str, int]) -> None:
    opened = wire.pack_open(7)
    assert len(opened) == layout["fuse_open_out"]
    assert u64(opened, layout["fuse_open_out.fh"]) == 7
    assert u32(opened, layout["fuse_open_out.open_flags"]) == 2  # FOPEN_KEEP_CACHE
    data = wire.pack_statfs(4097, 12)
    assert len(data) == layout["fuse_statfs_out"]
    at = {name.partition(".")[2]: offset for name, offset in layout.items() if name.startswith("fuse_kstatfs.")}
    assert (u64(data, at["blocks"]), u64(data, at["files"])) == (2, 12)
    assert [u32(data, at[name]) for name in ("bsize", "namelen", "frsize")] == [4096, 255, 4096]


@pytest.mark.parametrize("with_attributes", [False, True])
def test_directory(layout: dict[str, int], with_attributes: bool) -> None:
    entries = [(b"a" * length, SHOWN._replace(inode=100 + length)) for length in (1, 8, 255)]
    lead = layout["fuse_entry_out"] if with_attributes else 0
    whole = pack_directory(entries, 1 << 20, with_attributes=with_attributes)
    at = 0
    for name, attributes in entries:
        if with_attributes:
            assert u64(whole, at) == attributes.inode
            check_attributes(
                whole[at + layout["fuse_entry_out.attr"] :].replace(struct.pack("<Q", attributes.inode), struct.pack("<Q", 7)), layout
            )
        at += lead
        entry = whole[at:]
        assert u64(entry, layout["fuse_dirent.ino"]) == u64(entry, layout["fuse_dirent.off"]) == attributes.inode
        assert u32(entry, layout["fuse_dirent.namelen"]) == len(name)
        assert u32(entry, layout["fuse_dirent.type"]) == stat.S_IFREG >> 12
        start = layout["fuse_dirent.name"]
        assert entry[start : start + len(name)] == name
        at += -(-(start + len(name)) // 8) * 8
    assert at == len(whole)
    # What does not fit as a whole is left for the next request, and an entry is never cut.
    first = pack_directory(entries[:1], 1 << 20, with_attributes=with_attributes)
    assert pack_directory(entries, len(whole) - 1, with_attributes=with_attributes) == whole[: len(whole) - lead - 280]
    assert pack_directory(entries, len(first), with_attributes=with_attributes) == first
    assert pack_directory(entries, len(first) - 1, with_attributes=with_attributes) == b""
