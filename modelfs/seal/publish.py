"""`modelfs seal`, from source to published release. manifest.json is replaced last: until then the old release is whole."""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from modelfs.crypto.kdf import index_key, key_commitment
from modelfs.crypto.signatures import TrustedKeys
from modelfs.crypto.signing import Signer, sign_payload
from modelfs.errors import ConfigError, FormatError, LimitExceededError, ModelfsError, RollbackError, SourceChangedError, StoreError
from modelfs.format import canonical
from modelfs.format.envelope import serialize_envelope
from modelfs.format.fields import ID_SIZE, KEY_SIZE, format_time
from modelfs.format.geometry import geometry
from modelfs.format.index import DirEntry, FileEntry, SymlinkEntry, build_index
from modelfs.format.keysfile import keys_file, wrapping_context
from modelfs.format.limits import FORMAT, MAX_INDEX_SIZE, MAX_MANIFEST_SIZE
from modelfs.format.manifest import MANIFEST_TYPE, BlobEntry, DigestName, Manifest, Plan
from modelfs.keys.interface import KeyProvider
from modelfs.seal import journal
from modelfs.seal.encrypt import Cancelled, Entropy, FinishedBlob, SealPass, check_unchanged
from modelfs.seal.retention import archive_current, archived_releases, kept_manifests, remove_unnamed_blobs
from modelfs.seal.reuse import EarlierBlobs, earlier_blobs, reuse_blob
from modelfs.seal.scan import SourceFile, SourceTree
from modelfs.store.local import DIRECTORIES, MANIFEST, Store
from modelfs.trust.release import VerifiedRelease, read_release, verify_release

T = TypeVar("T")

_EVER = datetime.min.replace(tzinfo=UTC)
"""Before every expiry: replacing an expired release is what a publisher does."""
COMMIT_SECONDS = 0.5
"""How long finished blobs may wait for their journal line: what a killed seal has to encrypt again."""


@dataclass(frozen=True)
class SealRequest:
    """What a publisher asks for."""

    model: str
    release: int
    provider: KeyProvider
    signer: Signer
    digest: DigestName
    block_size: int
    expires: datetime | None
    trusted: TrustedKeys | None
    """Needed when the destination holds a release already."""


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


@dataclass(frozen=True)
class Surroundings:
    """Time, randomness and who watches: arguments, so that tests choose them."""

    now: datetime
    entropy: Entropy = os.urandom
    progress: Callable[[int], None] = lambda _: None
    stop: threading.Event = field(default_factory=threading.Event)


def seal_model(tree: SourceTree, destination: Path, request: SealRequest, around: Surroundings) -> SealReport:
    """Seal a scanned source into a directory.

    Args:
        tree: From `scan_source`.
        destination: Missing, empty, or a sealed model of the same name with an older release.
        request: See `SealRequest`.
        around: See `Surroundings`; setting `stop` ends the seal with `Cancelled`, to be resumed.

    Raises:
        ConfigError: The destination holds something else.
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
        previous = _previous_release(store, request)
        store.make_directories(*DIRECTORIES)
        return _Seal(store, tree, request, around).run(previous)


def _previous_release(store: Store, request: SealRequest) -> VerifiedRelease | None:
    archived = [release for release in archived_releases(store) if release >= request.release]
    if store.file_size(MANIFEST) is None and not archived:
        return None
    if request.trusted is None:
        raise ConfigError(f"{store.root} holds a release already: name its publisher's public key with --trust")
    for release in archived:  # manifest.json may be an older one that somebody put back: no release number is ever signed twice
        name = f"manifests/{release}.json"
        verify_release(store.read_file(name, MAX_MANIFEST_SIZE), request.trusted, model=request.model, now=_EVER, what=name)
        raise RollbackError(f"release {request.release} does not grow: {store.root} has {name}; use {max(archived) + 1} or more")
    # Expiry does not matter here: replacing an expired release is what a publisher does.
    previous = read_release(store, request.trusted, model=request.model, now=_EVER)
    if request.release <= previous.manifest.release:
        raise RollbackError(
            f"release {request.release} does not grow: {store.root} holds release {previous.manifest.release}; "
            f"use {previous.manifest.release + 1} or more"
        )
    return previous


class _Seal:
    """One run; exists to keep its steps short."""

    def __init__(self, store: Store, tree: SourceTree, request: SealRequest, around: Surroundings) -> None:
        self._store = store
        self._tree = tree
        self._request = request
        self._around = around
        self._report = SealReport(request.model, request.release, len(tree.files), tree.size)

    def run(self, previous: VerifiedRelease | None) -> SealReport:
        archive_current(self._store)
        pending = self._resume(previous) or self._begin()
        remove_unnamed_blobs(self._store, list(kept_manifests(self._store).values()))
        workers = os.cpu_count() or 1
        # Twice as many for segments as there are cores: half of them wait for the disk.
        with ThreadPoolExecutor(2 * workers) as segments, ThreadPoolExecutor(workers) as files:
            seal = SealPass(
                self._store,
                self._request.block_size,
                self._request.digest,
                self._around.entropy,
                self._around.progress,
                self._around.stop,
                segments,
            )
            earlier: EarlierBlobs | None = None
            if previous is not None:
                found = earlier_blobs(self._store, previous, self._request.provider, seal)
                if isinstance(found, str):
                    self._report.notes.append(f"no blob of release {previous.manifest.release} is reused: {found}")
                else:
                    earlier = found
            finished, todo = self._take_over(pending)
            with journal.JournalWriter(self._store, pending, self._request.signer, self._around.entropy) as writer:
                finished += self._seal_files(seal, files, todo, earlier, writer)
            envelope = self._publish(seal, pending, finished)
        self._tidy(envelope)
        return self._report

    def _resume(self, previous: VerifiedRelease | None) -> journal.Pending | None:
        request = self._request
        plan = journal.read_plan(self._store, request.signer)
        if plan is None or (previous is not None and plan.release <= previous.manifest.release):
            return None  # nothing, something planted, or left over from a release that was published
        wanted = (request.model, request.release, request.block_size, request.digest)
        pending = None
        if (plan.model, plan.release, plan.block_size, plan.digest) == wanted:
            pending = journal.resume(self._store, plan, request.provider, request.signer)
        if pending is None:
            self._report.notes.append(f"the unfinished seal of release {plan.release} is not this one: started anew")
        return pending

    def _begin(self) -> journal.Pending:
        journal.discard(self._store)
        entropy = self._around.entropy
        dek, key_id = entropy(KEY_SIZE), entropy(ID_SIZE).hex()
        context = wrapping_context(self._request.model, key_id)
        keys = keys_file([self._request.provider.wrap_key(dek, context)])
        plan = Plan(
            block_size=self._request.block_size,
            digest=self._request.digest,
            format=FORMAT,
            key_commitment=key_commitment(dek).hex(),
            key_id=key_id,
            model=self._request.model,
            release=self._request.release,
        )
        journal.begin(self._store, plan, keys, self._request.signer)
        return journal.Pending(plan, dek, keys, [])

    def _take_over(self, pending: journal.Pending) -> tuple[list[FinishedBlob], list[SourceFile]]:
        """Split the source into files that an interrupted run finished, unchanged since, and the rest."""
        whole = {
            (record.path, tuple(record.source)): (blob_id, record)
            for blob_id, record in pending.records
            if self._is_whole(blob_id, record.size)
        }
        finished: list[FinishedBlob] = []
        todo: list[SourceFile] = []
        taken: set[str] = set()
        for source in self._tree.files:
            found = whole.get((source.path, source.identity))
            if found is None:
                todo.append(source)
                continue
            blob_id, record = found
            taken.add(blob_id)
            blob = FinishedBlob(source, journal.as_blob(blob_id, record), bytes.fromhex(record.key), record.digest)
            finished.append(blob)
            self._around.progress(source.size)
        for blob_id, _ in pending.records:
            if blob_id not in taken:
                self._store.remove_blob(blob_id)
        self._report.resumed = len(finished)
        return finished, todo

    def _is_whole(self, blob_id: str, size: int) -> bool:
        shape = geometry(size, self._request.block_size)
        digests = self._store.file_size(f"blobs/{blob_id}.digests") or 0
        return (self._store.file_size(f"blobs/{blob_id}"), digests) == (shape.ciphertext_size, shape.digests_size)

    def _seal_files(
        self,
        seal: SealPass,
        pool: ThreadPoolExecutor,
        todo: list[SourceFile],
        earlier: EarlierBlobs | None,
        writer: journal.JournalWriter,
    ) -> list[FinishedBlob]:
        def work(source: SourceFile) -> tuple[FinishedBlob, bool]:
            if seal.stop.is_set():
                raise Cancelled
            reused = reuse_blob(seal, earlier, source) if earlier else None
            return (reused, True) if reused else (seal.encrypt_file(source), False)

        # Largest first, so that no core is left alone with a large file at the end.
        futures = [pool.submit(work, source) for source in sorted(todo, key=lambda file: -file.size)]
        done: queue.SimpleQueue[Future[tuple[FinishedBlob, bool]]] = queue.SimpleQueue()
        for future in futures:
            future.add_done_callback(done.put)
        finished: list[FinishedBlob] = []
        try:
            while len(finished) < len(futures):
                results = [future.result() for future in _batch(done, len(futures) - len(finished))]
                fresh = [blob for blob, was_reused in results if not was_reused]
                self._report.encrypted += len(fresh)
                self._report.reused += len(results) - len(fresh)
                self._commit(writer, fresh)
                finished += [blob for blob, _ in results]
        except BaseException:
            seal.stop.set()
            for future in futures:
                future.cancel()
            wait(futures)
            self._keep_finished(writer, futures, finished)
            raise
        return finished

    def _keep_finished(
        self, writer: journal.JournalWriter, futures: "list[Future[tuple[FinishedBlob, bool]]]", committed: list[FinishedBlob]
    ) -> None:
        """After a failure: journal what other passes have finished, as far as the store still lets us."""
        known = {blob.entry.id for blob in committed}
        results = [future.result() for future in futures if not future.cancelled() and future.exception() is None]
        fresh = [blob for blob, was_reused in results if not was_reused and blob.entry.id not in known]
        with contextlib.suppress(ModelfsError):
            self._commit(writer, fresh)

    def _commit(self, writer: journal.JournalWriter, fresh: list[FinishedBlob]) -> None:
        if not fresh:
            return
        self._store.sync_directory("blobs")
        unchanged: list[FinishedBlob] = []
        failure: SourceChangedError | None = None
        for blob in fresh:
            try:
                check_unchanged(blob.source)
                unchanged.append(blob)
            except SourceChangedError as exc:
                self._store.remove_blob(blob.entry.id)
                failure = exc
        writer.append(unchanged)
        if failure:
            raise failure

    def _publish(self, seal: SealPass, pending: journal.Pending, finished: list[FinishedBlob]) -> bytes:
        entries: list[DirEntry | FileEntry | SymlinkEntry] = [
            *self._tree.directories,
            *self._tree.symlinks,
            *(_file_entry(blob) for blob in finished),
        ]
        plaintext = canonical.serialize(build_index(entries))
        if len(plaintext) > MAX_INDEX_SIZE:
            raise LimitExceededError(f"the table of files is {len(plaintext)} bytes, more than the limit of {MAX_INDEX_SIZE}")
        index_id = self._around.entropy(ID_SIZE).hex()
        index = seal.write_bytes(plaintext, index_id, index_key(pending.dek, index_id))
        store, data = self._store, self._sign(pending, index, [blob.entry for blob in finished])
        store.sync_directory("blobs")
        store.write_file(f"keys/{pending.plan.key_commitment}.json", canonical.serialize(pending.keys))
        for blob in finished:
            check_unchanged(blob.source)
        store.write_file(MANIFEST, data)
        return data

    def _tidy(self, envelope: bytes) -> None:
        """The release is out, so nothing here fails the seal: run again it could only say that the release does not grow."""
        try:
            self._store.write_file(f"manifests/{self._request.release}.json", envelope)
            journal.discard(self._store)
        except StoreError as exc:
            self._report.notes.append(f"the release is published, but clearing up is left to the next seal: {exc}")

    def _sign(self, pending: journal.Pending, index: BlobEntry, blobs: list[BlobEntry]) -> bytes:
        expires = self._request.expires
        try:
            manifest = Manifest(
                block_size=pending.plan.block_size,
                blobs=sorted([index, *blobs], key=lambda blob: blob.id),
                cipher="AES-256-GCM",
                created=format_time(self._around.now),
                digest=pending.plan.digest,
                expires=format_time(expires) if expires else None,
                format=FORMAT,
                index=index.id,
                key_commitment=pending.plan.key_commitment,
                key_id=pending.plan.key_id,
                model=pending.plan.model,
                release=pending.plan.release,
            )
        except ValueError as exc:
            raise FormatError(f"the release cannot be described: {canonical.first_problem(exc)}") from None
        data = serialize_envelope(sign_payload(canonical.serialize(manifest), MANIFEST_TYPE, self._request.signer))
        if len(data) > MAX_MANIFEST_SIZE:
            raise LimitExceededError(f"the manifest is {len(data)} bytes, more than the limit of {MAX_MANIFEST_SIZE}")
        return data


def _batch(done: "queue.SimpleQueue[Future[T]]", most: int) -> list[Future[T]]:
    """Futures as they finish: at least one, all that do within COMMIT_SECONDS, at most `most`."""
    batch = [done.get()]
    deadline = time.monotonic() + COMMIT_SECONDS
    while len(batch) < most:
        try:
            batch.append(done.get(timeout=max(0.0, deadline - time.monotonic())))
        except queue.Empty:
            break
    return batch


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
