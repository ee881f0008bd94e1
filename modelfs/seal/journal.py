"""pending/: what an unfinished seal or rotation has decided and finished (docs/FORMAT.md section 7).

A storage writer can read and replace these files, and an inference host, whose KEK opens the pending DEK, could be his. So the
plan and every batch of journal lines are signed by the publisher's own key, which no host has: what was planted is never used.
The lines are encrypted too, because they hold blob keys.
"""

import contextlib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from modelfs.crypto.aead import decrypt_record, encrypt_record
from modelfs.crypto.kdf import journal_key
from modelfs.crypto.signatures import verify_envelope
from modelfs.crypto.signing import Signer, sign_payload, trust_signer
from modelfs.errors import FormatError, KeyAccessError, KeyServiceError, StoreError, VerificationError
from modelfs.format import canonical
from modelfs.format.envelope import build_envelope, parse_envelope, serialize_envelope
from modelfs.format.fields import ID_SIZE, decode_base64, encode_base64
from modelfs.format.journal import JournalRecord
from modelfs.format.keysfile import KeysFile, parse_keys
from modelfs.format.limits import KIB, MAX_KEYS_SIZE, MAX_PLAN_SIZE, MIB
from modelfs.format.manifest import PLAN_TYPE, BlobEntry, Plan, parse_plan
from modelfs.keys.interface import KeyProvider
from modelfs.keys.several import unwrap_by_any
from modelfs.seal.encrypt import Entropy, FinishedBlob
from modelfs.store.local import Store, store_error

PLAN = "pending/plan.json"
KEYS = "pending/keys.json"
JOURNAL_TYPE = "application/vnd.modelfs.journal"
MAX_JOURNAL_SIZE = 2048 * MIB
MAX_LINE_SIZE = 16 * KIB

_JOURNAL_NAME = re.compile(r"journal-([0-9a-f]{32})")
_LINE = re.compile(rb"([0-9a-f]{32}) ([A-Za-z0-9+/]+={0,2})\n")
_SIGNATURE = re.compile(rb"= ([A-Za-z0-9+/]+={0,2})\n")


@dataclass(frozen=True)
class Pending:
    """An unfinished seal: its plan, its DEK, the blobs that its runs have finished."""

    plan: Plan
    dek: bytes = field(repr=False)
    keys: KeysFile
    records: list[tuple[str, JournalRecord]]
    """(blob id, record) of every journal: a path is there more than once if its source changed between two runs."""

    @property
    def blob_ids(self) -> set[str]:
        """Ids of the blobs that can be taken over."""
        return {blob_id for blob_id, _ in self.records}


def journal_ids(store: Store) -> list[str]:
    """Ids of the journals that are there."""
    return [match[1] for name in store.names("pending") if (match := _JOURNAL_NAME.fullmatch(name))]


def pending_blob_ids(store: Store) -> set[str]:
    """Ids that journal lines name, read without any key, so signed or not: what gc must leave alone."""
    found: set[str] = set()
    for journal_id in journal_ids(store):
        data = store.read_file(f"pending/journal-{journal_id}", MAX_JOURNAL_SIZE)
        found.update(match[1].decode() for line in data.splitlines(keepends=True) if (match := _LINE.fullmatch(line)))
    return found


def begin(store: Store, plan: Plan, keys: KeysFile, signer: Signer) -> None:
    """Record a new plan, durably, before the first blob is made."""
    store.make_directories("pending")
    store.write_file(KEYS, canonical.serialize(keys))
    envelope = sign_payload(canonical.serialize(plan), PLAN_TYPE, signer)
    store.write_file(PLAN, serialize_envelope(envelope))


def read_plan(store: Store, signer: Signer) -> Plan | None:
    """The plan of an unfinished seal, if `signer` itself has signed it; None for anything else."""
    try:
        record = parse_envelope(store.read_file(PLAN, MAX_PLAN_SIZE), PLAN_TYPE, MAX_PLAN_SIZE, PLAN)
        payload, _ = verify_envelope(record, trust_signer(signer), PLAN)
        return parse_plan(payload)
    except (StoreError, FormatError, VerificationError):
        return None


def resume(store: Store, plan: Plan, providers: Sequence[KeyProvider], signer: Signer) -> Pending | None:
    """The pending work of a verified plan, or None if none of `providers` opens its keys."""
    try:
        keys = parse_keys(store.read_file(KEYS, MAX_KEYS_SIZE), KEYS)
        dek, _kek = unwrap_by_any(providers, keys, plan)
    except KeyServiceError:
        raise  # later it may open them: what is finished is not thrown away for an outage
    except (StoreError, FormatError, KeyAccessError):
        return None
    records = [record for journal_id in journal_ids(store) for record in _read_journal(store, journal_id, dek, plan, signer)]
    return Pending(plan, dek, keys, records)


def _batch_payload(plan: Plan, journal_id: str, first: int, lines: bytes) -> bytes:
    """What the publisher signs for the lines `first`, `first` + 1, ... of a journal."""
    return b"%b %b %d\n%b" % (plan.key_commitment.encode(), journal_id.encode(), first, lines)


def _read_journal(store: Store, journal_id: str, dek: bytes, plan: Plan, signer: Signer) -> list[tuple[str, JournalRecord]]:
    """The records of all batches up to the first that is not signed or does not authenticate."""
    key = journal_key(dek, journal_id)
    found: list[tuple[str, JournalRecord]] = []
    batch: list[bytes] = []
    for line in store.read_file(f"pending/journal-{journal_id}", MAX_JOURNAL_SIZE).splitlines(keepends=True):
        signature = _SIGNATURE.fullmatch(line)
        if signature is None:
            batch.append(line)
            continue
        payload = _batch_payload(plan, journal_id, len(found), b"".join(batch))
        try:
            envelope = build_envelope(payload, JOURNAL_TYPE, [("", decode_base64(signature[1].decode()))])
            verify_envelope(envelope, trust_signer(signer), "a journal batch")
            found += [_open_line(key, number, text) for number, text in enumerate(batch, len(found))]
        except (ValueError, FormatError, VerificationError):
            break
        batch = []
    return found


def _open_line(key: bytes, number: int, line: bytes) -> tuple[str, JournalRecord]:
    match = _LINE.fullmatch(line)
    if match is None:
        raise FormatError("not a journal line")
    blob_id = match[1].decode()
    sealed = decode_base64(match[2].decode())
    plaintext = decrypt_record(key, number.to_bytes(12, "big"), bytes.fromhex(blob_id), sealed)
    if plaintext is None:
        raise FormatError("a journal line does not authenticate")
    return blob_id, canonical.parse(JournalRecord, plaintext, MAX_LINE_SIZE, "a journal record")


class JournalWriter:
    """One new journal file; a context manager. One thread."""

    def __init__(self, store: Store, pending: Pending, signer: Signer, entropy: Entropy) -> None:
        """Make the file, with an id and so a key of its own."""
        self._id = journal_id = entropy(ID_SIZE).hex()
        self._key = journal_key(pending.dek, journal_id)
        self._plan = pending.plan
        self._signer = signer
        self._count = 0
        self._is_broken = False
        self._store = store
        try:
            self._fd = store.create_pending(f"journal-{journal_id}")
            store.sync_directory("pending")
        except OSError as exc:
            raise store_error(f"write in {store.root}", exc) from exc

    def __enter__(self) -> "JournalWriter":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._fd)

    def append(self, blobs: list[FinishedBlob]) -> None:
        """Record blobs that are fsynced, with their directory, as one signed batch; fsync the journal.

        Raises:
            StoreError: It cannot be written, or a batch failed before.
            KeyAccessError: The signer gave no signature.
        """
        if not blobs:
            return
        if self._is_broken:
            raise StoreError("the journal takes no more: a batch of it failed")
        # Until it is written: tried again, it would show a token a wrong PIN twice, use nonces twice, or follow half a line.
        self._is_broken = True
        lines = bytearray()
        for number, blob in enumerate(blobs, self._count):
            record = JournalRecord(
                digest=blob.digest,
                key=blob.key.hex(),
                path=blob.source.path,
                root=blob.entry.root,
                size=blob.entry.size,
                source=source if isinstance(source := blob.source.identity, str) else list(source),
            )
            sealed = encrypt_record(self._key, number.to_bytes(12, "big"), bytes.fromhex(blob.entry.id), canonical.serialize(record))
            lines += b"%b %b\n" % (blob.entry.id.encode(), encode_base64(sealed).encode())
        envelope = sign_payload(_batch_payload(self._plan, self._id, self._count, bytes(lines)), JOURNAL_TYPE, self._signer)
        lines += b"= %b\n" % envelope.signatures[0].sig.encode()
        try:
            done = 0
            while done < len(lines):
                done += os.write(self._fd, memoryview(lines)[done:])
            os.fsync(self._fd)
        except OSError as exc:
            raise store_error(f"write the journal in {self._store.root}", exc) from exc
        self._count += len(blobs)
        self._is_broken = False


def discard(store: Store, keep: str = "") -> None:
    """Remove all pending work, the lock and the file `keep` apart: plan last, so that a crash leaves it recognisable."""
    for name in store.names("pending"):
        if name not in ("lock", "plan.json", keep):
            store.remove(f"pending/{name}")
    store.remove(PLAN)
    with contextlib.suppress(OSError):
        store.sync_directory("pending")


def as_blob(blob_id: str, record: JournalRecord) -> BlobEntry:
    """The manifest's entry of a finished blob."""
    return BlobEntry(id=blob_id, root=record.root, size=record.size)
