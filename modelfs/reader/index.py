"""From a verified release to its index: fetch the ciphertext (no key), then open it (DEK)."""

from modelfs.crypto.kdf import index_key
from modelfs.errors import BlockAuthError
from modelfs.format.index import Index, parse_index, verify_index_matches
from modelfs.format.manifest import Manifest
from modelfs.reader.blob import decrypt_whole, verify_whole
from modelfs.store.local import Store


def fetch_index(store: Store, manifest: Manifest) -> bytes:
    """The index's ciphertext, checked against the signed root. Needs no key.

    Raises:
        BlockAuthError: It is not the signed one.
        StoreError: It cannot be read.
    """
    blob = manifest.index_blob
    shape = manifest.geometry(blob)
    size = store.file_size(f"blobs/{blob.id}")
    if size is not None and size != shape.ciphertext_size:
        raise BlockAuthError(f"the index {blob.id} is {size} bytes instead of {shape.ciphertext_size}: fetch the model again")
    ciphertext = store.read_file(f"blobs/{blob.id}", shape.ciphertext_size)
    verify_whole(ciphertext, blob, shape, manifest.digest)
    return ciphertext


def open_index(ciphertext: bytes, manifest: Manifest, dek: bytes) -> Index:
    """Decrypt, parse and match the index of a release.

    Args:
        ciphertext: From `fetch_index`; checked again, because it may have been kept in between.
        manifest: Verified.
        dek: Agrees with the manifest's commitment.

    Raises:
        BlockAuthError, FormatError, VerificationError: It is not exactly the index that was signed.
    """
    blob = manifest.index_blob
    key = index_key(dek, blob.id)
    plaintext = decrypt_whole(ciphertext, blob, manifest.geometry(blob), manifest.digest, key)
    index = parse_index(plaintext)
    verify_index_matches(index, manifest)
    return index
