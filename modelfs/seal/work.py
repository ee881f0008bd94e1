"""What a run of seal or rotate starts from: the pending work of an interrupted run of the same, or a plan of its own."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime

from modelfs.crypto.kdf import key_commitment
from modelfs.crypto.signing import Signer
from modelfs.format.fields import ID_SIZE, KEY_SIZE
from modelfs.format.keysfile import KeysFile, keys_file, names_digest, wrapping_context
from modelfs.format.limits import FORMAT
from modelfs.format.manifest import DigestName, Plan
from modelfs.keys.interface import KeyProvider
from modelfs.keys.several import wrap_for_all
from modelfs.seal import journal
from modelfs.seal.encrypt import Entropy, SealPass
from modelfs.store.local import Store
from modelfs.trust.release import VerifiedRelease


@dataclass(frozen=True)
class Surroundings:
    """Time, randomness and who watches: arguments, so that tests choose them."""

    now: datetime
    entropy: Entropy = os.urandom
    progress: Callable[[int], None] = lambda _: None
    stop: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Wanted:
    """What a publisher wants to make; two runs with the same go on from each other."""

    model: str
    release: int
    block_size: int
    digest: DigestName
    rotates: str | None = None
    """As in `Plan`."""


def resume_work(
    store: Store, wanted: Wanted, providers: Sequence[KeyProvider], signer: Signer, previous: VerifiedRelease | None, notes: list[str]
) -> journal.Pending | None:
    """What an interrupted run of the same, for the same KEKs, has left, or None; `notes` is told if it was something else."""
    plan = journal.read_plan(store, signer)
    if plan is None or (previous is not None and plan.release <= previous.manifest.release):
        return None  # nothing, something planted, or left over from a release that was published
    what = f"the unfinished {'seal' if plan.rotates is None else 'rotation'} of release {plan.release}"
    pending = None
    if Wanted(plan.model, plan.release, plan.block_size, plan.digest, plan.rotates) == wanted:
        pending = journal.resume(store, plan, providers, signer)
    if pending is None:
        notes.append(f"{what} is not this one: started anew")
        return None
    # What lies in pending/ is unsigned, and not published: whose KEK opens it could have added a stranger.
    keys = _wrap(pending.dek, plan.model, plan.key_id, providers)
    # Who kept pending/keys.json has this DEK for ever: whoever is left out now must not have that of what is published. One more is
    # another list, too: named once and then left out again, he would be in no plan, and the storage can put the first one back.
    if names_digest(keys) != plan.recipients:
        notes.append(f"{what} is wrapped for other KEKs: started anew with a new key")
        return None
    return replace(pending, keys=keys)


def begin_work(store: Store, wanted: Wanted, providers: Sequence[KeyProvider], signer: Signer, entropy: Entropy) -> journal.Pending:
    """Discard what is pending; draw a DEK, wrap it and record the plan, durably."""
    journal.discard(store)
    dek, key_id = entropy(KEY_SIZE), entropy(ID_SIZE).hex()
    keys = _wrap(dek, wanted.model, key_id, providers)
    plan = Plan(
        block_size=wanted.block_size,
        digest=wanted.digest,
        format=FORMAT,
        key_commitment=key_commitment(dek).hex(),
        key_id=key_id,
        model=wanted.model,
        recipients=names_digest(keys),
        release=wanted.release,
        rotates=wanted.rotates,
    )
    journal.begin(store, plan, keys, signer)
    return journal.Pending(plan, dek, keys, [])


def _wrap(dek: bytes, model: str, key_id: str, providers: Sequence[KeyProvider]) -> KeysFile:
    return keys_file(wrap_for_all(providers, dek, wrapping_context(model, key_id)))


@contextmanager
def workers(store: Store, wanted: Wanted, around: Surroundings) -> Iterator[tuple[SealPass, ThreadPoolExecutor]]:
    """The pass that all blobs of a run share, with threads for segments, and threads for whole files; of each as many as cores."""
    cores = os.cpu_count() or 1
    # Twice as many for segments as there are cores: half of them wait for the disk.
    with ThreadPoolExecutor(2 * cores) as segments, ThreadPoolExecutor(cores) as files:
        yield SealPass(store, wanted.block_size, wanted.digest, around.entropy, around.progress, around.stop, segments), files
