"""Everything that can be checked of a sealed model without any key: sizes and every block's digest, every fault found."""

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass

from modelfs.cache.scratch import Scratch
from modelfs.crypto.digests import leaf_hash_in_place, page_hash, page_hashes, root_hash
from modelfs.errors import BlobNotFoundError, FormatError, StoreError
from modelfs.format.geometry import DIGEST_SIZE, LEAVES_PER_PAGE, TAG_SIZE, Geometry
from modelfs.format.manifest import BlobEntry, DigestName, Manifest
from modelfs.store.local import Store, pread_up_to
from modelfs.trust.release import read_keys

READ_SIZE = 1 << 20
"""Ciphertext that is read at once."""
PART_SIZE = 16 << 20
"""Plaintext bytes of a blob that one thread checks at a time."""
_local = threading.local()
"""Memory for ciphertext, one for each thread that checks."""

Progress = Callable[[int], None]
"""Called with bytes done since the last call, from any thread."""


@dataclass(frozen=True)
class Fault:
    """One thing that is not as signed."""

    blob: str
    """Blob id, or the name of a file such as `keys/<commitment>.json`."""
    block: int | None
    """Block number, or None when the fault is not one block's."""
    what: str
    expected: str
    found: str

    def as_json(self) -> dict[str, str | int | None]:
        """The fields as JSON values."""
        return asdict(self)


def verify_store(store: Store, manifest: Manifest, progress: Progress = lambda _: None) -> list[Fault]:
    """Check every blob of a verified manifest, on every core.

    Returns:
        All faults, in the order of the manifest's blobs; empty when the sealed model is whole.

    Raises:
        StoreError: The store as a whole cannot be read.
    """
    faults = _verify_keys(store, manifest)
    begun: deque[Callable[[], list[Fault]]] = deque()
    cores = os.cpu_count() or 1
    with ThreadPoolExecutor(cores) as pool:
        for blob in manifest.blobs:
            begun.append(_begin(store, blob, manifest.geometry(blob), manifest.digest, pool, progress))
            if len(begun) > 4 * cores:  # each holds a descriptor
                faults += begun.popleft()()
        while begun:
            faults += begun.popleft()()
    return faults


def _verify_keys(store: Store, manifest: Manifest) -> list[Fault]:
    name = f"keys/{manifest.key_commitment}.json"
    try:
        read_keys(store, manifest)
    except BlobNotFoundError:
        return [Fault(name, None, "keys file", "present", "missing")]
    except (StoreError, FormatError) as exc:
        return [Fault(name, None, "keys file", "well-formed", str(exc))]
    return []


def verify_blob(
    store: Store, blob: BlobEntry, shape: Geometry, digest: DigestName, pool: ThreadPoolExecutor, progress: Progress = lambda _: None
) -> list[Fault]:
    """Check one blob and its digests file; the blob's own blocks decide, so damage is told apart from damaged digests.

    Args:
        pool: Reads and hashes parts of the blob; not the one that calls this.
        progress: Told of ciphertext bytes, from any thread.
    """
    return _begin(store, blob, shape, digest, pool, progress)()


def _begin(
    store: Store, blob: BlobEntry, shape: Geometry, digest: DigestName, pool: ThreadPoolExecutor, progress: Progress
) -> Callable[[], list[Fault]]:
    """Have the pool check a blob; what waits for it and tells the faults must be called."""
    name = f"blobs/{blob.id}"
    try:
        found_size = store.file_size(name)
        if found_size != shape.ciphertext_size:
            found = "missing" if found_size is None else f"{found_size} bytes"
            return lambda: [Fault(blob.id, None, "blob size", f"{shape.ciphertext_size} bytes", found)]
        fd = store.open_file(name)
    except StoreError as exc:
        unreadable = [Fault(blob.id, None, "blob", "readable", str(exc))]
        return lambda: unreadable
    step = max(1, PART_SIZE // shape.block_size)
    parts = [range(first, min(first + step, shape.block_count)) for first in range(0, shape.block_count, step)]
    futures = [pool.submit(_leaves, fd, shape, part, digest, progress) for part in parts]

    def finish() -> list[Fault]:
        try:
            leaves = b"".join(future.result() for future in futures)
        except StoreError as exc:
            return [Fault(blob.id, None, "blob", "readable", str(exc))]
        finally:
            wait(futures)
            os.close(fd)
        if len(leaves) != DIGEST_SIZE * shape.block_count:
            return [Fault(blob.id, None, "blob size", f"{shape.ciphertext_size} bytes", "truncated while it was read")]
        return list(_compare(store, blob, shape, digest, leaves))

    return finish


def _leaves(fd: int, shape: Geometry, blocks: range, digest: DigestName, progress: Progress) -> bytes:
    """Digests of consecutive blocks, joined, as far as the file goes. A digest overwrites the byte before its block, which is done with."""
    if not hasattr(_local, "scratch"):
        _local.scratch = Scratch()
    leaves: list[bytes] = []
    together = max(1, READ_SIZE // (shape.block_size + TAG_SIZE))
    for first in blocks[::together]:
        last = min(first + together, blocks.stop) - 1
        start = shape.block_offset(first)
        framed = _local.scratch.framed(start, shape.block_offset(last) + shape.block_length(last) + TAG_SIZE - start)
        found = pread_up_to(fd, framed[1:], start)
        for index in range(first, last + 1):
            at, length = shape.block_offset(index) - start, shape.block_length(index) + TAG_SIZE
            if at + length > found:
                return b"".join(leaves)
            leaves.append(leaf_hash_in_place(digest, framed[at : at + 1 + length]))
        progress(found)
    return b"".join(leaves)


def _compare(store: Store, blob: BlobEntry, shape: Geometry, digest: DigestName, leaves: bytes) -> Iterator[Fault]:
    """Faults of a blob whose blocks have the digests `leaves`."""
    pages = page_hashes(digest, leaves)
    root = root_hash(digest, pages).hex()
    if shape.block_count == 1:
        if root != blob.root:
            yield Fault(blob.id, 0, "block", blob.root, root)
        return
    stored = _stored_digests(store, blob, shape)
    if root == blob.root:
        if stored != pages + leaves:
            found = "missing" if stored is None else "altered"
            yield Fault(blob.id, None, "digests file", "the digests of the blob's blocks, which are good", found)
        return
    if stored is None or root_hash(digest, stored[: len(pages)]).hex() != blob.root:
        yield Fault(blob.id, None, "blob and digests file: which blocks are bad cannot be told", blob.root, root)
        return
    for page in range(shape.page_count):
        expected_page = stored[page * DIGEST_SIZE : (page + 1) * DIGEST_SIZE]
        if pages[page * DIGEST_SIZE : (page + 1) * DIGEST_SIZE] == expected_page:
            continue
        first = page * LEAVES_PER_PAGE
        expected = stored[shape.page_offset(page) :][: shape.page_leaves(page) * DIGEST_SIZE]
        if page_hash(digest, expected) != expected_page:
            last = first + shape.page_leaves(page) - 1
            what = f"blocks {first} to {last} and their digests: which are bad cannot be told"
            yield Fault(blob.id, None, what, expected_page.hex(), pages[page * DIGEST_SIZE :][:DIGEST_SIZE].hex())
            continue
        for slot in range(shape.page_leaves(page)):
            want = expected[slot * DIGEST_SIZE : (slot + 1) * DIGEST_SIZE]
            have = leaves[(first + slot) * DIGEST_SIZE :][:DIGEST_SIZE]
            if want != have:
                yield Fault(blob.id, first + slot, "block", want.hex(), have.hex())


def _stored_digests(store: Store, blob: BlobEntry, shape: Geometry) -> bytes | None:
    try:
        data = store.read_file(f"blobs/{blob.id}.digests", shape.digests_size)
    except (StoreError, FormatError):
        return None
    return data if len(data) == shape.digests_size else None
