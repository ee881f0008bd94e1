"""The table's pages, encrypted into a memfd that every worker inherits; a worker decrypts what it needs and keeps the last ones.

    16 bytes table id || u64 plaintext size || pages as stored: up to 16 KiB of ciphertext and a 16-byte tag each

Encrypted as the blocks of a blob are (docs/FORMAT.md section 2.1), under a key derived from DEK and table id. The id is random and new for
each table, so the key is, and no nonce is used twice. There is no digest tree: nobody but this mount's prover has ever written here, and
the memfd is sealed.
"""

from modelfs.cache.slots import SlotCache
from modelfs.crypto.aead import BlobCipher
from modelfs.crypto.kdf import table_key
from modelfs.errors import BlockAuthError
from modelfs.format.fields import ID_SIZE
from modelfs.format.geometry import TAG_SIZE, Geometry, geometry
from modelfs.store.local import pread_exact

PAGE_SIZE = 16 * 1024
_KEPT_PAGES = 256
"""4 MiB: the upper steps of every binary search, and where readers are just now."""
_HEAD_SIZE = ID_SIZE + 8


class TablePages:
    """Decrypts pages on demand. Not thread-safe."""

    def __init__(self, fd: int, dek: bytes) -> None:
        """Open what `encrypt_pages` made.

        Args:
            fd: Holds it; stays the caller's.
            dek: Agrees with the manifest's commitment.

        Raises:
            BlockAuthError: It is too short to be a table.
        """
        head = bytearray(_HEAD_SIZE)
        size = int.from_bytes(head[ID_SIZE:], "big") if pread_exact(fd, memoryview(head), 0) else 0
        try:
            self._shape = geometry(size or -1, PAGE_SIZE)
        except ValueError:
            raise BlockAuthError("the table of this mount is damaged") from None
        self._fd = fd
        self._cipher = _cipher(dek, bytes(head[:ID_SIZE]), self._shape)
        self._stored = memoryview(bytearray(PAGE_SIZE + TAG_SIZE))
        self._kept: SlotCache[int] = SlotCache(_KEPT_PAGES)

    def page(self, number: int) -> memoryview:
        """One page of plaintext; holds until the next call.

        Raises:
            BlockAuthError: There is no such page, or it is not authentic.
        """
        return self._kept.find(number) or self._open(number)

    def _open(self, number: int) -> memoryview:
        shape = self._shape
        if number >= shape.block_count:
            raise BlockAuthError(f"the table of this mount has no page {number}")
        length = shape.block_length(number)
        stored = self._stored[: length + TAG_SIZE]

        def decrypt(out: memoryview) -> None:
            if not pread_exact(self._fd, stored, _HEAD_SIZE + shape.block_offset(number)):
                raise BlockAuthError("the table of this mount is truncated")
            self._cipher.decrypt_block(number, stored, out)

        return self._kept.fill(number, length, decrypt)


def encrypt_pages(plaintext: bytes, dek: bytes, table_id: bytes) -> bytes:
    """What `TablePages` opens.

    Args:
        plaintext: Of a `NewTable`.
        dek: 32 bytes.
        table_id: 16 random bytes that no other table has.
    """
    shape = geometry(len(plaintext), PAGE_SIZE)
    cipher = _cipher(dek, table_id, shape)
    stored = bytearray(_HEAD_SIZE + shape.ciphertext_size)
    stored[:_HEAD_SIZE] = table_id + len(plaintext).to_bytes(8, "big")
    source, out = memoryview(plaintext), memoryview(stored)[_HEAD_SIZE:]
    for number in range(shape.block_count):
        start, length, at = number * PAGE_SIZE, shape.block_length(number), shape.block_offset(number)
        cipher.encrypt_block(number, source[start : start + length], out[at : at + length + TAG_SIZE])
    return bytes(stored)


def _cipher(dek: bytes, table_id: bytes, shape: Geometry) -> BlobCipher:
    return BlobCipher(table_key(dek, table_id.hex()), table_id.hex(), shape)
