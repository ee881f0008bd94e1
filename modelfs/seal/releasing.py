"""From finished blobs to a release: index, keys file, signed manifest; published, or left waiting for more signatures.

manifest.json is replaced last: until then the old release is whole.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from modelfs.crypto.kdf import index_key
from modelfs.crypto.signing import Signer, sign_payload
from modelfs.errors import FormatError, LimitExceededError, StoreError
from modelfs.format import canonical
from modelfs.format.envelope import serialize_envelope
from modelfs.format.fields import ID_SIZE, format_time
from modelfs.format.index import DirEntry, FileEntry, SymlinkEntry, build_index
from modelfs.format.limits import FORMAT, MAX_INDEX_SIZE, MAX_MANIFEST_SIZE
from modelfs.format.manifest import MANIFEST_TYPE, BlobEntry, Manifest, Plan
from modelfs.seal import journal
from modelfs.seal.encrypt import FinishedBlob, SealPass
from modelfs.seal.waiting import WAITING, WAITING_NAME
from modelfs.store.local import MANIFEST, Store


@dataclass(frozen=True)
class Terms:
    """What the manifest says besides what the plan has decided, and who signs it."""

    signer: Signer
    created: datetime
    expires: str | None
    """As the manifest has it."""
    is_pending: bool
    """Leave the release waiting for more signatures."""


def conclude(
    seal: SealPass, pending: journal.Pending, others: Sequence[DirEntry | SymlinkEntry], finished: list[FinishedBlob], terms: Terms
) -> list[str]:
    """Publish finished blobs as a release, or leave it waiting.

    Returns:
        Remarks for the publisher.

    Raises:
        SourceChangedError: A source changed since its blob was made.
        FormatError: There are more files than the format's limits allow.
        StoreError: The store cannot be written; the old release is whole.
    """
    store = seal.store
    envelope = _describe(seal, pending, others, finished, terms)
    store.sync_directory("blobs")
    store.write_file(f"keys/{pending.plan.key_commitment}.json", canonical.serialize(pending.keys))
    for blob in finished:
        blob.source.check_unchanged()
    if not terms.is_pending:
        return publish(store, envelope, pending.plan.release)
    store.write_file(WAITING, envelope)
    try:
        journal.discard(store, keep=WAITING_NAME)
    except StoreError as exc:
        return [f"the release waits for signatures, but clearing up is left to who signs it: {exc}"]
    return []


def publish(store: Store, envelope: bytes, release: int) -> list[str]:
    """Replace manifest.json by a signed one whose blobs and keys are durable, and clear pending/; remarks for the publisher.

    Raises:
        StoreError: It could not be replaced; the old release is whole.
    """
    store.write_file(MANIFEST, envelope)
    return tidy(store, envelope, release)


def tidy(store: Store, envelope: bytes, release: int) -> list[str]:
    """The release is out, so nothing here fails: run again, the command could only say that the release does not grow."""
    try:
        store.write_file(f"manifests/{release}.json", envelope)
        journal.discard(store)
    except StoreError as exc:
        return [f"the release is published, but clearing up is left to the next seal: {exc}"]
    return []


def _describe(
    seal: SealPass, pending: journal.Pending, others: Sequence[DirEntry | SymlinkEntry], finished: list[FinishedBlob], terms: Terms
) -> bytes:
    """Write the index; the signed envelope over the manifest."""
    plaintext = canonical.serialize(build_index([*others, *(_file_entry(blob) for blob in finished)]))
    if len(plaintext) > MAX_INDEX_SIZE:
        raise LimitExceededError(f"the table of files is {len(plaintext)} bytes, more than the limit of {MAX_INDEX_SIZE}")
    index_id = seal.entropy(ID_SIZE).hex()
    index = seal.write_bytes(plaintext, index_id, index_key(pending.dek, index_id))
    manifest = _manifest(pending.plan, index, [blob.entry for blob in finished], terms)
    data = serialize_envelope(sign_payload(canonical.serialize(manifest), MANIFEST_TYPE, terms.signer))
    if len(data) > MAX_MANIFEST_SIZE:
        raise LimitExceededError(f"the manifest is {len(data)} bytes, more than the limit of {MAX_MANIFEST_SIZE}")
    return data


def _manifest(plan: Plan, index: BlobEntry, blobs: list[BlobEntry], terms: Terms) -> Manifest:
    try:
        return Manifest(
            block_size=plan.block_size,
            blobs=sorted([index, *blobs], key=lambda blob: blob.id),
            cipher="AES-256-GCM",
            created=format_time(terms.created),
            digest=plan.digest,
            expires=terms.expires,
            format=FORMAT,
            index=index.id,
            key_commitment=plan.key_commitment,
            key_id=plan.key_id,
            model=plan.model,
            release=plan.release,
        )
    except ValueError as exc:
        raise FormatError(f"the release cannot be described: {canonical.first_problem(exc)}") from None


def _file_entry(blob: FinishedBlob) -> FileEntry:
    source = blob.source
    return FileEntry(
        blob=blob.entry.id,
        digest=blob.digest,
        key=blob.key.hex(),
        kind="file",
        mode=source.mode,
        mtime=source.mtime,
        path=source.path,
        size=source.size,
    )
