"""The read path: plaintext of one blob, every block checked against the signed digest and then its tag.

One pread of a request's blocks into a private reused buffer, then for each block digest and decryption into the reply while
it is in the processor's cache. Nothing authenticates a shared mapping of the store, which could change between the check and
the use. There is no option to turn either check off.
"""

from collections.abc import Iterator

from modelfs.cache.lru import LruMap
from modelfs.cache.scratch import Scratch
from modelfs.cache.slots import SlotCache
from modelfs.crypto.aead import BlobCipher
from modelfs.crypto.digests import leaf_hash, tree_root
from modelfs.errors import BlockAuthError
from modelfs.format.geometry import TAG_SIZE, BlockIndex, Geometry
from modelfs.format.manifest import BlobEntry, DigestName
from modelfs.reader.stream import BlobStream
from modelfs.reader.tree import DigestTree, LeafPages
from modelfs.store.local import Store

PlainBlocks = SlotCache[tuple[str, int]]
"""Verified plaintext of blocks that were read in part, by (blob id, block): small sequential reads decrypt a block once."""


class ReadBuffers:
    """Memory that one reader reuses for every request, and the caches that all its blobs share."""

    def __init__(self) -> None:
        """Memory: the largest request's ciphertext, 64 pages of leaves (8 MiB), 8 blocks of plaintext."""
        self.ciphertext = Scratch()
        self.pages: LeafPages = LruMap(64)
        self.blocks: PlainBlocks = SlotCache(8)


class BlobReader:
    """One open blob. Not thread-safe: the buffers are reused."""

    def __init__(self, store: Store, blob: BlobEntry, shape: Geometry, digest: DigestName, key: bytes, buffers: ReadBuffers) -> None:
        """Open a blob.

        Args:
            store: Where the blob lies.
            blob: The signed entry.
            shape: Its sizes.
            digest: The release's digest.
            key: The blob key, 32 bytes.
            buffers: Shared by all blobs of one thread.

        Raises:
            BlockAuthError: The digest tree is not the signed one.
            StoreError: The blob or its digests cannot be read.
        """
        self._shape = shape
        self._id = blob.id
        self._tree = DigestTree(store, blob, shape, digest, buffers.pages)
        self._cipher = BlobCipher(key, blob.id, shape)
        self._buffers = buffers
        self._stream = BlobStream(store.open_file(f"blobs/{blob.id}"), shape.ciphertext_size)

    def close(self) -> None:
        """Close the descriptor."""
        self._stream.close()

    def read_into(self, offset: int, out: memoryview) -> int:
        """Fill `out` with plaintext from `offset`.

        Returns:
            Bytes written, less than `len(out)` only at the end of the file.

        Raises:
            BlockAuthError: A block is not what was signed; `out` holds no byte of it, and names its number.
            StoreError: The store failed.
        """
        whole_size, whole = self._shape.block_size, self._shape.block_length
        spans = list(self._shape.spans(offset, len(out)))
        stored = self._stored([index for index, _, length in spans if length == whole_size or length == whole(index)])
        done = 0
        for index, skip, length in spans:
            part = out[done : done + length]
            if length == whole_size or length == whole(index):
                self._open_block(index, next(stored), part)
            else:
                part[:] = self._block(index)[skip : skip + length]
            done += length
        return done

    def _block(self, index: BlockIndex) -> memoryview:
        key = (self._id, index)
        return self._buffers.blocks.find(key) or self._buffers.blocks.fill(
            key, self._shape.block_length(index), lambda out: self._open_block(index, next(self._stored([index])), out)
        )

    def _stored(self, indices: list[BlockIndex]) -> Iterator[memoryview]:
        """Blocks that follow each other, as stored, read at once when the first is asked for; a byte of room before each.

        The room before a block is the end of the block before it, so each has to be done with when the next is asked for.
        """
        start = self._shape.block_offset(indices[0])
        end = self._shape.block_offset(indices[-1]) + self._shape.block_length(indices[-1]) + TAG_SIZE
        framed = self._buffers.ciphertext.framed(start, end - start)
        framed = framed[: 1 + self._stream.read(framed[1:], start)]
        step = self._shape.block_size + TAG_SIZE
        for at in range(0, step * len(indices), step):
            yield framed[at : at + 1 + step]

    def _open_block(self, index: int, framed: memoryview, out: memoryview) -> None:
        try:
            if len(framed) != 1 + len(out) + TAG_SIZE:
                raise BlockAuthError("the blob is truncated")
            self._tree.verify_block(index, framed)
            self._cipher.decrypt_block(index, framed[1:], out)
        except BlockAuthError as exc:
            raise BlockAuthError(f"block {index}: {exc}") from None


def decrypt_whole(ciphertext: bytes, blob: BlobEntry, shape: Geometry, digest: DigestName, key: bytes) -> bytearray:
    """Verify and decrypt a whole small blob (an index) that lies in memory.

    Raises:
        BlockAuthError: It is not the signed blob, or the key is another.
    """
    verify_whole(ciphertext, blob, shape, digest)
    cipher = BlobCipher(key, blob.id, shape)
    plaintext = bytearray(shape.size)
    out, data = memoryview(plaintext), memoryview(ciphertext)
    for index in range(shape.block_count):
        start, length = shape.block_offset(index), shape.block_length(index)
        begin = index * shape.block_size
        cipher.decrypt_block(index, data[start : start + length + TAG_SIZE], out[begin : begin + length])
    return plaintext


def verify_whole(ciphertext: bytes, blob: BlobEntry, shape: Geometry, digest: DigestName) -> None:
    """Check a whole blob in memory against its signed root; needs no key and no digests file.

    Raises:
        BlockAuthError: Another size, or another content.
    """
    if len(ciphertext) != shape.ciphertext_size:
        raise BlockAuthError(f"blob {blob.id} is {len(ciphertext)} bytes instead of {shape.ciphertext_size}: fetch it again")
    data = memoryview(ciphertext)
    step = shape.block_size + TAG_SIZE
    root = tree_root(digest, (leaf_hash(digest, data[i * step : (i + 1) * step]) for i in range(shape.block_count)))
    if root.hex() != blob.root:
        raise BlockAuthError(f"blob {blob.id} has the root {root.hex()} instead of the signed {blob.root}: fetch it again")
