"""gc: what the current and the previous release or pending work name stays; a manifest that cannot be read stops everything."""

import os
from pathlib import Path

import pytest

from modelfs.errors import FormatError, ModelfsError
from modelfs.seal.retention import Removed, collect_garbage
from modelfs.store.local import Store
from tests.conftest import SealedBuilder
from tests.helpers import NOW, KeySet, Sealed, seal, store_files


@pytest.fixture
def four(sealed: SealedBuilder, keys_dir: KeySet) -> Sealed:
    """Releases 1 to 4; `same` never changes, `new` always does."""
    model = sealed({"same": b"s" * 9000, "new": b"1" * 9000})
    for release in (2, 3, 4):
        (model.source / "new").write_bytes(str(release).encode() * 9000)
        seal(keys_dir, model.source, model.path, release=release)
    return model


def gc(model: Sealed, keep: int = 2) -> Removed:
    with Store(model.path) as store, store.writer_lock():
        return collect_garbage(store, keep)


def releases(model: Sealed) -> list[int]:
    return sorted(int(name.removesuffix(".json")) for name in os.listdir(model.path / "manifests"))


def restore(model: Sealed, release: int) -> None:
    """What an operator does who goes back: an older manifest becomes the current one."""
    (model.path / "manifest.json").write_bytes((model.path / "manifests" / f"{release}.json").read_bytes())


@pytest.mark.parametrize(("keep", "left"), [(1, [4]), (2, [3, 4]), (3, [2, 3, 4]), (4, [1, 2, 3, 4]), (99, [1, 2, 3, 4])])
def test_gc_keeps_the_current_release_and_those_before(four: Sealed, keep: int, left: list[int]) -> None:
    before = len(os.listdir(four.path / "blobs"))
    removed = gc(four, keep)
    assert releases(four) == left
    assert removed.releases == [release for release in (1, 2, 3, 4) if release not in left]
    assert len(os.listdir(four.path / "keys")) == len(left)
    # Each release has a blob (with digests) and an index of its own; `same` is shared.
    assert removed.blobs == 2 * len(removed.releases)
    assert len(os.listdir(four.path / "blobs")) == before - 3 * len(removed.releases)
    for release in left:
        restore(four, release)
        assert four.faults() == []
        assert four.read() == {"same": b"s" * 9000, "new": str(release).encode() * 9000}


def test_gc_counts_the_bytes_it_removes(four: Sealed) -> None:
    def size() -> int:
        return sum(file.stat().st_size for file in (four.path / "blobs").iterdir())

    before = size()
    removed = gc(four, 1)
    assert removed.bytes == before - size() > 0


def test_gc_again_removes_nothing(four: Sealed) -> None:
    gc(four)
    before = store_files(four.path)
    assert gc(four) == Removed([], 0, 0)
    assert store_files(four.path) == before


def test_gc_leaves_newer_releases_alone(four: Sealed) -> None:
    restore(four, 2)
    assert gc(four, 1).releases == [1]
    assert releases(four) == [2, 3, 4]
    for release in (2, 3, 4):
        restore(four, release)
        assert four.faults() == []


MALFORMED = {
    "archived manifest empty": ("manifests/1.json", b""),
    "archived manifest truncated": ("manifests/2.json", b'{"payload":"e30="'),
    "archived manifest of another type": (
        "manifests/1.json", b'{"payload":"e30=","payloadType":"text/plain","signatures":[{"keyid":"","sig":""}]}',
    ),
    "archived manifest with an empty payload": (
        "manifests/1.json",
        b'{"payload":"e30=","payloadType":"application/vnd.modelfs.manifest+json","signatures":[{"keyid":"","sig":""}]}',
    ),
    "current manifest garbage": ("manifest.json", b"\xff" * 100),
    "manifest under another number": ("manifests/7.json", None),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content"), MALFORMED.values(), ids=MALFORMED)
def test_gc_removes_nothing_when_a_manifest_is_malformed(four: Sealed, name: str, content: bytes | None) -> None:
    (four.path / name).write_bytes((four.path / "manifests" / "1.json").read_bytes() if content is None else content)
    (four.path / "blobs" / ("0" * 32)).write_bytes(b"unnamed")
    before = store_files(four.path)
    with pytest.raises(FormatError):
        gc(four, 1)
    assert [path for path in store_files(four.path) if path != "pending/lock"] == before


@pytest.mark.parametrize("kind", ["symlink", "FIFO"])
def test_gc_removes_nothing_when_a_manifest_is_no_file(four: Sealed, kind: str) -> None:
    path = four.path / "manifests" / "1.json"
    path.unlink()
    if kind == "symlink":
        path.symlink_to("2.json")
    else:
        os.mkfifo(path)
    before = sorted(os.listdir(four.path / "blobs"))
    with pytest.raises(ModelfsError):
        gc(four, 1)
    assert sorted(os.listdir(four.path / "blobs")) == before


def test_gc_ignores_other_names(four: Sealed) -> None:
    others = ["blobs/README", "blobs/" + "A" * 32, "keys/notes.txt", "manifests/old.json", "manifests/01.json", "manifests/0.json"]
    for name in others:
        (four.path / name).write_bytes(b"x")
    gc(four, 1)
    for name in others:
        assert (four.path / name).read_bytes() == b"x"


def test_gc_removes_blobs_that_nothing_names(four: Sealed) -> None:
    for suffix in ("", ".digests"):
        (four.path / "blobs" / ("0" * 32 + suffix)).write_bytes(b"12345")
    assert gc(four, 99) == Removed([], 1, 10)


class Interrupted(Exception):
    """Ends a seal in its middle."""


def test_gc_keeps_pending_work(four: Sealed, keys_dir: KeySet, tmp_path: Path) -> None:
    for number in range(6):
        (four.source / f"more{number}").write_bytes(os.urandom(5000))

    def interrupt(old: str, new: str, **kwargs: int) -> None:
        if new == "manifest.json":
            raise Interrupted
        rename(old, new, **kwargs)

    rename = os.rename
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", interrupt)
        with pytest.raises(Interrupted):
            seal(keys_dir, four.source, four.path, release=5)
    gc(four, 1)
    report = seal(keys_dir, four.source, four.path, release=5, now=NOW)
    assert report.resumed == 6
    assert report.encrypted == 0
    assert four.faults() == []


def test_gc_of_a_seal_that_was_never_finished(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / ("0" * 32)).write_bytes(b"x")
    with Store(tmp_path) as store, store.writer_lock():
        assert collect_garbage(store, 2) == Removed([], 1, 1)
