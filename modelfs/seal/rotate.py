"""`modelfs rotate`: the current release again, under a new DEK: every blob under a new id and a new key, encrypted anew.

For a DEK that may have leaked, or that somebody had who must not have it any more. The old release is whole until the new one is published,
and its keys open what gc keeps of it: `gc --keep 1` ends that.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from modelfs.crypto.measure import reencryption_speed
from modelfs.crypto.signatures import TrustedKeys
from modelfs.crypto.signing import Signer
from modelfs.errors import RollbackError, StoreError, VerificationError
from modelfs.format.index import DirEntry, SymlinkEntry
from modelfs.format.manifest import BlobEntry, Manifest
from modelfs.keys.interface import KeyProvider
from modelfs.keys.several import unwrap_by_any
from modelfs.reader.index import fetch_index, open_index
from modelfs.seal import releasing
from modelfs.seal.growth import previous_release
from modelfs.seal.journal import JournalWriter, Pending
from modelfs.seal.making import Made, make_blobs, split_done, take_over
from modelfs.seal.reencrypt import EarlierFile, reencrypt_blob
from modelfs.seal.retention import archive_current, kept_manifests, remove_unnamed_blobs
from modelfs.seal.waiting import refuse_waiting
from modelfs.seal.work import Surroundings, Wanted, begin_work, resume_work, workers
from modelfs.store.local import DIRECTORIES, MANIFEST, Store
from modelfs.trust.release import VerifiedRelease, check_expiry, read_keys


@dataclass(frozen=True)
class RotateRequest:
    """What a publisher asks for."""

    model: str
    release: int
    providers: Sequence[KeyProvider]
    """The KEKs that the new release is wrapped for; the first that can opens the old one."""
    signer: Signer
    trusted: TrustedKeys
    old_release: int | None = None
    """The one that is to be rotated; None: whichever is there, and the storage can have put an old one there."""
    is_pending: bool = False
    """Leave the release waiting for more signatures."""
    look: str = "modelfs sign"
    """The command that shows a release that waits, for messages."""


@dataclass(frozen=True)
class Cost:
    """What a rotation will cost."""

    model: str
    old_release: int
    release: int
    files: int
    resumed: int
    """Files that an interrupted run has finished."""
    plaintext_bytes: int
    """Of all files."""
    read_bytes: int
    """Ciphertext and digests that are left to read."""
    write_bytes: int
    """The same, to write: nothing of the old release is removed before gc."""
    free_bytes: int
    """Of the store."""
    least_seconds: float
    """What this host's processors need; a storage may take longer."""


@dataclass
class RotateReport:
    """What a rotation did."""

    model: str
    release: int
    old_release: int
    files: int = 0
    bytes: int = 0
    encrypted: int = 0
    resumed: int = 0
    """Files that an earlier, interrupted run had finished."""
    notes: list[str] = field(default_factory=list)


def rotate_model(
    path: Path, request: RotateRequest, around: Surroundings, tell: Callable[[Cost], bool] = lambda _: True
) -> RotateReport | None:
    """Encrypt the current release anew as the release that is asked for.

    Args:
        path: A sealed model.
        request: See `RotateRequest`.
        around: See `Surroundings`; setting `stop` ends the rotation with `Cancelled`, to be resumed.
        tell: Given the cost before anything is written; False: that was all that was wanted.

    Returns:
        What was done; None if `tell` said no.

    Raises:
        ConfigError: A release waits for signatures.
        RollbackError: The release does not grow, or an older one is there than is to be rotated.
        VerificationError: The release that is there is not by a trusted key, of another model, another one, expired or damaged.
        KeyAccessError: None of the KEKs opens it, or one cannot wrap.
        StoreError: There is no release, no room for another, or the store cannot be written.
    """
    with Store(path) as store:
        if store.file_size(MANIFEST) is None:
            raise StoreError(f"{path} holds no sealed model (no {MANIFEST}): check the path")
        with store.writer_lock():
            previous = previous_release(store, request.trusted, request.model, request.release)
            if previous is None:
                raise RuntimeError("there is a manifest")
            _check_old_release(store, previous.manifest.release, request.old_release)
            check_expiry(previous.manifest, around.now)
            refuse_waiting(store, request.look)
            return _Rotation(store, request, around, previous).run(tell)


def _check_old_release(store: Store, found: int, wanted: int | None) -> None:
    if wanted is not None and found != wanted:
        raise (RollbackError if found < wanted else VerificationError)(
            f"{store.root} holds release {found} and not {wanted}, which is to be rotated: put release {wanted} back from a copy, "
            f"or say --from {found} if that is the one"
        )


class _Rotation:
    """One run; exists to keep its steps short."""

    def __init__(self, store: Store, request: RotateRequest, around: Surroundings, previous: VerifiedRelease) -> None:
        """Open the index of the old release."""
        self._store, self._request, self._around, self._previous = store, request, around, previous
        old = previous.manifest
        dek, _kek = unwrap_by_any(request.providers, read_keys(store, old), old)
        index = open_index(fetch_index(store, old), old, dek)
        blobs = {blob.id: blob for blob in old.blobs}
        self._sources = [EarlierFile(entry, blobs[entry.blob]) for entry in index.files]
        self._others = [entry for entry in index.entries if isinstance(entry, DirEntry | SymlinkEntry)]
        self._wanted = Wanted(old.model, request.release, old.block_size, old.digest, previous.payload_digest)

    def run(self, tell: Callable[[Cost], bool]) -> RotateReport | None:
        store, request, around, old = self._store, self._request, self._around, self._previous.manifest
        report = RotateReport(old.model, request.release, old.release, len(self._sources))
        signed, demanded = len(self._previous.signed_by), request.trusted.threshold
        if signed < demanded:
            report.notes.append(
                f"{signed} of the trusted keys signed release {old.release}, and {demanded} are demanded: "
                f"who signs release {request.release} vouches for what was in it"
            )
        pending = resume_work(store, self._wanted, request.providers, request.signer, self._previous, report.notes)
        cost = self._cost(pending)
        report.bytes = cost.plaintext_bytes
        if not tell(cost):
            return None
        if cost.write_bytes > cost.free_bytes:
            raise StoreError(
                f"the new release takes {cost.write_bytes} bytes and {store.root} has {cost.free_bytes} free: make room "
                "(`modelfs gc` removes older releases), and run the command again"
            )
        store.make_directories(*DIRECTORIES)
        archive_current(store)
        pending = pending or begin_work(store, self._wanted, request.providers, request.signer, around.entropy)
        remove_unnamed_blobs(store, list(kept_manifests(store).values()), pending.blob_ids)
        with workers(store, self._wanted, around) as (seal, files):
            done, todo = split_done(store, self._sources, pending)
            finished = take_over(store, done, around.progress)
            report.resumed, report.encrypted = len(finished), len(todo)
            with JournalWriter(store, pending, request.signer, around.entropy) as writer:
                made = make_blobs(seal, files, todo, lambda source: Made(reencrypt_blob(seal, source)), writer)
            finished += [result.blob for result in made]
            terms = releasing.Terms(request.signer, around.now, old.expires, request.is_pending)
            report.notes += releasing.conclude(seal, pending, self._others, finished, terms)
        return report

    def _cost(self, pending: Pending | None) -> Cost:
        old = self._previous.manifest
        todo = self._sources if pending is None else split_done(self._store, self._sources, pending)[1]
        # The new index is as long as the old one: it differs in ids and keys only.
        size = sum(_stored_size(old, blob) for blob in [*(source.blob for source in todo), old.index_blob])
        speed = (os.cpu_count() or 1) * reencryption_speed(old.digest, old.block_size)
        return Cost(
            model=old.model,
            old_release=old.release,
            release=self._request.release,
            files=len(self._sources),
            resumed=len(self._sources) - len(todo),
            plaintext_bytes=sum(source.size for source in self._sources),
            read_bytes=size,
            write_bytes=size,
            free_bytes=self._store.free_bytes(),
            least_seconds=size / speed,
        )


def _stored_size(manifest: Manifest, blob: BlobEntry) -> int:
    shape = manifest.geometry(blob)
    return shape.ciphertext_size + shape.digests_size
