"""AES-256-GCM of blocks and of small records (docs/FORMAT.md sections 2.1, 5 and 7; NIST SP 800-38D)."""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from modelfs.errors import BlockAuthError
from modelfs.format.geometry import TAG_SIZE, Geometry

NONCE_SIZE = 12

Buffer = bytes | bytearray | memoryview


class BlobCipher:
    """Encrypts or decrypts the blocks of one blob. Holds the blob key until the process ends: Python cannot wipe it."""

    def __init__(self, blob_key: bytes, blob_id: str, shape: Geometry) -> None:
        """Bind a cipher to one blob.

        Args:
            blob_key: 32 bytes, used for this blob and no other.
            blob_id: 32 hex digits.
            shape: The blob's sizes; they are authenticated with every block.
        """
        if len(blob_key) != 32:
            raise ValueError("a blob key is 32 bytes")
        self._aead = AESGCM(blob_key)
        self._last = shape.block_count - 1
        self._aad = b"".join(
            (
                b"modelfs/1\0",
                bytes.fromhex(blob_id),
                shape.block_count.to_bytes(8, "big"),
                shape.size.to_bytes(8, "big"),
            )
        )

    def _nonce(self, index: int) -> bytes:
        # The STREAM construction. Each index is encrypted once under a blob key, so a counter is a nonce.
        return index.to_bytes(NONCE_SIZE - 1, "big") + (b"\1" if index == self._last else b"\0")

    def encrypt_block(self, index: int, plaintext: Buffer, out: memoryview) -> None:
        """Encrypt block `index` into `out`, which is exactly TAG_SIZE longer than `plaintext`."""
        self._aead.encrypt_into(self._nonce(index), plaintext, self._aad, out)

    def decrypt_block(self, index: int, ciphertext: memoryview, out: memoryview) -> None:
        """Decrypt block `index` into `out`, which is exactly TAG_SIZE shorter than `ciphertext`.

        Raises:
            BlockAuthError: The tag does not fit: wrong key, moved, truncated or altered. `out` is wiped, because the library
                writes plaintext before it compares the tag.
        """
        try:
            self._aead.decrypt_into(self._nonce(index), ciphertext, self._aad, out)
        except InvalidTag:
            out[:] = bytes(len(out))
            raise BlockAuthError("tag mismatch") from None


def encrypt_record(key: bytes, nonce: bytes, aad: bytes, plaintext: bytes) -> bytes:
    """Encrypt a small record: ciphertext || tag. The caller never repeats a nonce under a key."""
    if len(nonce) != NONCE_SIZE:
        raise ValueError("a nonce is 12 bytes")  # the library would take 8 to 128
    return AESGCM(key).encrypt(nonce, plaintext, aad)


def decrypt_record(key: bytes, nonce: bytes, aad: bytes, ciphertext: bytes) -> bytes | None:
    """Inverse of `encrypt_record`; None when it does not authenticate."""
    if len(nonce) != NONCE_SIZE:
        raise ValueError("a nonce is 12 bytes")
    if len(ciphertext) < TAG_SIZE:
        return None
    try:
        return AESGCM(key).decrypt(nonce, ciphertext, aad)
    except InvalidTag:
        return None
