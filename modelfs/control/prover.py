"""The prover: a short-lived process, one for each proof, that unwraps the DEK and checks the commitment.

The first one opens the index too, and writes the table that workers read in its place. It leaves the key in the key page; so does one
that ends a lock. Whatever handles a key or a token in Python is a process that ends; control only learns granted, denied or no answer. A
prover that is not done by its deadline is killed.
"""

import contextlib
import json
import logging
import os
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

import trio

import modelfs.errors
from modelfs.control.keypage import KeyPage
from modelfs.control.pins import Pinned, Rows, empty_pin, fill_pin
from modelfs.control.process import fork_child, kill_child, wait_child, without_collector
from modelfs.control.sandbox import confine_prover
from modelfs.errors import KeyAccessError, KeyDeniedError, KeyServiceError, ModelfsError
from modelfs.format.canonical import serialize
from modelfs.format.fields import ID_SIZE
from modelfs.format.keysfile import KeysFile, parse_keys
from modelfs.format.manifest import Manifest
from modelfs.keys.interface import Grant
from modelfs.keys.several import Openable, Round, prove_in_order
from modelfs.reader.index import open_index
from modelfs.reader.table import NewTable
from modelfs.reader.table_pages import encrypt_pages
from modelfs.store.local import Store
from modelfs.trust.release import read_keys

MAX_ANSWER_SIZE = 32768
MAX_REASON_SIZE = 1000
"""Characters of what one answer says; escaped, a few of them are no more than an answer may have."""
SLACK_S = 0.25
"""For forking and importing, on top of a proof's own deadline."""
INDEX_BYTES_PER_SECOND = 1 << 20
"""What even a machine that is busy with other work opens of an index."""
REREAD_S = 1.0
"""For reading the keys file once more before a denial counts."""


logger = logging.getLogger(__name__)


class Verdict(StrEnum):
    """What a proof came to."""

    GRANTED = "granted"
    DENIED = "denied"
    NO_ANSWER = "no answer"


@dataclass(frozen=True)
class Answer:
    """What a prover told control."""

    verdict: Verdict
    sent_at_s: float = 0.0
    """CLOCK_BOOTTIME seconds just before the proof's first request."""
    reason: str = ""
    error: str = ""
    """Name of the error's class."""
    ttl_s: float | None = None
    """How long the grant's token lasts; None: no end."""
    key_version: int | None = None
    kek: str | None = None
    """Name of the KEK that granted."""
    position: int | None = None
    """Of that KEK in the host's list."""
    refused: Sequence[int] = ()
    """Positions of the KEKs that said no, whether it counts or not."""
    passed: str = ""
    """What the KEKs said that were passed over."""


class _NotGrantedError(Exception):
    """Carries what a child says instead of a grant."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.reason)
        self.answer = answer


class Prover:
    """Makes one mount's proofs. `first` blocks; `prove` is for trio. Never two at once."""

    def __init__(self, keks: Sequence[Openable], pinned: Pinned, sealed: str, key_page: KeyPage, rows: Rows) -> None:
        """Take what a prover needs.

        Args:
            keks: The host's KEKs in order of preference; opened in the child, so that no secret of them is ever in control.
            pinned: The verified release.
            sealed: Canonical path of the store, for reading the keys file once more.
            key_page: Where DEK and session go.
            rows: Filled by the first proof.
        """
        self._keks = keks
        self._opened: frozenset[int] = frozenset()
        """Positions of the KEKs that have opened this mount: their no is a denial."""
        self._pinned = pinned
        self._sealed = sealed
        self._key_page = key_page
        self._rows = rows
        self._pid: int | None = None

    def first(self, manifest: Manifest, index_ciphertext: bytes, timeout_s: float) -> Answer:
        """The proof that opens the mount.

        Args:
            manifest: Verified, with its blobs.
            index_ciphertext: From `fetch_index`.
            timeout_s: For the proof; opening a large index has time of its own.

        Raises:
            ModelfsError: It was not granted; the child's own error class and sentence.
        """
        pid, reading = self._start(lambda: self._open_first(manifest, index_ciphertext, timeout_s), timeout_s)
        try:
            code = wait_child(pid, timeout_s + len(index_ciphertext) / INDEX_BYTES_PER_SECOND + SLACK_S)
            if code is None:
                kill_child(pid)
                wait_child(pid, 1)
            answer = _read_answer(reading)
        finally:
            os.close(reading)
        if answer.verdict is Verdict.GRANTED:
            return self._noted(answer)
        kind = getattr(modelfs.errors, answer.error, KeyAccessError)
        raise kind(answer.reason)

    async def prove(self, write_key: bool, timeout_s: float) -> Answer:
        """A further proof; before a no counts, the keys file is read once more: a rewrapped entry is tried, at the KEK that said no.

        Args:
            write_key: Leave the DEK in the key page (the mount is dark and wants to be lit).
            timeout_s: Total deadline of the proof.
        """
        answer = await self._run(lambda: self._renew(self._pinned.keys_data(), write_key, timeout_s), timeout_s)
        if answer.verdict is Verdict.GRANTED or not answer.refused:
            return self._noted(answer)
        renewed = empty_pin("modelfs-keys")
        try:
            # Nobody else: who writes the storage could take away the entry of the KEK that said no, and have another one grant.
            again = await self._run(lambda: self._renew_with_new_keys(answer.refused, write_key, timeout_s, renewed), REREAD_S)
            if again.verdict is not Verdict.GRANTED:
                return answer
            # The entry that opens now is the pinned one from here on: the next proof must not need the store.
            os.dup2(renewed, self._pinned.keys_fd, inheritable=False)
            return self._noted(again)
        finally:
            os.close(renewed)

    def _noted(self, answer: Answer) -> Answer:
        if answer.verdict is Verdict.GRANTED and answer.position is not None:
            self._opened |= {answer.position}
        return answer

    def kill(self) -> None:
        """End a proof that is under way, so that nothing it says or writes can count."""
        if self._pid is not None:
            kill_child(self._pid)
            wait_child(self._pid, 0.5)
            self._pid = None

    async def _run(self, action: Callable[[], Answer], timeout_s: float) -> Answer:
        try:
            pid, reading = self._start(action, timeout_s)
        except KeyServiceError as exc:
            return Answer(Verdict.NO_ANSWER, reason=str(exc), error=type(exc).__name__)
        self._pid = pid
        fd = os.pidfd_open(pid)
        try:
            with trio.move_on_after(timeout_s + SLACK_S):
                await trio.lowlevel.wait_readable(fd)
            return _read_answer(reading)
        finally:
            self.kill()
            os.close(fd)
            os.close(reading)

    def _start(self, action: Callable[[], Answer], timeout_s: float) -> tuple[int, int]:
        """(pid, where its answer comes); KeyServiceError if no process can be had, which is no word of the key service."""
        try:
            reading, writing = os.pipe()
        except OSError as exc:
            raise KeyServiceError(f"no pipe for a proof can be had: {os.strerror(exc.errno or 0)}") from None

        def main() -> int:
            confine_prover()
            try:
                answer = action()
            except _NotGrantedError as exc:
                answer = exc.answer
            except KeyDeniedError as exc:
                answer = Answer(Verdict.DENIED, reason=str(exc), error=type(exc).__name__)
            except ModelfsError as exc:
                answer = Answer(Verdict.NO_ANSWER, reason=str(exc), error=type(exc).__name__)
            except Exception as exc:
                # Without its text, which could quote a key. Not KeyServiceError: nobody should wait for a bug to go away.
                frame = traceback.extract_tb(exc.__traceback__)[-1]
                logger.error("a bug in a proof: %s in %s, line %s", type(exc).__name__, frame.filename, frame.lineno)
                answer = Answer(Verdict.NO_ANSWER, reason="the proof failed by a bug: report it with the log", error="ModelfsError")
            logger.debug("proof: %s", answer)
            os.write(writing, json.dumps(asdict(answer)).encode()[:MAX_ANSWER_SIZE])
            return 0

        try:
            return fork_child(main), reading
        except OSError as exc:
            os.close(reading)
            raise KeyServiceError(f"no process for a proof can be had: {os.strerror(exc.errno or 0)}") from None
        finally:
            os.close(writing)

    # -- in the child

    def _open_first(self, manifest: Manifest, index_ciphertext: bytes, timeout_s: float) -> Answer:
        for kek in self._keks[1:]:  # one that is malformed is to be found now, and not in the outage that it is there for
            with contextlib.suppress(KeyAccessError):
                kek.open()
        grant, answer = self._grant(parse_keys(self._pinned.keys_data()), range(len(self._keks)), None, timeout_s)
        with without_collector():
            table = NewTable(open_index(index_ciphertext, manifest, grant.dek), manifest)
        self._rows.write(table.shapes)
        fill_pin(self._pinned.table_fd, encrypt_pages(table.plaintext, grant.dek, os.urandom(ID_SIZE)))
        self._key_page.write(grant.dek)
        return answer

    def _renew(self, keys_data: bytes, write_key: bool, timeout_s: float) -> Answer:
        grant, answer = self._grant(parse_keys(keys_data), range(len(self._keks)), self._opened, timeout_s)
        if write_key:
            self._key_page.write(grant.dek)
        return answer

    def _renew_with_new_keys(self, ask: Sequence[int], write_key: bool, timeout_s: float, renewed: int) -> Answer:
        with Store(Path(self._sealed)) as store:
            keys = read_keys(store, self._pinned.manifest)
        if keys == parse_keys(self._pinned.keys_data()):
            raise KeyDeniedError("the keys file is unchanged")
        grant, answer = self._grant(keys, ask, self._opened, timeout_s)
        fill_pin(renewed, serialize(keys))
        if write_key:
            self._key_page.write(grant.dek)
        return answer

    def _grant(self, keys: KeysFile, ask: Sequence[int], opened: frozenset[int] | None, timeout_s: float) -> tuple[Grant, Answer]:
        made = prove_in_order(self._keks, ask, keys, self._pinned.manifest, self._key_page, opened, timeout_s, _boottime)
        if made.grant is None or made.position is None:
            raise _NotGrantedError(_not_granted(made))
        answer = Answer(
            Verdict.GRANTED,
            made.sent_at_s,
            ttl_s=made.grant.ttl_s,
            key_version=made.grant.key_version,
            kek=self._keks[made.position].name,
            position=made.position,
            passed="; ".join(made.passed)[:MAX_REASON_SIZE],
        )
        return made.grant, answer


def _not_granted(made: Round) -> Answer:
    verdict = Verdict.DENIED if isinstance(made.error, KeyDeniedError) else Verdict.NO_ANSWER
    return Answer(verdict, reason=str(made.error)[:MAX_REASON_SIZE], error=type(made.error).__name__, refused=made.refused)


def _boottime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def _read_answer(reading: int) -> Answer:
    """What the child wrote; no answer if it wrote nothing, because it was killed or died."""
    os.set_blocking(reading, False)
    try:
        fields = json.loads(os.read(reading, MAX_ANSWER_SIZE))
        return Answer(**{**fields, "verdict": Verdict(fields["verdict"])})
    except (BlockingIOError, ValueError, TypeError, KeyError):
        return Answer(Verdict.NO_ANSWER, reason="the proof was not done by its deadline", error="KeyServiceError")
