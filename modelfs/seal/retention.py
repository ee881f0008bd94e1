"""Which releases, keys and blobs a sealed model still needs, and removing the rest (`modelfs gc`)."""

import re
from dataclasses import dataclass

from modelfs.errors import BlobNotFoundError, FormatError
from modelfs.format.envelope import parse_envelope
from modelfs.format.limits import MAX_MANIFEST_SIZE
from modelfs.format.manifest import MANIFEST_TYPE, Manifest, parse_manifest
from modelfs.seal.journal import discard, pending_blob_ids
from modelfs.seal.waiting import waiting_manifest
from modelfs.store.local import MANIFEST, Store

_RELEASE_NAME = re.compile(r"([1-9][0-9]{0,15})\.json")
_KEYS_NAME = re.compile(r"([0-9a-f]{64})\.json")


@dataclass(frozen=True)
class Removed:
    """What gc removed."""

    releases: list[int]
    blobs: int
    bytes: int


def _parse(data: bytes, name: str) -> Manifest:
    """A manifest whose signature nobody has checked: good enough to know what not to delete, for nothing else."""
    return parse_manifest(parse_envelope(data, MANIFEST_TYPE, MAX_MANIFEST_SIZE, name).payload_bytes)


def kept_manifests(store: Store) -> dict[int, Manifest]:
    """Every release that the store still has, the current one included; signatures not checked.

    Raises:
        FormatError: One is malformed; nothing should be deleted then, because what it names is unknown.
    """
    kept: dict[int, Manifest] = {}
    for name in store.names("manifests"):
        if match := _RELEASE_NAME.fullmatch(name):
            manifest = _parse(store.read_file(f"manifests/{name}", MAX_MANIFEST_SIZE), f"manifests/{name}")
            if manifest.release != int(match[1]):
                raise FormatError(f"manifests/{name} is release {manifest.release}: remove the file or fetch the right one")
            kept[manifest.release] = manifest
    current = current_manifest(store)
    if current is not None:
        kept[current.release] = current
    return kept


def archived_releases(store: Store) -> list[int]:
    """Numbers of the files in manifests/, ascending; nobody has looked into them."""
    return sorted(int(match[1]) for name in store.names("manifests") if (match := _RELEASE_NAME.fullmatch(name)))


def current_manifest(store: Store) -> Manifest | None:
    """The manifest.json, signature not checked; None if there is none."""
    try:
        return _parse(store.read_file(MANIFEST, MAX_MANIFEST_SIZE), MANIFEST)
    except BlobNotFoundError:
        return None


def archive_current(store: Store) -> None:
    """Put manifest.json under manifests/ too, if a seal died between the two."""
    current = current_manifest(store)
    if current is not None and store.file_size(f"manifests/{current.release}.json") is None:
        store.make_directories("manifests")
        store.write_file(f"manifests/{current.release}.json", store.read_file(MANIFEST, MAX_MANIFEST_SIZE))


def remove_unnamed_blobs(store: Store, manifests: list[Manifest], pending: set[str]) -> tuple[int, int]:
    """Remove every blob that neither a manifest names nor `pending`, the ids of unfinished work; how many, and their bytes."""
    named = set(pending)
    waiting = waiting_manifest(store)
    for manifest in [*manifests, *([waiting] if waiting else [])]:
        named.update(blob.id for blob in manifest.blobs)
    count = size = 0
    for blob_id in sorted(store.blob_ids() - named):
        size += sum(store.file_size(f"blobs/{blob_id}{suffix}") or 0 for suffix in ("", ".digests"))
        store.remove_blob(blob_id)
        count += 1
    return count, size


def collect_garbage(store: Store, keep: int, discard_pending: bool = False) -> Removed:
    """Keep the current release, the `keep - 1` before it, everything newer and what is pending; remove what only the others name.

    Newer ones can be there after an operator restored an older manifest.json; they are not ours to judge.

    Args:
        store: Its writer's lock is held by the caller.
        keep: At least 1.
        discard_pending: Remove an unfinished seal or rotation, and a release that waits for signatures, too.

    Raises:
        FormatError: A manifest is malformed; nothing was removed.
    """
    archive_current(store)
    manifests = kept_manifests(store)
    current = current_manifest(store)
    if discard_pending:
        discard(store)
    waiting = waiting_manifest(store)
    older = sorted((release for release in manifests if current and release < current.release), reverse=True)
    removed = sorted(older[keep - 1 :])
    kept = [manifest for release, manifest in manifests.items() if release not in removed]
    # Manifests first: a crash in between leaves blobs that the next run removes, never a release without blobs.
    for release in removed:
        store.remove(f"manifests/{release}.json")
    commitments = {manifest.key_commitment for manifest in [*kept, *([waiting] if waiting else [])]}
    for name in store.names("keys"):
        if (match := _KEYS_NAME.fullmatch(name)) and match[1] not in commitments:
            store.remove(f"keys/{name}")
    count, size = remove_unnamed_blobs(store, kept, pending_blob_ids(store))
    return Removed(removed, count, size)
