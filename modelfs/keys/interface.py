"""What every key provider promises, and how a DEK is found among the recipients of a release."""

import abc
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

from modelfs.crypto.kdf import commitment_agrees
from modelfs.errors import KeyAccessError, KeyDeniedError, KeyServiceError
from modelfs.format.keysfile import KeysFile, Recipient, wrapping_context
from modelfs.format.limits import MAX_UNWRAP_TRIES
from modelfs.format.manifest import Manifest, Plan

DEK_SIZE = 32


@dataclass(frozen=True)
class Grant:
    """What a proof of access gave."""

    dek: bytes = field(repr=False)
    """32 bytes that agree with the commitment."""
    session: bytes | None = field(repr=False)
    """What the next proof needs to go on with the same login, at most 2 KiB; None for a provider without logins."""
    ttl_s: float | None
    """Seconds from now to the end of the login, as far as the service has said; None: no end."""
    key_version: int | None
    """Version of the KEK that wraps this DEK, where the service has versions."""
    accessor: str | None = None
    """What an operator revokes this login by; no secret. None where there is no such thing."""


@dataclass(frozen=True)
class Attempt:
    """A proof that is under way; the fields are the arguments of `KeyProvider.prove`."""

    keys: KeysFile
    release: Manifest
    session: bytes | None = field(repr=False)
    opened_before: bool
    timeout_s: float
    keep: Callable[[bytes], None]

    def open_entry(self, provider: "KeyProvider") -> tuple[bytes, Recipient]:
        """The DEK, and the entry that it was wrapped in; errors as `open_entry`."""
        return open_entry(provider, self.keys, self.release, self.opened_before)


class EntryRefusedError(KeyAccessError):
    """The service says that it does not unwrap this entry. Stays in this layer: see `open_entry`."""


class KeyProvider(abc.ABC):
    """Wraps and unwraps DEKs under one KEK. Implementations are synchronous, may block, and belong to one thread."""

    scheme: ClassVar[str]
    is_service: ClassVar[bool] = True
    """Whether the KEK is elsewhere: then key bytes that disagree with the commitment are a fault of the service or an attack on it."""
    is_name_global: ClassVar[bool] = True
    """Whether an entry's key_ref names one KEK in the whole world; False: another service may have one of the same name."""

    def wrap_key(self, dek: bytes, context: bytes) -> Recipient:
        """Wrap `dek` (32 bytes), bound to `context`, letting only KeyAccessError escape."""
        try:
            return self._wrap_key(dek, context)
        except KeyAccessError:
            raise
        except Exception as exc:
            # `from None`: a provider's error may quote its answer.
            raise KeyServiceError(f"{self.describe()}: wrapping failed ({type(exc).__name__})") from None

    def unwrap_key(self, recipient: Recipient, context: bytes) -> bytes | None:
        """The DEK, or None if this entry is not this KEK's; lets only KeyAccessError escape.

        The result is not yet checked against the commitment: `unwrap_dek` does that.

        Raises:
            EntryRefusedError: The service refuses this entry; another may do.
        """
        try:
            return self._unwrap_key(recipient, context)
        except KeyAccessError:
            raise
        except Exception as exc:
            raise KeyServiceError(f"{self.describe()}: unwrapping failed ({type(exc).__name__})") from None

    def rewrap_key(self, recipient: Recipient, context: bytes, agrees: Callable[[bytes], bool]) -> Recipient | None:
        """The same DEK under the newest version of this KEK; None if this entry does not open to the DEK of its release.

        Inside the service where that binds the wrapped key to `context`, which is this release's alone: then nothing else can be made
        new with it, and the DEK does not leave the service. Elsewhere it is unwrapped, asked about, and wrapped.

        Args:
            recipient: Untrusted; the answer keeps its label.
            context: From a verified release.
            agrees: Whether a DEK is the one that the release is committed to.

        Raises:
            EntryRefusedError: The service refuses this entry; another may do.
        """
        try:
            fresh = self._rewrap_key(recipient, context)
            if fresh is None:
                dek = self._unwrap_key(recipient, context)
                fresh = self._wrap_key(dek, context) if dek is not None and agrees(dek) else None
            return None if fresh is None else fresh.model_copy(update={"label": recipient.label})
        except KeyAccessError:
            raise
        except Exception as exc:
            raise KeyServiceError(f"{self.describe()}: rewrapping failed ({type(exc).__name__})") from None

    def prove(
        self,
        keys: KeysFile,
        release: Manifest,
        session: bytes | None,
        opened_before: bool,
        timeout_s: float,
        keep: Callable[[bytes], None] = lambda _: None,
    ) -> Grant:
        """Prove that this host may still have the DEK: go on with the login, or log in, and unwrap anew.

        Args:
            keys: Untrusted recipients.
            release: A verified release.
            session: From the last grant; None at first.
            opened_before: Whether this mount has opened these recipients before: then a refused entry is a denial.
            timeout_s: For everything together.
            keep: Given the session as soon as it is known: it is the one to go on with even if this proof fails or is killed.

        Raises:
            KeyDeniedError: The service itself said no.
            KeyServiceError: No answer that counts.
            KeyAccessError: An entry was refused that never opened before: something to mend, not to wait for.
        """
        try:
            return self._prove(Attempt(keys, release, session, opened_before, timeout_s, keep))
        except KeyAccessError:
            raise
        except Exception as exc:
            raise KeyServiceError(f"{self.describe()}: the proof failed ({type(exc).__name__})") from None

    @abc.abstractmethod
    def describe(self) -> str:
        """How to name this KEK to a person, for example `file:1f2e...`."""

    @abc.abstractmethod
    def is_recipient(self, recipient: Recipient) -> bool:
        """Whether the entry claims to be wrapped by this KEK, or by one that this one's name may stand for."""

    def is_certain(self, recipient: Recipient) -> bool:
        """Whether it claims this very KEK. Not so where a name, like an alias, says less than the entry: the service knows which it is."""
        return self.is_recipient(recipient)

    @abc.abstractmethod
    def _wrap_key(self, dek: bytes, context: bytes) -> Recipient: ...

    @abc.abstractmethod
    def _unwrap_key(self, recipient: Recipient, context: bytes) -> bytes | None: ...

    def _rewrap_key(self, recipient: Recipient, context: bytes) -> Recipient | None:
        """Inside the service, which MUST refuse what was not wrapped for `context`; None where that cannot be had."""
        return None

    def _prove(self, attempt: Attempt) -> Grant:
        """For providers without logins that do not wait."""
        dek, _entry = attempt.open_entry(self)
        return Grant(dek, None, None, None)


def agrees_with(release: Manifest | Plan) -> Callable[[bytes], bool]:
    """Whether a DEK is the one that a verified release is committed to."""
    return lambda dek: len(dek) == DEK_SIZE and commitment_agrees(dek, release.key_commitment)


def unwrap_dek(provider: KeyProvider, keys: KeysFile, release: Manifest | Plan) -> bytes:
    """The DEK of a release whose signature is verified; `open_entry` without the entry."""
    return open_entry(provider, keys, release)[0]


def open_entry(provider: KeyProvider, keys: KeysFile, release: Manifest | Plan, opened_before: bool = False) -> tuple[bytes, Recipient]:
    """The DEK of a release whose signature is verified, and the entry that it was wrapped in.

    Args:
        provider: The KEK that this host may use.
        keys: Untrusted recipients.
        release: Names the commitment that decides.
        opened_before: Whether one of these recipients has opened before.

    Raises:
        KeyDeniedError: No entry is this KEK's, or none opens to the committed DEK; or the service refuses what has opened before.
        KeyServiceError: The service gave no answer that counts, or wrong key bytes.
        KeyAccessError: The provider failed; or the service refuses an entry that has not opened before.
    """
    entries = [entry for entry in keys.recipients if provider.is_recipient(entry)]
    if not entries:
        others = ", ".join(sorted({f"{entry.scheme}:{entry.key_ref[:60]}" for entry in keys.recipients}))
        raise KeyDeniedError(f"the model is not wrapped for the KEK {provider.describe()}, only for {others}: use the right KEK")
    context = wrapping_context(release.model, release.key_id)
    agrees = agrees_with(release)
    refusal: EntryRefusedError | None = None
    denial: KeyDeniedError | None = None
    has_wrong_bytes = False
    for entry in entries[:MAX_UNWRAP_TRIES]:
        try:
            dek = provider.unwrap_key(entry, context)
        except EntryRefusedError as exc:
            refusal = exc
            continue
        except KeyDeniedError as exc:
            if provider.is_certain(entry):
                raise
            denial = denial or exc
            continue
        except KeyServiceError:
            if denial is None:
                raise
            break  # nor may whoever plants entries turn a denial into silence
        if dek is None:
            continue
        if agrees(dek):
            return dek, entry
        has_wrong_bytes = True
    more = f" ({len(entries)} entries claim this KEK, of which {MAX_UNWRAP_TRIES} are tried)" if len(entries) > MAX_UNWRAP_TRIES else ""
    if denial is not None:
        raise denial
    # A refusal counts before wrong bytes: whoever can plant an entry that decrypts to something else must not turn a denial into a wait.
    if refusal is not None:
        raise (KeyDeniedError if opened_before else KeyAccessError)(f"{refusal}{more}")
    if has_wrong_bytes and provider.is_service:
        raise KeyServiceError(
            f"ALARM: the KEK {provider.describe()} unwraps to another key than the one that the publisher committed to: either somebody "
            "who may encrypt with it altered the keys file, or the key service is not what it seems; nothing was decrypted with that key"
        )
    raise KeyDeniedError(
        f"no wrapped key for the KEK {provider.describe()} opens to the key that the publisher committed to{more}: "
        "the keys file was altered; fetch it again"
    )
