"""Files of many pieces: what a seal leaves when the disk is full, the source changes or the publisher stops it in the middle."""

import os
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs.crypto.aead import BlobCipher
from modelfs.errors import ModelfsError, SourceChangedError, StoreError
from modelfs.format.limits import MIB
from modelfs.seal.encrypt import SEGMENT_SIZE, SEGMENTS_AHEAD, Cancelled
from tests.helpers import KeySet, Sealed, seal, write_tree
from tests.unit.store.test_direct import mounted, small_disk

LARGE = (SEGMENTS_AHEAD + 5) * SEGMENT_SIZE + 12_345


def left_in(sealed: Path) -> list[str]:
    return os.listdir(sealed / "blobs")


@pytest.mark.parametrize("block_size", [4096, 131072, 4 * MIB])
def test_a_large_file_comes_back(keys_dir: KeySet, tmp_path: Path, block_size: int) -> None:
    source = write_tree(tmp_path / "src", {"large": os.urandom(LARGE)})
    seal(keys_dir, source, tmp_path / "sealed", block_size=block_size)
    sealed = Sealed(tmp_path / "sealed", source, keys_dir)
    assert sealed.faults() == []
    assert sealed.read() == {"large": (source / "large").read_bytes()}


@pytest.mark.fuse
def test_the_disk_is_full_in_the_middle(keys_dir: KeySet, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "src", {"large": os.urandom(20 * MIB), "small": b"small"})
    with small_disk(tmp_path) as disk:
        with pytest.raises(StoreError, match="the disk is full; make room"):
            seal(keys_dir, source, disk / "sealed")
        assert all(path.stat().st_size < MIB for path in (disk / "sealed" / "blobs").iterdir()), "the unfinished blob is still there"
        os.truncate(source / "large", MIB)
        seal(keys_dir, source, disk / "sealed")


@pytest.mark.fuse
def test_a_disk_that_is_too_small_is_said_at_once(keys_dir: KeySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_tree(tmp_path / "src", {"large": os.urandom(LARGE)})
    encrypted = Counter[str]()
    really = BlobCipher.encrypt_block

    def count(self: BlobCipher, *arguments: object) -> None:
        encrypted["blocks"] += 1
        really(self, *arguments)

    monkeypatch.setattr(BlobCipher, "encrypt_block", count)
    with mounted(tmp_path / "tmpfs", "-t", "tmpfs", "-o", "size=4m", "none") as place:
        with pytest.raises(StoreError, match="the disk is full; make room"):
            seal(keys_dir, source, place / "sealed")
        assert left_in(place / "sealed") == []
    assert not encrypted


def disturb(at: int, action: Callable[[], None]) -> Callable[[int], None]:
    """A progress that acts once, when `at` bytes are read."""
    done = Counter[str]()

    def progress(count: int) -> None:
        before, done["bytes"] = done["bytes"], done["bytes"] + count
        if before < at <= done["bytes"]:
            action()

    return progress


@pytest.mark.parametrize("at", [1, LARGE // 2, LARGE])
@pytest.mark.parametrize("how", ["shorter", "longer", "other bytes"])
def test_a_source_that_changes_leaves_no_blob(keys_dir: KeySet, tmp_path: Path, how: str, at: int) -> None:
    source = write_tree(tmp_path / "src", {"large": os.urandom(LARGE)})
    path = source / "large"

    def change() -> None:
        if how == "shorter":
            os.truncate(path, LARGE // 4)
        elif how == "longer":
            os.truncate(path, LARGE + 1)
        else:
            with path.open("r+b") as file:
                file.write(b"other")

    with pytest.raises(SourceChangedError):
        seal(keys_dir, source, tmp_path / "sealed", progress=disturb(at, change))
    assert left_in(tmp_path / "sealed") == []


def test_stopping_in_the_middle_leaves_no_blob(keys_dir: KeySet, tmp_path: Path) -> None:
    source, stop = write_tree(tmp_path / "src", {"large": os.urandom(LARGE)}), threading.Event()
    with pytest.raises(Cancelled):
        seal(keys_dir, source, tmp_path / "sealed", progress=disturb(LARGE // 2, stop.set), stop=stop)
    assert left_in(tmp_path / "sealed") == []


@pytest.mark.parametrize("number", range(3))
def test_a_piece_that_cannot_be_encrypted_holds_up_nobody(
    keys_dir: KeySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Those after it wait for its seam: it must not be for ever."""
    source = write_tree(tmp_path / "src", {"large": os.urandom(LARGE)})
    really = BlobCipher.encrypt_block
    broken = number * SEGMENT_SIZE // 131072

    def encrypt(self: BlobCipher, index: int, plaintext: memoryview, out: memoryview) -> None:
        if index == broken and len(plaintext) == 131072:
            raise MemoryError
        really(self, index, plaintext, out)

    monkeypatch.setattr(BlobCipher, "encrypt_block", encrypt)
    with pytest.raises((ModelfsError, MemoryError)):
        seal(keys_dir, source, tmp_path / "sealed", block_size=131072)
    assert left_in(tmp_path / "sealed") == []
