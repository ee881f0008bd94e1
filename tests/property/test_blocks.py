"""Laws of blocks: the geometry tiles, and any read of any blob is a slice of its plaintext or an error without plaintext."""

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfs.errors import BlockAuthError
from modelfs.format.geometry import DIGEST_SIZE, TAG_SIZE, Geometry, geometry
from modelfs.format.limits import MAX_FILE_SIZE
from modelfs.format.manifest import BlobEntry
from modelfs.reader.blob import BlobReader, ReadBuffers
from modelfs.reader.verify import verify_blob
from modelfs.seal.encrypt import SealPass
from modelfs.store.local import Store

POOL = ThreadPoolExecutor(2)
block_sizes = st.sampled_from([4096 << shift for shift in range(11)])


@given(st.integers(0, MAX_FILE_SIZE), block_sizes)
def test_geometry_has_an_inverse(size: int, block_size: int) -> None:
    """The ciphertext's size gives back the plaintext's: no two sizes are confused."""
    shape = geometry(size, block_size)
    step = block_size + TAG_SIZE
    blocks = max(1, -(-shape.ciphertext_size // step))
    assert blocks == shape.block_count
    assert shape.ciphertext_size - TAG_SIZE * blocks == size
    assert sum(shape.page_leaves(page) for page in range(min(shape.page_count, 50))) == min(shape.block_count, 50 * 4096)
    assert shape.digests_size == (0 if blocks == 1 else DIGEST_SIZE * (blocks + shape.page_count))


@given(st.integers(0, 1 << 30), block_sizes, st.data())
def test_last_block_ends_where_the_blob_ends(size: int, block_size: int, data: st.DataObject) -> None:
    shape = geometry(size, block_size)
    last = shape.block_count - 1
    assert shape.is_last(last)
    assert shape.block_offset(last) + shape.block_length(last) + TAG_SIZE == shape.ciphertext_size
    if last:
        index = data.draw(st.integers(0, last - 1))
        assert shape.block_length(index) == block_size
        assert shape.block_offset(index) + shape.block_length(index) + TAG_SIZE == shape.block_offset(index + 1)


@given(st.integers(0, 200_000), st.sampled_from([4096, 8192]), st.integers(0, 250_000), st.integers(0, 250_000))
def test_spans_tile_the_range(size: int, block_size: int, offset: int, length: int) -> None:
    shape = geometry(size, block_size)
    position = offset
    for span in shape.spans(offset, length):
        assert span.block_index * block_size + span.skip == position
        assert 1 <= span.length <= shape.block_length(span.block_index) - span.skip
        position += span.length
    assert position == max(offset, min(size, offset + length))


@dataclass(frozen=True)
class Written:
    store: Store
    root: Path
    entry: BlobEntry
    shape: Geometry
    digest: str
    key: bytes
    plaintext: bytes

    def reader(self, buffers: ReadBuffers) -> BlobReader:
        return BlobReader(self.store, self.entry, self.shape, self.digest, self.key, buffers)

    @property
    def path(self) -> Path:
        return self.root / "blobs" / self.entry.id


class Writer:
    """Seals blobs with random ids and keys into one directory."""

    def __init__(self, root: Path) -> None:
        (root / "blobs").mkdir()
        self.root = root
        self.store = Store(root)

    def write(self, size: int, block_size: int, digest: str) -> Written:
        plaintext, key, name = os.urandom(size), os.urandom(32), os.urandom(16).hex()
        with ThreadPoolExecutor(1) as pool:
            seal = SealPass(self.store, block_size, digest, os.urandom, lambda _: None, Event(), pool)
            entry = seal.write_bytes(plaintext, name, key)
        return Written(self.store, self.root, entry, geometry(size, block_size), digest, key, plaintext)


@pytest.fixture(scope="module")
def writer(tmp_path_factory: pytest.TempPathFactory) -> Writer:
    return Writer(tmp_path_factory.mktemp("blocks"))


@st.composite
def shapes(draw: st.DrawFn, largest: int = 6) -> tuple[int, int]:
    """(size, block size), often at and around a block's edge."""
    block_size = draw(st.sampled_from([4096, 8192]))
    edge = draw(st.integers(0, largest)) * block_size
    return max(0, edge + draw(st.sampled_from([-1, 0, 1]) | st.integers(-4096, 4096))), block_size


reads = st.tuples(st.integers(0, 60_000), st.integers(0, 60_000) | st.integers(0, 200))


@settings(max_examples=60, deadline=None)
@given(st.lists(shapes(), min_size=1, max_size=3), st.sampled_from(["blake3", "sha256"]), st.data())
def test_read_into_is_a_slice_of_the_plaintext(writer: Writer, wanted: list[tuple[int, int]], digest: str, data: st.DataObject) -> None:
    """Several blobs of one block size, reads interleaved, one set of buffers: what one read leaves behind harms no other."""
    block_size = wanted[0][1]
    blobs = [writer.write(size, block_size, digest) for size, _ in wanted]
    buffers = ReadBuffers()
    readers = [blob.reader(buffers) for blob in blobs]
    for which, (offset, length) in data.draw(st.lists(st.tuples(st.integers(0, len(blobs) - 1), reads), min_size=1, max_size=12)):
        out = bytearray(b"\xaa" * (length + 1))
        count = readers[which].read_into(offset, memoryview(out)[:length])
        expected = blobs[which].plaintext[offset : offset + length]
        assert out[:count] == expected
        assert out[count:] == b"\xaa" * (length + 1 - count), "wrote beyond what it says"
    for reader in readers:
        reader.close()


@settings(max_examples=80, deadline=None)
@given(shapes(4), st.sampled_from(["blake3", "sha256"]), st.data())
def test_any_flipped_bit_is_found_and_gives_no_plaintext(writer: Writer, shape: tuple[int, int], digest: str, data: st.DataObject) -> None:
    size, block_size = max(1, shape[0]), shape[1]
    blob = writer.write(size, block_size, digest)
    stored = bytearray(blob.path.read_bytes())
    position = data.draw(st.integers(0, len(stored) - 1))
    stored[position] ^= 1 << data.draw(st.integers(0, 7))
    blob.path.write_bytes(stored)
    bad = position // (block_size + TAG_SIZE)

    reader = blob.reader(ReadBuffers())
    for start in (bad * block_size, bad * block_size + 1):  # the whole block, and a part of it
        length = max(1, min(block_size, size - start))
        out = bytearray(length)
        if start < size:
            with pytest.raises(BlockAuthError, match=f"^block {bad}: digest"):
                reader.read_into(start, memoryview(out))
        assert bytes(out) == bytes(length), "plaintext of a bad block came out"
    for index in range(blob.shape.block_count):  # every other block is still there
        if index != bad:
            out = bytearray(blob.shape.block_length(index))
            reader.read_into(index * block_size, memoryview(out))
            assert out == blob.plaintext[index * block_size :][: len(out)]
    reader.close()
    (fault,) = verify_blob(writer.store, blob.entry, blob.shape, digest, POOL)
    assert (fault.blob, fault.block) == (blob.entry.id, bad)


@settings(max_examples=30, deadline=None)
@given(shapes(3), st.data())
def test_a_block_that_the_publisher_did_not_encrypt_fails_its_tag(writer: Writer, shape: tuple[int, int], data: st.DataObject) -> None:
    """With the signed digest out of the way: the wrong key leaves zeros, not what GCM had written by then."""
    size, block_size = max(1, shape[0]), shape[1]
    blob = writer.write(size, block_size, "blake3")
    flipped = bytearray(blob.key)
    flipped[data.draw(st.integers(0, 31))] ^= 1 << data.draw(st.integers(0, 7))
    reader = BlobReader(blob.store, blob.entry, blob.shape, "blake3", bytes(flipped), ReadBuffers())
    out = bytearray(b"\xaa" * min(size, block_size))
    with pytest.raises(BlockAuthError, match="tag mismatch"):
        reader.read_into(0, memoryview(out))
    assert bytes(out) == bytes(len(out))
    reader.close()
