"""One blob of an earlier release, encrypted anew: verified and decrypted block by block, encrypted under a key of its own.

Plaintext is in private memory for as long as one segment takes, never on a disk. The plaintext's digest is the one that the earlier index
names: every block was checked against the signed tree, so nothing has to be digested in order, and all segments are independent.
"""

import contextlib
import os
import threading
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass

from modelfs.cache.scratch import page_aligned
from modelfs.crypto.aead import BlobCipher
from modelfs.errors import BlobNotFoundError, BlockAuthError, ModelfsError, VerificationError
from modelfs.format.fields import ID_SIZE, KEY_SIZE
from modelfs.format.geometry import Geometry, geometry
from modelfs.format.index import FileEntry
from modelfs.format.manifest import BlobEntry
from modelfs.reader.blob import BlobReader, ReadBuffers
from modelfs.seal.encrypt import SEGMENT_SIZE, Cancelled, FinishedBlob, SealPass, encrypt_segment
from modelfs.store.local import store_error

_local = threading.local()
"""Memory for plaintext and buffers of a reader, one of each for each thread."""


@dataclass(frozen=True)
class EarlierFile:
    """A file of a verified release."""

    entry: FileEntry
    blob: BlobEntry

    @property
    def path(self) -> str:
        """As the sealed tree names it."""
        return self.entry.path

    @property
    def size(self) -> int:
        """Plaintext bytes."""
        return self.entry.size

    @property
    def mode(self) -> int:
        """Permission bits."""
        return self.entry.mode

    @property
    def mtime(self) -> int:
        """Nanoseconds since 1970."""
        return self.entry.mtime

    @property
    def identity(self) -> str:
        """The blob: its content is signed and never changes."""
        return self.blob.id

    def check_unchanged(self) -> None:
        """What was read of it was verified: what becomes of it afterwards does not matter."""


def reencrypt_blob(seal: SealPass, source: EarlierFile) -> FinishedBlob:
    """Encrypt an earlier blob into a new one, all cores at once.

    Raises:
        VerificationError: The earlier blob is not what was signed.
        StoreError: It cannot be read, or the new one not be written.
        Cancelled: `seal.stop` was set.
    """
    # Drawn here and used for this pass alone, as for a source file: no nonce is ever used twice.
    blob_id, key = seal.entropy(ID_SIZE).hex(), seal.entropy(KEY_SIZE)
    shape = geometry(source.size, seal.block_size)
    try:
        out = seal.store.create_blob(blob_id)
        try:
            leaves = _encrypt(seal, source, BlobCipher(key, blob_id, shape), shape, out)
            os.fsync(out)
        finally:
            os.close(out)
        entry = seal.finish(blob_id, shape, leaves)
    except BaseException as exc:
        with contextlib.suppress(ModelfsError):
            seal.store.remove_blob(blob_id)
        if isinstance(exc, OSError):
            raise store_error(f"write a blob in {seal.store.root}", exc) from exc
        if isinstance(exc, BlockAuthError | BlobNotFoundError):
            kind = VerificationError if isinstance(exc, BlockAuthError) else BlobNotFoundError
            raise kind(
                f"{source.path} cannot be encrypted anew, its blob {source.blob.id} is damaged: {exc}; "
                "fetch that blob again, or seal a new release from the source"
            ) from exc
        raise
    return FinishedBlob(source, entry, key, source.entry.digest)


def _encrypt(seal: SealPass, source: EarlierFile, cipher: BlobCipher, shape: Geometry, out: int) -> bytes:
    """All leaves of the new blob."""
    step = max(SEGMENT_SIZE, shape.block_size)
    readers: dict[int, BlobReader] = {}

    def work(start: int) -> bytes:
        if seal.stop.is_set():
            raise Cancelled
        plaintext = _memory(step)[: min(step, shape.size - start)]
        _reader(seal, source, shape, readers).read_into(start, plaintext)
        leaves = encrypt_segment(cipher, shape, seal.digest, plaintext, start, out)
        seal.progress(len(plaintext))
        return leaves

    if shape.size <= step:
        try:
            return work(0)
        finally:
            _close(readers)
    leaves: list[bytes] = []
    begun: deque[Future[bytes]] = deque()
    limit = 2 * (os.cpu_count() or 1)
    try:
        for start in range(0, shape.size, step):
            begun.append(seal.pool.submit(work, start))
            if len(begun) > limit:
                leaves.append(begun.popleft().result())
        while begun:
            leaves.append(begun.popleft().result())
    finally:
        for future in begun:  # after a failure: nobody may write to `out` once it is closed
            future.cancel()
            with contextlib.suppress(BaseException):
                future.result()
        _close(readers)
    return b"".join(leaves)


def _reader(seal: SealPass, source: EarlierFile, shape: Geometry, readers: dict[int, BlobReader]) -> BlobReader:
    """This thread's own reader of the earlier blob."""
    me = threading.get_ident()
    reader = readers.get(me)
    if reader is None:
        if not hasattr(_local, "buffers"):
            _local.buffers = ReadBuffers()
        key = source.entry.blob_key
        reader = readers[me] = BlobReader(seal.store, source.blob, shape, seal.digest, key, _local.buffers)
    return reader


def _close(readers: dict[int, BlobReader]) -> None:
    for reader in readers.values():
        reader.close()


def _memory(size: int) -> memoryview:
    if len(getattr(_local, "memory", b"")) < size:
        _local.memory = page_aligned(size)
    memory: memoryview = _local.memory
    return memory
