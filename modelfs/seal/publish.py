"""`modelfs seal`: from a scanned source to a release."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

from modelfs.crypto.signatures import TrustedKeys
from modelfs.crypto.signing import Signer
from modelfs.errors import ConfigError
from modelfs.format.fields import format_time
from modelfs.format.manifest import DigestName
from modelfs.keys.interface import KeyProvider
from modelfs.seal import releasing
from modelfs.seal.encrypt import SealPass
from modelfs.seal.growth import previous_release
from modelfs.seal.journal import JournalWriter
from modelfs.seal.making import Made, make_blobs, split_done, take_over
from modelfs.seal.retention import archive_current, kept_manifests, remove_unnamed_blobs
from modelfs.seal.reuse import EarlierBlobs, earlier_blobs, reuse_blob
from modelfs.seal.scan import SourceFile, SourceTree
from modelfs.seal.waiting import refuse_waiting
from modelfs.seal.work import Surroundings, Wanted, begin_work, resume_work, workers
from modelfs.store.local import DIRECTORIES, MANIFEST, Store
from modelfs.trust.release import VerifiedRelease

__all__ = ["SealReport", "SealRequest", "Surroundings", "seal_model"]


@dataclass(frozen=True)
class SealRequest:
    """What a publisher asks for."""

    model: str
    release: int
    providers: Sequence[KeyProvider]
    """The KEKs that the release is wrapped for; the first that can opens what is there already."""
    signer: Signer
    digest: DigestName
    block_size: int
    expires: datetime | None
    trusted: TrustedKeys | None
    """Needed when the destination holds a release already."""
    is_pending: bool = False
    """Leave the release waiting for more signatures."""
    look: str = "modelfs sign"
    """The command that shows a release that waits, for messages."""


@dataclass
class SealReport:
    """What a seal did."""

    model: str
    release: int
    files: int = 0
    bytes: int = 0
    encrypted: int = 0
    resumed: int = 0
    """Files that an earlier, interrupted run had finished."""
    reused: int = 0
    """Files whose blob the release before had."""
    notes: list[str] = field(default_factory=list)


def seal_model(tree: SourceTree, destination: Path, request: SealRequest, around: Surroundings) -> SealReport:
    """Seal a scanned source into a directory.

    Args:
        tree: From `scan_source`.
        destination: Missing, empty, or a sealed model of the same name with an older release.
        request: See `SealRequest`.
        around: See `Surroundings`; setting `stop` ends the seal with `Cancelled`, to be resumed.

    Raises:
        ConfigError: The destination holds something else, or a release waits there for signatures.
        RollbackError: The release does not grow.
        VerificationError: The release that is there is not by a trusted key or of another model.
        SourceChangedError: A source file changed.
        StoreError: The store cannot be written; a full disk is one reason.
    """
    try:
        destination.mkdir(exist_ok=True)
        listing = os.listdir(destination)
    except OSError as exc:
        raise ConfigError(f"cannot use the destination {destination}: {os.strerror(exc.errno or 0)}") from exc
    if listing and MANIFEST not in listing and not set(listing) <= {*DIRECTORIES}:
        raise ConfigError(f"{destination} is not empty and holds no sealed model: choose an empty directory")
    with Store(destination) as store, store.writer_lock():
        previous = previous_release(store, request.trusted, request.model, request.release)
        refuse_waiting(store, request.look)
        store.make_directories(*DIRECTORIES)
        return _seal(store, tree, request, around, previous)


def _seal(store: Store, tree: SourceTree, request: SealRequest, around: Surroundings, previous: VerifiedRelease | None) -> SealReport:
    report = SealReport(request.model, request.release, len(tree.files), tree.size)
    wanted = Wanted(request.model, request.release, request.block_size, request.digest)
    archive_current(store)
    pending = resume_work(store, wanted, request.providers, request.signer, previous, report.notes) or begin_work(
        store, wanted, request.providers, request.signer, around.entropy
    )
    remove_unnamed_blobs(store, list(kept_manifests(store).values()), pending.blob_ids)
    with workers(store, wanted, around) as (seal, files):
        earlier = _earlier(store, previous, request, seal, report.notes)

        def make(source: SourceFile) -> Made:
            reused = reuse_blob(seal, earlier, source) if earlier else None
            return Made(reused, is_reused=True) if reused else Made(seal.encrypt_file(source))

        done, todo = split_done(store, tree.files, pending)
        finished = take_over(store, done, around.progress)
        report.resumed = len(finished)
        with JournalWriter(store, pending, request.signer, around.entropy) as writer:
            made = make_blobs(seal, files, todo, make, writer)
        report.reused = sum(result.is_reused for result in made)
        report.encrypted = len(made) - report.reused
        finished += [result.blob for result in made]
        expires = format_time(request.expires) if request.expires else None
        terms = releasing.Terms(request.signer, around.now, expires, request.is_pending)
        report.notes += releasing.conclude(seal, pending, [*tree.directories, *tree.symlinks], finished, terms)
    return report


def _earlier(store: Store, previous: VerifiedRelease | None, request: SealRequest, seal: SealPass, notes: list[str]) -> EarlierBlobs | None:
    if previous is None or request.trusted is None:
        return None
    # Which digest a blob has is the word of who signed it. With one of two keys, a thief would have the other sign his content.
    signed, demanded = len(previous.signed_by), request.trusted.threshold
    found = (
        earlier_blobs(store, previous, request.providers, seal)
        if signed >= demanded
        else f"{signed} of the trusted keys signed it, and {demanded} are demanded"
    )
    if isinstance(found, str):
        notes.append(f"no blob of release {previous.manifest.release} is reused: {found}")
        return None
    return found
