"""Several KEKs in order of preference: which of them opens a release, and whose word counts (docs/DESIGN.md, several KEKs).

Only silence and absence lead on to the next one. A "no" ends the attempt, unless it comes from a KEK that has not opened this mount and the
mount is there already: then nothing rests on it.
"""

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from modelfs.errors import ConfigError, KeyAccessError, KeyDeniedError, KeyServiceError
from modelfs.format.keysfile import KeysFile, Recipient
from modelfs.format.manifest import Manifest, Plan
from modelfs.keys.interface import Grant, KeyProvider, unwrap_dek

MAX_WAIT_S = 10.0
"""What one that does not answer may take of a long deadline while another is left."""


class Openable(Protocol):
    """A KEK as configured, not opened yet: no secret is in it."""

    @property
    def name(self) -> str:
        """How to call it in messages; no two of one list are called the same."""

    def open(self) -> KeyProvider:
        """The provider, opened anew."""


class Sessions(Protocol):
    """Where the login at each KEK is kept, by its position in the list: none is ever sent to another service than the one that gave it."""

    def read_session(self, position: int) -> bytes | None:
        """What was left for this KEK, or None."""

    def write_session(self, session: bytes, position: int) -> None:
        """Leave a session; b"" for none."""


@dataclass(frozen=True)
class Round:
    """What came of asking KEKs one after the other."""

    grant: Grant | None = None
    position: int | None = None
    """Who granted, or who ended the attempt with a no."""
    sent_at_s: float = 0.0
    """When the granting KEK was asked."""
    error: KeyAccessError | None = None
    """Why there is no grant."""
    refused: tuple[int, ...] = ()
    """Who has said no, whether it counts or not: a rewrapped entry may be what they want."""
    passed: tuple[str, ...] = field(default=())
    """A sentence for each KEK that was passed over."""


def prove_in_order(
    keks: Sequence[Openable],
    ask: Sequence[int],
    keys: KeysFile,
    release: Manifest,
    sessions: Sessions,
    opened: frozenset[int] | None,
    timeout_s: float,
    clock: Callable[[], float] = time.monotonic,
) -> Round:
    """Ask KEKs in order until one grants or one's no counts.

    Args:
        keks: All KEKs of the host.
        ask: Positions of those to ask now.
        keys: Untrusted recipients.
        release: A verified release.
        sessions: Logins.
        opened: Positions of the KEKs that have opened this mount; None: there is no mount yet, and every no counts.
        timeout_s: For all together. Who is asked may take an equal share of what is left.
        clock: Seconds; what `sent_at_s` is in.

    Raises:
        ConfigError: A KEK cannot be used as configured.
    """
    deadline = clock() + timeout_s
    silent: list[str] = []
    absent: list[str] = []
    refused: list[int] = []
    passed: list[str] = []
    last: KeyAccessError | None = None

    def tell(position: int, error: KeyAccessError) -> str:
        return f"{keks[position].name}: {error}" if len(keks) > 1 else str(error)

    for count, position in enumerate(ask):
        others = len(ask) - count - 1
        left_s = max(0.001, deadline - clock())
        share_s = min(left_s / (others + 1), MAX_WAIT_S) if others else left_s
        has_opened = opened is not None and position in opened
        sent_at_s = clock()
        try:
            provider = keks[position].open()
        except KeyAccessError as exc:  # a file that is not there (yet), or may not be used
            last, said = exc, tell(position, exc)
            silent.append(said)
            passed.append(said)
            continue
        # Among several it is not asked at all: its service has no say about a model that it has no part in.
        is_absent = not has_opened and not any(provider.is_recipient(entry) for entry in keys.recipients)

        def keep(session: bytes, position: int = position) -> None:
            sessions.write_session(session, position)

        try:
            if is_absent and len(keks) > 1:
                unwrap_dek(provider, keys, release)  # says so
            grant = provider.prove(keys, release, sessions.read_session(position), has_opened, share_s, keep)
        except KeyAccessError as exc:
            last, said = exc, tell(position, exc)
        else:
            keep(grant.session or b"")
            return Round(grant, position, sent_at_s, passed=tuple(passed), refused=tuple(refused))
        if is_absent:
            absent.append(said)
        elif isinstance(last, KeyServiceError):
            silent.append(said)
        else:
            refused.append(position)
            if opened is None or has_opened:
                why = "; ".join([*passed, said]) if opened is None else said
                return Round(position=position, error=type(last)(why), refused=(position,), passed=tuple(passed))
        passed.append(said)
    return Round(error=_no_grant(last, silent, absent, passed), refused=tuple(refused), passed=tuple(passed))


def _no_grant(last: KeyAccessError | None, silent: list[str], absent: list[str], passed: list[str]) -> KeyAccessError:
    """The error when nobody granted, and nobody's no counted."""
    if last is None:
        raise ValueError("no KEK to ask")
    if len(passed) == 1:
        return type(last)(passed[0])
    text = f"no KEK opens the model: {'; '.join(passed)}"
    return KeyDeniedError(text) if len(absent) == len(passed) else KeyServiceError(text)


def unwrap_by_any(providers: Sequence[KeyProvider], keys: KeysFile, release: Manifest | Plan) -> tuple[bytes, KeyProvider]:
    """The DEK by the first KEK that opens it, for commands: they hold it for a moment, and nothing that was granted goes on.

    Args:
        providers: In order of preference, one at least.
        keys: Untrusted recipients.
        release: Whose signature is verified.

    Raises:
        KeyServiceError: None opens it, and one of them gave no answer that counts.
        KeyAccessError: None opens it.
    """
    errors: list[KeyAccessError] = []
    for provider in providers:
        try:
            return unwrap_dek(provider, keys, release), provider
        except KeyAccessError as exc:
            errors.append(exc)
    if len(errors) == 1:
        raise errors[0]
    kind = KeyServiceError if any(isinstance(error, KeyServiceError) for error in errors) else KeyAccessError
    if errors and all(isinstance(error, KeyDeniedError) for error in errors):
        kind = KeyDeniedError
    raise kind(f"no KEK opens the model: {'; '.join(map(str, errors))}")


def wrap_for_all(providers: Sequence[KeyProvider], dek: bytes, context: bytes) -> list[Recipient]:
    """One entry for each KEK; `dek` and `context` as for `KeyProvider.wrap_key`.

    Raises:
        ConfigError: Two of them are one KEK by two names, which only the service knew.
        KeyAccessError: One cannot wrap.
    """
    entries = [provider.wrap_key(dek, context) for provider in providers]
    names = Counter(entry.name for provider, entry in zip(providers, entries, strict=True) if provider.is_name_global)
    for name, count in names.items():
        if count > 1:
            raise ConfigError(f"the KEK {name} is named twice: name it once")
    return entries
