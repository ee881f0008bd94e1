"""Taking over the blobs of unchanged files from the release before, by content: same plaintext digest, same blob."""

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field

from modelfs.crypto.digests import new_hasher
from modelfs.errors import BlockAuthError, FormatError, KeyAccessError, KeyServiceError, StoreError, VerificationError
from modelfs.format.index import FileEntry
from modelfs.format.limits import MIB
from modelfs.format.manifest import BlobEntry, Manifest
from modelfs.keys.interface import KeyProvider
from modelfs.keys.several import unwrap_by_any
from modelfs.reader.index import fetch_index, open_index
from modelfs.reader.verify import verify_blob
from modelfs.seal.encrypt import Cancelled, FinishedBlob, SealPass, open_source
from modelfs.seal.scan import SourceFile
from modelfs.store.local import Store, pread_exact
from modelfs.trust.release import VerifiedRelease, read_keys


@dataclass
class EarlierBlobs:
    """Blobs of a verified release that a new one may name, each once. Thread-safe."""

    manifest: Manifest
    blobs: dict[str, BlobEntry]
    by_size: dict[int, list[FileEntry]]
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def has_size(self, size: int) -> bool:
        """Whether hashing a file of `size` bytes could pay."""
        return bool(self.by_size.get(size))

    def claim(self, path: str, size: int, digest: str) -> FileEntry | None:
        """An entry with this content, preferably of this path, that nobody else gets."""
        with self._lock:
            found = [entry for entry in self.by_size.get(size, ()) if entry.digest == digest]
            found.sort(key=lambda entry: entry.path != path)
            if found:
                self.by_size[size].remove(found[0])
            return found[0] if found else None


def earlier_blobs(store: Store, release: VerifiedRelease, providers: Sequence[KeyProvider], seal: SealPass) -> EarlierBlobs | str:
    """The blobs of the release before, or why none can be reused.

    The manifest is verified and the commitment checked before a key of the index is believed.
    """
    manifest = release.manifest
    if (manifest.block_size, manifest.digest) != (seal.block_size, seal.digest):
        return "block size or digest differ"
    try:
        dek, _kek = unwrap_by_any(providers, read_keys(store, manifest), manifest)
        index = open_index(fetch_index(store, manifest), manifest, dek)
    except KeyServiceError:
        raise  # later it may: better to seal then than to encrypt everything anew
    except KeyAccessError:
        return "the KEK does not open it"
    except (StoreError, FormatError, VerificationError, BlockAuthError) as exc:
        return f"it is damaged: {exc}"
    by_size: dict[int, list[FileEntry]] = {}
    for entry in index.files:
        by_size.setdefault(entry.size, []).append(entry)
    return EarlierBlobs(manifest, {blob.id: blob for blob in manifest.blobs}, by_size)


def reuse_blob(seal: SealPass, earlier: EarlierBlobs, source: SourceFile) -> FinishedBlob | None:
    """The earlier blob that holds exactly this file's bytes, itself checked block by block; None if there is none.

    Raises:
        SourceChangedError, ConfigError, Cancelled: As `SealPass.encrypt_file`.
    """
    if not earlier.has_size(source.size):
        return None
    digest = _digest_source(seal, source)
    entry = earlier.claim(source.path, source.size, digest)
    if entry is None:
        return None
    blob = earlier.blobs[entry.blob]
    if verify_blob(seal.store, blob, earlier.manifest.geometry(blob), seal.digest, seal.pool):
        return None  # damaged: it is encrypted anew
    seal.progress(source.size)
    return FinishedBlob(source, blob, entry.blob_key, digest)


def _digest_source(seal: SealPass, source: SourceFile) -> str:
    hasher = new_hasher(seal.digest)
    buffer = memoryview(bytearray(min(MIB, max(1, source.size))))
    fd = open_source(source)
    with open(fd, "rb", buffering=0):
        for start in range(0, source.size, len(buffer)):
            if seal.stop.is_set():
                raise Cancelled
            part = buffer[: min(len(buffer), source.size - start)]
            if not pread_exact(fd, part, start):
                break
            hasher.update(part)
        source.check_unchanged(fd)
    return hasher.digest().hex()
