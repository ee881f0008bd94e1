"""Reading back what was sealed: pages of the digest tree, caches, whole blobs."""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event

import pytest

from modelfs.crypto.kdf import index_key
from modelfs.errors import BlobNotFoundError, BlockAuthError, FormatError, VerificationError
from modelfs.format import canonical
from modelfs.format.geometry import LEAVES_PER_PAGE, Geometry, geometry
from modelfs.format.index import build_index
from modelfs.format.manifest import BlobEntry
from modelfs.reader import stream as stream_module
from modelfs.reader.blob import BlobReader, ReadBuffers, decrypt_whole, verify_whole
from modelfs.reader.index import fetch_index, open_index
from modelfs.reader.verify import verify_blob
from modelfs.seal.encrypt import SealPass
from modelfs.store.local import Store
from tests.conftest import SealedBuilder
from tests.helpers import BLOCK

KEY, ID = b"k" * 32, "ab" * 16
POOL = ThreadPoolExecutor(2)


@contextmanager
def written(root: Path, plaintext: bytes, digest: str = "blake3", block_size: int = BLOCK) -> Iterator[tuple[Store, BlobEntry, Geometry]]:
    (root / "blobs").mkdir(exist_ok=True)
    with Store(root) as store, ThreadPoolExecutor(1) as pool:
        seal = SealPass(store, block_size, digest, os.urandom, lambda _: None, Event(), pool)
        yield store, seal.write_bytes(plaintext, ID, KEY), geometry(len(plaintext), block_size)


def read(reader: BlobReader, offset: int, length: int) -> bytes:
    out = bytearray(length)
    return bytes(out[: reader.read_into(offset, memoryview(out))])


@pytest.mark.parametrize("digest", ["blake3", "sha256"])
def test_blob_with_more_than_one_page_of_leaves(tmp_path: Path, digest: str) -> None:
    plaintext = os.urandom(BLOCK) * LEAVES_PER_PAGE + os.urandom(2 * BLOCK + 5)
    with written(tmp_path, plaintext, digest) as (store, entry, shape):
        assert shape.page_count == 2
        reader = BlobReader(store, entry, shape, digest, KEY, ReadBuffers())
        edge = LEAVES_PER_PAGE * BLOCK
        for offset, length in ((edge - 10, 20), (0, 100), (len(plaintext) - 3, 10), (edge, BLOCK)):
            assert read(reader, offset, length) == plaintext[offset : offset + length]
        reader.close()
        verify_whole((tmp_path / "blobs" / ID).read_bytes(), entry, shape, digest)
        assert verify_blob(store, entry, shape, digest, POOL) == []


@pytest.mark.parametrize("page", [0, 1])
def test_damage_of_one_page_of_leaves_leaves_the_other_readable(tmp_path: Path, page: int) -> None:
    plaintext = bytes(LEAVES_PER_PAGE * BLOCK + 1)
    with written(tmp_path, plaintext) as (store, entry, shape):
        path = tmp_path / "blobs" / f"{ID}.digests"
        data = bytearray(path.read_bytes())
        data[shape.page_offset(page)] ^= 1
        path.write_bytes(data)
        reader = BlobReader(store, entry, shape, "blake3", KEY, ReadBuffers())
        offsets = [0, LEAVES_PER_PAGE * BLOCK]
        with pytest.raises(BlockAuthError, match=f"page {page} of the digest tree"):
            read(reader, offsets[page], 1)
        assert read(reader, offsets[1 - page], 1) == b"\0"
        reader.close()
        # The blob itself is whole, and verify says so.
        (fault,) = verify_blob(store, entry, shape, "blake3", POOL)
        assert (fault.what, fault.found) == ("digests file", "altered")


def test_damage_of_block_and_leaves_cannot_be_told_apart_within_a_page_only(tmp_path: Path) -> None:
    plaintext = bytes(LEAVES_PER_PAGE * BLOCK + 2 * BLOCK)
    with written(tmp_path, plaintext) as (store, entry, shape):
        digests, blob = tmp_path / "blobs" / f"{ID}.digests", tmp_path / "blobs" / ID
        with open(digests, "r+b") as file:
            file.seek(shape.page_offset(0))
            file.write(b"\xff")
        with open(blob, "r+b") as file:
            file.seek(shape.block_offset(7))
            file.write(b"\xff")
            file.seek(shape.block_offset(LEAVES_PER_PAGE + 1))
            file.write(b"\xff")
        first, second = verify_blob(store, entry, shape, "blake3", POOL)
        assert first.block is None
        assert "blocks 0 to 4095" in first.what
        assert second.block == LEAVES_PER_PAGE + 1


def test_a_block_is_decrypted_once_for_small_sequential_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plaintext = os.urandom(3 * BLOCK)
    with written(tmp_path, plaintext) as (store, entry, shape):
        reader = BlobReader(store, entry, shape, "blake3", KEY, ReadBuffers())
        reads: list[int] = []
        really = stream_module.pread_up_to
        monkeypatch.setattr(stream_module, "pread_up_to", lambda fd, buffer, at: (reads.append(at), really(fd, buffer, at))[1])
        assert b"".join(read(reader, at, 64) for at in range(0, len(plaintext), 64)) == plaintext
        assert reads == [shape.block_offset(index) for index in range(3)]
        reader.close()


def test_cached_block_is_owned_and_not_overwritten_by_later_reads(tmp_path: Path) -> None:
    plaintext = os.urandom(3 * BLOCK)
    with written(tmp_path, plaintext) as (store, entry, shape):
        buffers = ReadBuffers()
        reader = BlobReader(store, entry, shape, "blake3", KEY, buffers)
        assert read(reader, 0, 10) == plaintext[:10]
        read(reader, BLOCK, 2 * BLOCK)
        buffers.ciphertext.framed(0, 2 * BLOCK)[:] = bytes(2 * BLOCK + 1)
        assert read(reader, 5, 100) == plaintext[5:105]
        reader.close()


def test_descriptors_are_closed(tmp_path: Path) -> None:
    with written(tmp_path, bytes(3 * BLOCK)) as (store, entry, shape):
        before = len(os.listdir("/proc/self/fd"))
        for _ in range(20):
            reader = BlobReader(store, entry, shape, "blake3", KEY, ReadBuffers())
            read(reader, 0, 2 * BLOCK)
            reader.close()
        (tmp_path / "blobs" / ID).unlink()
        for _ in range(20):
            with pytest.raises(BlobNotFoundError):
                BlobReader(store, entry, shape, "blake3", KEY, ReadBuffers())
        assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("size", [0, 1, BLOCK, BLOCK + 1, 3 * BLOCK])
def test_decrypt_whole(tmp_path: Path, size: int) -> None:
    plaintext = os.urandom(size)
    with written(tmp_path, plaintext) as (_, entry, shape):
        ciphertext = (tmp_path / "blobs" / ID).read_bytes()
        assert decrypt_whole(ciphertext, entry, shape, "blake3", KEY) == plaintext
        with pytest.raises(BlockAuthError):
            decrypt_whole(ciphertext, entry, shape, "blake3", bytes(32))
        for wrong in (ciphertext + b"\0", ciphertext[:-1], ciphertext[:-1] + bytes([ciphertext[-1] ^ 1])):
            with pytest.raises(BlockAuthError):
                decrypt_whole(wrong, entry, shape, "blake3", KEY)


def test_open_index_refuses_another_dek(sealed: SealedBuilder) -> None:
    model = sealed({"a": b"x"})
    with Store(model.path) as store, pytest.raises(BlockAuthError):
        open_index(fetch_index(store, model.manifest), model.manifest, bytes(32))


def test_open_index_checks_its_bytes_again(sealed: SealedBuilder) -> None:
    model = sealed({"a": b"x"})
    with Store(model.path) as store:
        ciphertext = bytearray(fetch_index(store, model.manifest))
    ciphertext[0] ^= 1
    with pytest.raises(BlockAuthError):
        open_index(bytes(ciphertext), model.manifest, model.dek())


@pytest.mark.parametrize("case", ["no index at all", "another set of blobs"])
def test_open_index_refuses_a_well_signed_index_that_is_none(sealed: SealedBuilder, case: str) -> None:
    """A publisher's bug, not an attack: everything authenticates, and still nothing is guessed."""
    model = sealed({"a": b"x", "b": b"y"})
    index = model.index()
    fewer = build_index([entry for entry in index.entries if entry.path != "b"])
    plaintext = b"nonsense" if case == "no index at all" else canonical.serialize(fewer)
    manifest, new = model.manifest, "cd" * 16
    with Store(model.path) as store, ThreadPoolExecutor(1) as pool:
        seal = SealPass(store, BLOCK, "blake3", os.urandom, lambda _: None, Event(), pool)
        entry = seal.write_bytes(plaintext, new, index_key(model.dek(), new))
        blobs = sorted([entry, *(blob for blob in manifest.blobs if blob.id != manifest.index)], key=lambda blob: blob.id)
        altered = manifest.model_copy(update={"index": new, "blobs": blobs})
        with pytest.raises(FormatError if case == "no index at all" else VerificationError):
            open_index(fetch_index(store, altered), altered, model.dek())
