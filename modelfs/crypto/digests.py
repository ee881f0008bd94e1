"""The digest tree of a blob and the digest of a plaintext (docs/FORMAT.md section 2.2)."""

import hashlib
from collections.abc import Iterable
from typing import Protocol

from blake3 import blake3

from modelfs.crypto.aead import Buffer
from modelfs.format.geometry import DIGEST_SIZE, LEAVES_PER_PAGE
from modelfs.format.manifest import DigestName


class Hasher(Protocol):
    """What hashlib and blake3 have in common."""

    def update(self, data: Buffer, /) -> object:
        """Take more bytes; drops the GIL for those of 2 KiB and more."""

    def digest(self) -> bytes:
        """32 bytes."""


def new_hasher(name: DigestName, prefix: Buffer = b"") -> Hasher:
    """A hasher of the named digest that has already taken `prefix`."""
    return blake3(prefix) if name == "blake3" else hashlib.sha256(prefix)


def leaf_hash(name: DigestName, block: Buffer) -> bytes:
    """Digest of one block as stored: ciphertext and tag."""
    hasher = new_hasher(name, b"\0")
    hasher.update(block)
    return hasher.digest()


def leaf_hash_in_place(name: DigestName, framed: memoryview) -> bytes:
    """`leaf_hash` of `framed[1:]`, which is faster in one piece: `framed[0]` is overwritten with the prefix."""
    framed[0] = 0
    return new_hasher(name, framed).digest()


def page_hash(name: DigestName, leaves: Buffer) -> bytes:
    """Digest of up to 4,096 leaves, joined."""
    hasher = new_hasher(name, b"\1")
    hasher.update(leaves)
    return hasher.digest()


def root_hash(name: DigestName, pages: Buffer) -> bytes:
    """Digest of all page digests, joined."""
    hasher = new_hasher(name, b"\2")
    hasher.update(pages)
    return hasher.digest()


def page_hashes(name: DigestName, leaves: bytes) -> bytes:
    """The page digests, joined, of all `leaves` of a blob, joined."""
    step = LEAVES_PER_PAGE * DIGEST_SIZE
    return b"".join(page_hash(name, leaves[start : start + step]) for start in range(0, len(leaves), step))


def tree_root(name: DigestName, leaves: Iterable[bytes]) -> bytes:
    """The root over every leaf of a blob, in order."""
    return root_hash(name, page_hashes(name, b"".join(leaves)))
