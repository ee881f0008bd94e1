"""One uninterrupted pass over one source file: read, digest, encrypt, write, fsync. A blob that does not finish is deleted.

The blob id and blob key are drawn here, when the source is opened, and belong to this pass alone: no nonce is ever used twice.
"""

import contextlib
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from modelfs.cache.scratch import Scratch, page_aligned
from modelfs.crypto.aead import BlobCipher
from modelfs.crypto.digests import Hasher, leaf_hash_in_place, new_hasher, page_hashes, root_hash
from modelfs.errors import ConfigError, ModelfsError, SourceChangedError
from modelfs.format.fields import ID_SIZE, KEY_SIZE
from modelfs.format.geometry import TAG_SIZE, Geometry, geometry
from modelfs.format.limits import MIB
from modelfs.format.manifest import BlobEntry, DigestName
from modelfs.seal.scan import SourceFile
from modelfs.seal.source import Source
from modelfs.store.direct import PieceWriter, Seam, start_writing
from modelfs.store.local import Store, pread_exact, store_error

SEGMENT_SIZE = 2 * MIB
"""Bytes that one thread encrypts at a time; a power of two, so a whole number of blocks."""
SEGMENTS_AHEAD = 2 + 2 * min(4, os.cpu_count() or 1)
"""Segments of one file in memory, beside the one that is read: for the cores that can keep up with the digest of its plaintext, which
is one core's work, and for those that the disk takes."""

_local = threading.local()
"""Memory for ciphertext, one for each thread that encrypts."""

Entropy = Callable[[int], bytes]
Progress = Callable[[int], None]


class Cancelled(Exception):
    """The seal was told to stop; the pass removed its blob."""


@dataclass(frozen=True)
class FinishedBlob:
    """A blob that is whole on disk and fsynced; not yet its name in the directory, nor its journal line."""

    source: Source
    entry: BlobEntry
    key: bytes = field(repr=False)
    digest: str
    """Digest of the plaintext, hex."""


@dataclass(frozen=True)
class SealPass:
    """What all passes of one seal share."""

    store: Store
    block_size: int
    digest: DigestName
    entropy: Entropy
    progress: Progress
    stop: threading.Event
    pool: ThreadPoolExecutor
    """Encrypts segments of large files."""

    def encrypt_file(self, source: SourceFile) -> FinishedBlob:
        """Seal one source file into a blob of its own.

        Raises:
            SourceChangedError: It is not the file that was scanned, or changed meanwhile.
            ConfigError: It cannot be read.
            StoreError: The blob cannot be written.
            Cancelled: `stop` was set.
        """
        blob_id, key = self.entropy(ID_SIZE).hex(), self.entropy(KEY_SIZE)
        shape = geometry(source.size, self.block_size)
        fd = open_source(source)
        try:
            entry, digest = self._write_blob(blob_id, key, shape, fd, source)
        except BaseException:
            with contextlib.suppress(ModelfsError):
                self.store.remove_blob(blob_id)
            raise
        finally:
            os.close(fd)
        return FinishedBlob(source, entry, key, digest)

    def write_bytes(self, plaintext: bytes, blob_id: str, key: bytes) -> BlobEntry:
        """Seal bytes (an index) as the blob `blob_id`, which never existed before, under `key`, which is only its."""
        shape = geometry(len(plaintext), self.block_size)
        cipher = BlobCipher(key, blob_id, shape)
        step = max(SEGMENT_SIZE, self.block_size)
        try:
            out = self.store.create_blob(blob_id)
            try:
                leaves = b"".join(
                    write_segment(cipher, shape, self.digest, memoryview(plaintext)[start : start + step], start, out)
                    for start in range(0, max(1, len(plaintext)), step)
                )
                os.fsync(out)
            finally:
                os.close(out)
            return self.finish(blob_id, shape, leaves)
        except OSError as exc:
            self.store.remove_blob(blob_id)
            raise store_error(f"write a blob in {self.store.root}", exc) from exc

    def _write_blob(self, blob_id: str, key: bytes, shape: Geometry, fd: int, source: SourceFile) -> tuple[BlobEntry, str]:
        cipher = BlobCipher(key, blob_id, shape)
        plain = new_hasher(self.digest)
        try:
            out = self.store.create_blob(blob_id)
            try:
                leaves = self._encrypt(cipher, shape, fd, out, plain, source)
                os.fsync(out)
            finally:
                os.close(out)
            source.check_unchanged(fd)
            return self.finish(blob_id, shape, leaves), plain.digest().hex()
        except OSError as exc:
            raise store_error(f"write a blob in {self.store.root}", exc) from exc

    def finish(self, blob_id: str, shape: Geometry, leaves: bytes) -> BlobEntry:
        """Write the digests, durably, of a blob that is whole and fsynced; its entry for the manifest."""
        pages = page_hashes(self.digest, leaves)
        if shape.block_count > 1:
            out = self.store.create_blob(f"{blob_id}.digests")
            with open(out, "wb") as file:
                file.write(pages + leaves)
                file.flush()
                os.fsync(out)
        return BlobEntry(id=blob_id, root=root_hash(self.digest, pages).hex(), size=shape.size)

    def _encrypt(self, cipher: BlobCipher, shape: Geometry, fd: int, out: int, plain: Hasher, source: SourceFile) -> bytes:
        """All leaves of the blob. Reading and the plaintext's digest go in order here; encrypting and writing go on in the pool."""
        step = max(SEGMENT_SIZE, shape.block_size)
        if shape.size <= step:
            plaintext = page_aligned(max(1, shape.size))[: shape.size]
            self._read(fd, plaintext, 0, source)
            self._digest(plain, plaintext)
            return write_segment(cipher, shape, self.digest, plaintext, 0, out)
        writer = PieceWriter(out, shape.ciphertext_size)
        leaves: list[bytes] = []
        segments: deque[tuple[Future[bytes], memoryview]] = deque()
        free: list[memoryview] = []
        seam: Seam | None = None

        def collect() -> None:
            segment, memory = segments.popleft()
            leaves.append(segment.result())
            free.append(memory)

        try:
            for start in range(0, shape.size, step):
                memory = free.pop() if free else page_aligned(step)
                plaintext = memory[: min(step, shape.size - start)]
                self._read(fd, plaintext, start, source)
                before, seam = seam, Seam()
                segment = self.pool.submit(_write_piece, cipher, shape, self.digest, plaintext, start, writer, before, seam)
                segments.append((segment, memory))
                self._digest(plain, plaintext)
                if len(segments) > SEGMENTS_AHEAD:
                    collect()
            while segments:
                collect()
            writer.finish(seam.result() if seam else b"", shape.ciphertext_size)
        finally:
            # After a failure: nobody may write to `out` once it is closed. Last first, so that none waits for a seam that never comes.
            for segment, _ in reversed(segments):
                segment.cancel()
            for segment, _ in segments:
                with contextlib.suppress(BaseException):
                    segment.result()
        return b"".join(leaves)

    def _read(self, fd: int, plaintext: memoryview, start: int, source: SourceFile) -> None:
        if self.stop.is_set():
            raise Cancelled
        if not pread_exact(fd, plaintext, start):
            raise SourceChangedError(f"{source.path} became shorter while it was sealed: seal again when it is at rest")

    def _digest(self, plain: Hasher, plaintext: memoryview) -> None:
        plain.update(plaintext)
        self.progress(len(plaintext))


def open_source(source: SourceFile) -> int:
    """A descriptor of a source file that is still the one that was scanned; the caller closes it."""
    try:
        fd = os.open(source.real, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        raise ConfigError(f"cannot read the source file {source.path}: {os.strerror(exc.errno or 0)}") from exc
    try:
        source.check_unchanged(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd


def _encrypt_blocks(cipher: BlobCipher, shape: Geometry, digest: DigestName, plaintext: memoryview, start: int) -> bytes:
    """Encrypt a whole number of blocks that begins at plaintext offset `start` into this thread's memory; their leaves, joined."""
    first = start // shape.block_size
    framed = _scratch().framed(*_place(shape, plaintext, start))
    leaves: list[bytes] = []
    for number in range(_block_count(shape, plaintext)):
        begin = number * shape.block_size
        part = plaintext[begin : begin + shape.block_size]
        at = number * (shape.block_size + TAG_SIZE)
        block = framed[at : at + 1 + len(part) + TAG_SIZE]
        cipher.encrypt_block(first + number, part, block[1:])
        before = block[0]  # the last byte of the block before: the digest's prefix takes its place for a moment
        leaves.append(leaf_hash_in_place(digest, block))
        block[0] = before
    return b"".join(leaves)


def write_segment(cipher: BlobCipher, shape: Geometry, digest: DigestName, plaintext: memoryview, start: int, out: int) -> bytes:
    """Encrypt a segment and write it as it is; its leaves, joined."""
    leaves = _encrypt_blocks(cipher, shape, digest, plaintext, start)
    offset, length = _place(shape, plaintext, start)
    ciphertext, done = _scratch().framed(offset, length)[1:], 0
    while done < length:
        done += os.pwrite(out, ciphertext[done:], offset + done)
    start_writing(out, offset, length)
    return leaves


def _write_piece(
    cipher: BlobCipher,
    shape: Geometry,
    digest: DigestName,
    plaintext: memoryview,
    start: int,
    writer: PieceWriter,
    before: Seam | None,
    after: Seam,
) -> bytes:
    """Encrypt a segment and write it as one of many pieces; its leaves, joined."""
    try:
        leaves = _encrypt_blocks(cipher, shape, digest, plaintext, start)
        place = _place(shape, plaintext, start)
        writer.write(_scratch().from_page(*place), place[0], before, after)
    finally:
        after.cancel()  # nothing, once it is set: whoever waits for it must not wait for ever
    return leaves


def _block_count(shape: Geometry, plaintext: memoryview) -> int:
    return max(1, -(-len(plaintext) // shape.block_size))


def _place(shape: Geometry, plaintext: memoryview, start: int) -> tuple[int, int]:
    """Offset and length in the blob of a segment that begins at plaintext offset `start`."""
    return shape.block_offset(start // shape.block_size), len(plaintext) + TAG_SIZE * _block_count(shape, plaintext)


def _scratch() -> Scratch:
    if not hasattr(_local, "scratch"):
        _local.scratch = Scratch()
    scratch: Scratch = _local.scratch
    return scratch
