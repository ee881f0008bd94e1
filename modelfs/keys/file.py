"""The embedded default: a KEK that is a file of 32 random bytes (docs/FORMAT.md section 5, scheme `file`)."""

import os
from pathlib import Path

from modelfs.crypto.aead import NONCE_SIZE, decrypt_record, encrypt_record
from modelfs.crypto.kdf import file_kek_id, file_kek_wrap_key
from modelfs.crypto.keyfiles import create_private, read_private
from modelfs.errors import ConfigError, KeyAccessError
from modelfs.format.keysfile import Recipient, recipient
from modelfs.keys.interface import KeyProvider

KEK_SIZE = 32


class FileProvider(KeyProvider):
    """Wraps with AES-256-GCM under a key derived from the file. Reads the file once, when it is made."""

    scheme = "file"
    is_service = False

    def __init__(self, kek: bytes) -> None:
        """Take the 32 bytes of a KEK."""
        self._wrap = file_kek_wrap_key(kek)
        self._id = file_kek_id(kek)

    def describe(self) -> str:
        """`file:` and the short id, never the path."""
        return f"file:{self._id}"

    def is_recipient(self, recipient: Recipient) -> bool:
        """Same scheme and short id."""
        return recipient.scheme == self.scheme and recipient.key_ref == self._id

    def _wrap_key(self, dek: bytes, context: bytes) -> Recipient:
        # Random nonces: a KEK wraps far fewer than the 2^32 keys that SP 800-38D 8.3 allows.
        nonce = os.urandom(NONCE_SIZE)
        return recipient(self.scheme, self._id, "", nonce + encrypt_record(self._wrap, nonce, context, dek))

    def _unwrap_key(self, recipient: Recipient, context: bytes) -> bytes | None:
        wrapped = recipient.wrapped_key
        if len(wrapped) != NONCE_SIZE + 32 + 16:
            return None
        return decrypt_record(self._wrap, wrapped[:NONCE_SIZE], context, wrapped[NONCE_SIZE:])


def generate_kek(path: Path) -> str:
    """Write a new KEK file (0600) and return how it is called; ConfigError if it exists."""
    kek = os.urandom(KEK_SIZE)
    create_private(path, kek)
    return f"file:{file_kek_id(kek)}"


def open_provider(reference: str) -> FileProvider:
    """The provider of `file:PATH`.

    Raises:
        KeyAccessError: The file is missing, open to others, or not 32 bytes.
    """
    try:
        kek = read_private(Path(reference), KEK_SIZE, "KEK")
    except ConfigError as exc:
        raise KeyAccessError(str(exc)) from None
    if len(kek) != KEK_SIZE:
        raise KeyAccessError(f"the KEK {reference} is not {KEK_SIZE} bytes: make one with `modelfs keygen kek`")
    return FileProvider(kek)
