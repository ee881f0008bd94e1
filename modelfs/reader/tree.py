"""The digest tree of one blob, read from `<id>.digests` a page at a time (docs/FORMAT.md section 2.2)."""

import hmac

from modelfs.cache.lru import LruMap
from modelfs.crypto.digests import leaf_hash_in_place, page_hash, root_hash
from modelfs.errors import BlockAuthError
from modelfs.format.geometry import DIGEST_SIZE, LEAVES_PER_PAGE, Geometry
from modelfs.format.manifest import BlobEntry, DigestName
from modelfs.store.local import Store, pread_exact

LeafPages = LruMap[tuple[str, int], bytes]
"""Verified pages of leaves, at most 128 KiB each, by (blob id, page): shared by all blobs of a worker."""


class DigestTree:
    """Expected leaf digests of one blob. Holds the page digests; leaves live in the shared `LeafPages`.

    The digests file is opened anew for each page: pages last for 512 MiB of plaintext, descriptors are scarcer.
    """

    def __init__(self, store: Store, blob: BlobEntry, shape: Geometry, digest: DigestName, pages: LeafPages) -> None:
        """Read the page digests and check them against the signed root.

        Raises:
            BlockAuthError: They do not hash to the root, or the file has another size.
            StoreError: They cannot be read.
        """
        self._store = store
        self._blob = blob
        self._shape = shape
        self._digest = digest
        self._pages = pages
        self._root = bytes.fromhex(blob.root)
        self._page_digests = b""
        if shape.block_count > 1:
            self._page_digests = self._read(0, DIGEST_SIZE * shape.page_count)
            if not hmac.compare_digest(root_hash(digest, self._page_digests), self._root):
                raise BlockAuthError(f"the digest tree of blob {blob.id} does not lead to the signed root")

    def _read(self, offset: int, length: int) -> bytes:
        name = f"blobs/{self._blob.id}.digests"
        buffer = bytearray(length)
        fd = self._store.open_file(name)
        with open(fd, "rb", buffering=0):
            if not pread_exact(fd, memoryview(buffer), offset):
                raise BlockAuthError(f"the digest tree of blob {self._blob.id} is truncated")
        return bytes(buffer)

    def verify_block(self, index: int, framed: memoryview) -> None:
        """Check one block as stored (ciphertext and tag), in a private buffer, against the signed tree.

        Args:
            index: Which block.
            framed: One byte, which is overwritten, and the block.

        Raises:
            BlockAuthError: It is not the block that was signed; the text says what was expected and found.
            StoreError: The tree cannot be read.
        """
        found = leaf_hash_in_place(self._digest, framed)
        if self._shape.block_count == 1:
            root = root_hash(self._digest, page_hash(self._digest, found))
            if not hmac.compare_digest(root, self._root):
                raise BlockAuthError(f"digest {root.hex()} instead of the signed {self._root.hex()}")
            return
        page, slot = divmod(index, LEAVES_PER_PAGE)
        leaves = self._pages.find((self._blob.id, page)) or self._load_page(page)
        expected = leaves[slot * DIGEST_SIZE : (slot + 1) * DIGEST_SIZE]
        if not hmac.compare_digest(found, expected):
            raise BlockAuthError(f"digest {found.hex()} instead of the signed {expected.hex()}")

    def _load_page(self, page: int) -> bytes:
        leaves = self._read(self._shape.page_offset(page), DIGEST_SIZE * self._shape.page_leaves(page))
        expected = self._page_digests[page * DIGEST_SIZE : (page + 1) * DIGEST_SIZE]
        if not hmac.compare_digest(page_hash(self._digest, leaves), expected):
            raise BlockAuthError(f"page {page} of the digest tree of blob {self._blob.id} is not the signed one")
        self._pages.put((self._blob.id, page), leaves)
        return leaves
