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
from modelfs.store.local import Store, pread_exact, store_error

SEGMENT_SIZE = 1 * MIB
"""Bytes that one thread encrypts at a time; a power of two, so a whole number of blocks."""

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
                    encrypt_segment(cipher, shape, self.digest, memoryview(plaintext)[start : start + step], start, out)
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
        """All leaves of the blob. Reading and the plaintext's digest go in order here; encrypting goes on in the pool."""
        leaves: list[bytes] = []
        segments: deque[tuple[Future[bytes], memoryview]] = deque()
        free: list[memoryview] = []
        limit = 2 * (os.cpu_count() or 1)
        step = max(SEGMENT_SIZE, shape.block_size)

        def collect() -> None:
            segment, memory = segments.popleft()
            leaves.append(segment.result())
            free.append(memory)

        try:
            for start in range(0, max(1, shape.size), step):
                if self.stop.is_set():
                    raise Cancelled
                memory = free.pop() if free else page_aligned(min(step, max(1, shape.size)))
                plaintext = memory[: min(step, shape.size - start)]
                if not pread_exact(fd, plaintext, start):
                    raise SourceChangedError(f"{source.path} became shorter while it was sealed: seal again when it is at rest")
                if shape.size <= step:
                    plain.update(plaintext)
                    self.progress(len(plaintext))
                    return encrypt_segment(cipher, shape, self.digest, plaintext, start, out)
                segments.append((self.pool.submit(encrypt_segment, cipher, shape, self.digest, plaintext, start, out), memory))
                plain.update(plaintext)
                self.progress(len(plaintext))
                if len(segments) > limit:
                    collect()
            while segments:
                collect()
        finally:
            for segment, _ in segments:  # after a failure: nobody may write to `out` once it is closed
                segment.cancel()
                with contextlib.suppress(BaseException):
                    segment.result()
        return b"".join(leaves)


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


def encrypt_segment(cipher: BlobCipher, shape: Geometry, digest: DigestName, plaintext: memoryview, start: int, out: int) -> bytes:
    """Encrypt a whole number of blocks that begins at plaintext offset `start`; their leaves, joined."""
    first = start // shape.block_size
    count = max(1, -(-len(plaintext) // shape.block_size))
    if not hasattr(_local, "scratch"):
        _local.scratch = Scratch()
    offset = shape.block_offset(first)
    framed = _local.scratch.framed(offset, len(plaintext) + TAG_SIZE * count)
    leaves: list[bytes] = []
    for number in range(count):
        begin = number * shape.block_size
        part = plaintext[begin : begin + shape.block_size]
        at = number * (shape.block_size + TAG_SIZE)
        block = framed[at : at + 1 + len(part) + TAG_SIZE]
        cipher.encrypt_block(first + number, part, block[1:])
        before = block[0]  # the last byte of the block before: the digest's prefix takes its place for a moment
        leaves.append(leaf_hash_in_place(digest, block))
        block[0] = before
    ciphertext, done = framed[1:], 0
    while done < len(ciphertext):
        done += os.pwrite(out, ciphertext[done:], offset + done)
    # Have the disk begin now: the fsync at the end would otherwise wait for all of it at once.
    with contextlib.suppress(OSError):
        os.posix_fadvise(out, offset, len(ciphertext), os.POSIX_FADV_DONTNEED)
    return b"".join(leaves)
