"""Blobs from sources, several at once, each journalled once it is durable: what sealing and rotating have in common."""

import contextlib
import queue
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import TypeVar

from modelfs.errors import ModelfsError, SourceChangedError
from modelfs.format.geometry import geometry
from modelfs.seal.encrypt import Cancelled, FinishedBlob, Progress, SealPass
from modelfs.seal.journal import JournalWriter, Pending, as_blob
from modelfs.seal.source import Source
from modelfs.store.local import Store

T = TypeVar("T")
S = TypeVar("S", bound=Source)

COMMIT_SECONDS = 0.5
"""How long finished blobs may wait for their journal line: what a killed run has to encrypt again."""


@dataclass(frozen=True)
class Made:
    """What became of one source."""

    blob: FinishedBlob
    is_reused: bool = False
    """Whether another release names this blob already: then no journal has to."""


@dataclass
class Done:
    """Sources that an interrupted run finished, and those that are still to do."""

    finished: list[FinishedBlob] = field(default_factory=list)
    orphans: list[str] = field(default_factory=list)
    """Blobs of the journals whose source changed, or that are not whole."""


def split_done(store: Store, sources: Sequence[S], pending: Pending) -> tuple[Done, list[S]]:
    """Split sources into those that an interrupted run finished, unchanged since, and the rest. Changes nothing."""
    whole = {
        (record.path, record.made_from): (blob_id, record)
        for blob_id, record in pending.records
        if _is_whole(store, blob_id, record.size, pending.plan.block_size)
    }
    done = Done()
    todo: list[S] = []
    for source in sources:
        found = whole.get((source.path, source.identity))
        if found is None:
            todo.append(source)
        else:
            blob_id, record = found
            done.finished.append(FinishedBlob(source, as_blob(blob_id, record), bytes.fromhex(record.key), record.digest))
    taken = {blob.entry.id for blob in done.finished}
    done.orphans = [blob_id for blob_id, _ in pending.records if blob_id not in taken]
    return done, todo


def take_over(store: Store, done: Done, progress: Progress) -> list[FinishedBlob]:
    """The blobs that an interrupted run finished; what it made in vain is removed."""
    for blob in done.finished:
        progress(blob.source.size)
    for blob_id in done.orphans:
        store.remove_blob(blob_id)
    return done.finished


def _is_whole(store: Store, blob_id: str, size: int, block_size: int) -> bool:
    shape = geometry(size, block_size)
    digests = store.file_size(f"blobs/{blob_id}.digests") or 0
    return (store.file_size(f"blobs/{blob_id}"), digests) == (shape.ciphertext_size, shape.digests_size)


def make_blobs(seal: SealPass, pool: ThreadPoolExecutor, todo: Sequence[S], make: Callable[[S], Made], writer: JournalWriter) -> list[Made]:
    """Make a blob of every source.

    Args:
        seal: Its `stop` is set when one fails.
        pool: Runs `make`; not the pool of `seal`, which `make` may wait for.
        todo: Sources.
        make: Makes one blob, whole and fsynced, in any thread.
        writer: The journal.

    Raises:
        SourceChangedError: A source changed before its blob was journalled.
        Cancelled, ModelfsError: As `make`. What was finished until then is journalled.
        KeyAccessError, StoreError: The journal failed. The run signs no more: what was finished since the batch before is lost.
    """

    def work(source: S) -> Made:
        if seal.stop.is_set():
            raise Cancelled
        return make(source)

    # Largest first, so that no core is left alone with a large file at the end.
    futures = [pool.submit(work, source) for source in sorted(todo, key=lambda source: -source.size)]
    done: queue.SimpleQueue[Future[Made]] = queue.SimpleQueue()
    for future in futures:
        future.add_done_callback(done.put)
    made: list[Made] = []
    try:
        while len(made) < len(futures):
            results = [future.result() for future in _batch(done, len(futures) - len(made))]
            _commit(seal.store, writer, [result.blob for result in results if not result.is_reused])
            made += results
    except BaseException:
        seal.stop.set()
        for future in futures:
            future.cancel()
        wait(futures)
        _keep_finished(seal.store, writer, futures, made)
        raise
    return made


def _keep_finished(store: Store, writer: JournalWriter, futures: list[Future[Made]], committed: list[Made]) -> None:
    """After a failure: journal what other passes have finished, as far as the store and the journal still let us."""
    known = {made.blob.entry.id for made in committed}
    results = [future.result() for future in futures if not future.cancelled() and future.exception() is None]
    fresh = [made.blob for made in results if not made.is_reused and made.blob.entry.id not in known]
    with contextlib.suppress(ModelfsError):
        _commit(store, writer, fresh)


def _commit(store: Store, writer: JournalWriter, fresh: list[FinishedBlob]) -> None:
    if not fresh:
        return
    store.sync_directory("blobs")
    unchanged: list[FinishedBlob] = []
    failure: SourceChangedError | None = None
    for blob in fresh:
        try:
            blob.source.check_unchanged()
            unchanged.append(blob)
        except SourceChangedError as exc:
            store.remove_blob(blob.entry.id)
            failure = exc
    writer.append(unchanged)
    if failure:
        raise failure


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
