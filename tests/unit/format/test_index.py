"""The table of files: paths, symlinks, and the match with the manifest."""

from collections.abc import Callable
from typing import Any

import pytest

from modelfs.errors import FormatError, UnsupportedVersionError, VerificationError
from modelfs.format import canonical
from modelfs.format.index import DirEntry, FileEntry, SymlinkEntry, build_index, parse_index, verify_index_matches
from modelfs.format.manifest import Manifest, parse_manifest
from tests.unit.format.test_manifest import fields as manifest_fields

A, B = "aa" * 16, "bb" * 16


def directory(path: str = "", **change: Any) -> dict[str, Any]:
    return {"kind": "dir", "mode": 0o555, "mtime": 0, "path": path} | change


def file(path: str, blob: str = A, **change: Any) -> dict[str, Any]:
    entry = {"blob": blob, "digest": "d" * 64, "key": "e" * 64, "kind": "file", "mode": 0o444, "mtime": 0, "path": path, "size": 10}
    return entry | change


def symlink(path: str, target: str, **change: Any) -> dict[str, Any]:
    return {"kind": "symlink", "mtime": 0, "path": path, "target": target} | change


def index_bytes(*entries: dict[str, Any]) -> bytes:
    return canonical.serialize_value({"entries": list(entries), "format": "modelfs/1/index"})


GOOD = {
    "root only": [directory()],
    "files and directories": [directory(), directory("a"), file("a/b"), symlink("a/c", "b"), file("d", B)],
    "sorted by bytes": [directory(), directory("a"), file("a.b", A), file("a/b", B)],
    "names": [directory(), file("\x01 \\ -é\u2028~ ..."), file("é" * 127, B)],
    "limits of mode and time": [directory(mode=0), file("a", mode=0o555, mtime=(1 << 63) - 1, size=1 << 44)],
    "dangling symlink": [directory(), symlink("a", "nowhere/at/all")],
    "symlink up and down again": [directory(), directory("a"), symlink("a/b", "../a/../a/.//c")],
    "symlink to the root": [directory(), directory("a"), symlink("a/b", "..")],
    "symlink through a symlink": [directory(), directory("a"), directory("a/b"), symlink("a/b/c", "../.."), symlink("d", "a/b/c/a")],
    "chain of 40": [directory(), *sorted((symlink(f"l{n:02}", f"l{n + 1:02}") for n in range(40)), key=lambda entry: entry["path"])],
}


@pytest.mark.parametrize("entries", GOOD.values(), ids=GOOD)
def test_parse_index_takes(entries: list[dict[str, Any]]) -> None:
    data = index_bytes(*entries)
    index = parse_index(data)
    assert canonical.serialize(index) == data
    assert len(index.entries) == len(entries)


BAD_PATHS = {
    "absolute": "/a",
    "parent": "..",
    "parent inside": "a/../b",
    "dot": ".",
    "dot inside": "a/./b",
    "empty component": "a//b",
    "slash at the end": "a/",
    "NUL": "a\0b",
    "component of 256 bytes": "x" * 256,
    "component of 128 two-byte letters": "é" * 128,
    "path of 4,096 bytes": "/".join(["x" * 255] * 15 + ["y" * 128, "z" * 127]),
}


@pytest.mark.parametrize("path", BAD_PATHS.values(), ids=BAD_PATHS)
@pytest.mark.parametrize("kind", [directory, file, lambda path: symlink(path, "x")], ids=["dir", "file", "symlink"])
def test_parse_index_refuses_the_path(path: str, kind: Callable[[str], dict[str, Any]]) -> None:
    parents = []
    parts = path.split("/")
    if "" not in parts and not {".", ".."} & set(parts):  # so that the path itself is the only fault
        parents = [directory("/".join(parts[:count])) for count in range(1, len(parts))]
    with pytest.raises(FormatError, match=r"path|name"):
        parse_index(index_bytes(directory(), *parents, kind(path)))


def test_parse_index_takes_the_longest_path() -> None:
    parts = ["x" * 255] * 16
    entries = [directory()] + [directory("/".join(parts[:count])) for count in range(1, 16)] + [file("/".join(parts))]
    assert len(entries[-1]["path"].encode()) == 4095
    assert parse_index(index_bytes(*entries)).files[0].path == entries[-1]["path"]


BAD_TARGETS = {
    "absolute": "/etc/passwd",
    "empty": "",
    "NUL": "a\0",
    "too long": "x/" * 2048,
    "out": "..",
    "out and in again": "../sealed/a",
    "out later": "a/../../b",
    "out through dots": "./././..",
}


@pytest.mark.parametrize("target", BAD_TARGETS.values(), ids=BAD_TARGETS)
def test_parse_index_refuses_the_target(target: str) -> None:
    with pytest.raises(FormatError, match="symlink"):
        parse_index(index_bytes(directory(), symlink("l", target)))


ESCAPES = {
    # Lexically `deep/link/../..` stays at the root; physically `deep/link` is the root, so `..` leaves it.
    "through a symlink to a shallower directory": [
        directory(), directory("deep"), directory("deep/er"), symlink("deep/er/up", "../.."), symlink("l", "deep/er/up/.."),
    ],
    "through a symlink inside a symlink's target": [
        directory(), directory("a"), symlink("a/one", ".."), symlink("a/two", "one/one-more"), symlink("one-more", "a/one/.."),
    ],
    "through a missing directory": [directory(), symlink("l", "no/such/../../../x")],
    "through a file": [directory(), file("f"), symlink("l", "f/../..")],
    "to itself": [directory(), symlink("l", "l")],
    "two in a circle": [directory(), symlink("k", "l"), symlink("l", "k")],
    "chain of 41": [directory(), *(symlink(f"l{n:02}", f"l{n + 1:02}") for n in range(41))],
}  # fmt: skip


@pytest.mark.parametrize("entries", ESCAPES.values(), ids=ESCAPES)
def test_parse_index_refuses_a_symlink_that_leaves_or_never_ends(entries: list[dict[str, Any]]) -> None:
    with pytest.raises(FormatError, match="symlink"):
        parse_index(index_bytes(*entries))


BAD = {
    "no entries": [],
    "first is not the root": [directory("a")],
    "root is a file": [file("")],
    "root is a symlink": [symlink("", "a")],
    "root twice": [directory(), directory()],
    "not sorted": [directory(), file("b"), file("a", B)],
    "sorted by components, not bytes": [directory(), directory("a"), file("a/b", A), file("a.b", B)],
    "path twice": [directory(), file("a"), file("a", B)],
    "file and directory of one name": [directory(), directory("a"), file("a")],
    "parent missing": [directory(), file("a/b")],
    "parent is a file": [directory(), file("a"), file("a/b", B)],
    "parent is a symlink": [directory(), symlink("a", "b"), file("a/b"), directory("b")],
    "blob named twice": [directory(), file("a"), file("b")],
    "write bit": [directory(), file("a", mode=0o644)],
    "group's write bit": [directory(), file("a", mode=0o424)],
    "write bit of a directory": [directory(mode=0o522)],
    "setuid": [directory(), file("a", mode=0o4555)],
    "negative mode": [directory(mode=-1)],
    "negative time": [directory(mtime=-1)],
    "time too large": [directory(mtime=1 << 63)],
    "unknown kind": [directory(), directory("a", kind="device")],
    "kind missing": [directory(), {"mode": 0, "mtime": 0, "path": "a"}],
    "symlink with a mode": [directory(), symlink("l", "x", mode=0o444)],
    "directory with a size": [directory(size=0)],
    "file without a key": [directory(), {name: value for name, value in file("a").items() if name != "key"}],
    "key too short": [directory(), file("a", key="e" * 62)],
    "unknown field": [directory(), file("a", extra=1)],
}


@pytest.mark.parametrize("entries", BAD.values(), ids=BAD)
def test_parse_index_refuses(entries: list[dict[str, Any]]) -> None:
    with pytest.raises(FormatError):
        parse_index(index_bytes(*entries))


def test_parse_index_names_another_version() -> None:
    with pytest.raises(UnsupportedVersionError):
        parse_index(b'{"entries":[],"format":"modelfs/2/index"}')


def test_build_index_sorts_by_bytes() -> None:
    entries = [
        SymlinkEntry(kind="symlink", mtime=0, path="a.b", target="a"),
        FileEntry(**file("a/b")),
        DirEntry(**directory("a")),
        DirEntry(**directory()),
    ]
    assert [entry.path for entry in build_index(entries).entries] == ["", "a", "a.b", "a/b"]


def test_build_index_refuses_what_parse_would() -> None:
    with pytest.raises(ValueError):
        build_index([DirEntry(**directory()), FileEntry(**file("a/b"))])


def test_keys_are_not_in_a_repr() -> None:
    index = parse_index(index_bytes(directory(), file("a", key="5ec2e7" * 10 + "5ec2")))
    assert "5ec2e7" not in repr(index)
    assert "5ec2e7" not in repr(index.files)
    assert index.files[0].blob_key.hex().startswith("5ec2e7")


def manifest(**sizes: int) -> Manifest:
    blobs = [{"id": name * 16, "root": "1" * 64, "size": size} for name, size in sorted(sizes.items())]
    return parse_manifest(canonical.serialize_value(manifest_fields() | {"blobs": blobs, "index": "ff" * 16}))


MATCHES = {"same": {"aa": 10, "bb": 10, "ff": 1}}
MISMATCHES = {
    "one more in the manifest": {"aa": 10, "bb": 10, "cc": 1, "ff": 1},
    "one less in the manifest": {"aa": 10, "ff": 1},
    "other size": {"aa": 10, "bb": 11, "ff": 1},
    "other id": {"aa": 10, "bc": 10, "ff": 1},
}
TABLE = parse_index(index_bytes(directory(), file("x", A), file("y", B)))


def test_verify_index_matches_takes_the_same_set() -> None:
    verify_index_matches(TABLE, manifest(**MATCHES["same"]))


@pytest.mark.parametrize("sizes", MISMATCHES.values(), ids=MISMATCHES)
def test_verify_index_matches_refuses(sizes: dict[str, int]) -> None:
    with pytest.raises(VerificationError):
        verify_index_matches(TABLE, manifest(**sizes))


def test_verify_index_matches_refuses_a_file_whose_blob_is_the_index() -> None:
    table = parse_index(index_bytes(directory(), file("x", "ff" * 16, size=1)))
    with pytest.raises(VerificationError):
        verify_index_matches(table, manifest(ff=1))
