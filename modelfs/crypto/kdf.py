"""Key derivation: HKDF-SHA-256 (RFC 5869), one label for each purpose (docs/FORMAT.md sections 4, 5 and 7; the table's: docs/DESIGN.md)."""

import hmac

from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF


def _derive(ikm: bytes, info: bytes, salt: bytes | None = None, length: int = 32) -> bytes:
    if len(ikm) != 32:
        raise ValueError("a key to derive from is 32 bytes")
    return HKDF(SHA256(), length, salt, info).derive(ikm)


def key_commitment(dek: bytes) -> bytes:
    """32 public bytes that commit to `dek`."""
    return _derive(dek, b"modelfs/1/commitment")


def commitment_agrees(dek: bytes, commitment_hex: str) -> bool:
    """Compare in constant time; do this before `dek` decrypts anything."""
    return hmac.compare_digest(key_commitment(dek), bytes.fromhex(commitment_hex))


def index_key(dek: bytes, blob_id: str) -> bytes:
    """The blob key of the index `blob_id` (hex); a new id gives a new key, so an index may be written again."""
    return _derive(dek, b"modelfs/1/index", bytes.fromhex(blob_id))


def table_key(dek: bytes, table_id: str) -> bytes:
    """The key of one mount's table, whose id (hex) is random and new for each."""
    return _derive(dek, b"modelfs/1/table", bytes.fromhex(table_id))


def journal_key(dek: bytes, journal_id: str) -> bytes:
    """The key of one journal file, whose id (hex) is new for each run."""
    return _derive(dek, b"modelfs/1/journal", bytes.fromhex(journal_id))


def file_kek_wrap_key(kek: bytes) -> bytes:
    """What a `file:` KEK wraps with."""
    return _derive(kek, b"modelfs/1/kek-file-wrap")


def file_kek_id(kek: bytes) -> str:
    """What a `file:` recipient entry calls its KEK: 16 hex digits, never a path."""
    return _derive(kek, b"modelfs/1/kek-file-id", length=8).hex()
