"""A sealed model of any size that takes no room: signed and whole but for the blobs' content, which nobody has encrypted (sparse files).

What a mount does before it is ready, it does with all of it; a read of a synthetic file fails, as it must. One small file is real.
"""

import os
import shutil
from datetime import UTC, datetime
from pathlib import Path

from benchmark.candidates import MODEL, Modelfs, make_keys, seal_command
from benchmark.system import run
from modelfs.crypto.aead import BlobCipher
from modelfs.crypto.digests import leaf_hash, page_hashes, root_hash
from modelfs.crypto.kdf import index_key
from modelfs.crypto.signatures import load_trusted_keys
from modelfs.crypto.signing import load_signer, sign_payload
from modelfs.format import canonical
from modelfs.format.envelope import serialize_envelope
from modelfs.format.geometry import TAG_SIZE, geometry
from modelfs.format.index import FileEntry, build_index
from modelfs.format.manifest import MANIFEST_TYPE, BlobEntry, Manifest
from modelfs.keys.file import open_provider
from modelfs.keys.interface import unwrap_dek
from modelfs.reader.index import fetch_index, open_index
from modelfs.store.local import Store
from modelfs.trust.release import read_keys, read_release


class SyntheticModelfs(Modelfs):
    """modelfs over a synthetic model."""

    def __init__(self, work: Path, files: int, file_size: int) -> None:
        """A directory of its own for each number and size."""
        super().__init__("modelfs", work / f"synthetic-{files}-{file_size}", work / f"synthetic-{files}-{file_size}.work")
        self.files, self.file_size = files, file_size

    def prepare(self) -> None:
        """Seal one file and one directory, then describe the others."""
        keys = self.work / "keys"
        make_keys(keys)
        (self.source / "layers").mkdir(parents=True)
        (self.source / "config.json").write_text("{}\n")
        run(*seal_command(self.source, self.store, keys))
        describe_files(self.store, keys, self.files, self.file_size)

    def remove(self) -> None:
        """Take all of it off the disk."""
        for directory in (self.source, self.work):
            shutil.rmtree(directory, ignore_errors=True)


def describe_files(sealed: Path, keys: Path, files: int, size: int) -> None:
    """Add `layers/N` to a sealed model and sign it anew."""
    with Store(sealed) as store:
        manifest = read_release(store, load_trusted_keys([keys / "sign.pub"]), model=MODEL, now=datetime.now(UTC)).manifest
        dek = unwrap_dek(open_provider(str(keys / "kek")), read_keys(store, manifest), manifest)
        index = open_index(fetch_index(store, manifest), manifest, dek)
    added = [_file(f"layers/{number:07}", size) for number in range(files)]
    shape = geometry(size, manifest.block_size)
    for entry in added:
        path = sealed / "blobs" / entry.blob
        _make_sparse(path, shape.ciphertext_size)
        if shape.digests_size:
            _make_sparse(path.with_suffix(".digests"), shape.digests_size)
    table = build_index([*index.entries, *added])
    index_blob = _write_index(sealed, manifest, dek, canonical.serialize(table))
    blobs = [blob for blob in manifest.blobs if blob.id != manifest.index]
    blobs += [index_blob, *(BlobEntry(id=entry.blob, root=os.urandom(32).hex(), size=size) for entry in added)]
    signed = manifest.model_copy(update={"blobs": sorted(blobs, key=lambda blob: blob.id), "index": index_blob.id})
    envelope = serialize_envelope(sign_payload(canonical.serialize(signed), MANIFEST_TYPE, load_signer(keys / "sign")))
    (sealed / "manifest.json").write_bytes(envelope)


def _file(path: str, size: int) -> FileEntry:
    digest, key = os.urandom(32).hex(), os.urandom(32).hex()
    return FileEntry(blob=os.urandom(16).hex(), digest=digest, key=key, kind="file", mode=0o444, mtime=0, path=path, size=size)


def _make_sparse(path: Path, size: int) -> None:
    with path.open("wb") as file:
        file.truncate(size)


def _write_index(sealed: Path, manifest: Manifest, dek: bytes, plaintext: bytes) -> BlobEntry:
    """The one blob besides config.json that is really encrypted."""
    blob_id, shape = os.urandom(16).hex(), geometry(len(plaintext), manifest.block_size)
    cipher = BlobCipher(index_key(dek, blob_id), blob_id, shape)
    leaves = b""
    with (sealed / "blobs" / blob_id).open("wb") as file:
        for number in range(shape.block_count):
            part = plaintext[number * shape.block_size :][: shape.block_size]
            block = memoryview(bytearray(len(part) + TAG_SIZE))
            cipher.encrypt_block(number, memoryview(part), block)
            leaves += leaf_hash(manifest.digest, block)
            file.write(block)
    pages = page_hashes(manifest.digest, leaves)
    if shape.block_count > 1:
        (sealed / "blobs" / f"{blob_id}.digests").write_bytes(pages + leaves)
    return BlobEntry(id=blob_id, root=root_hash(manifest.digest, pages).hex(), size=shape.size)
