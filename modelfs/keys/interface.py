"""What every key provider promises, and how a DEK is found among the recipients of a release."""

import abc
from typing import ClassVar

from modelfs.crypto.kdf import commitment_agrees
from modelfs.errors import KeyAccessError, KeyDeniedError
from modelfs.format.keysfile import KeysFile, Recipient, wrapping_context
from modelfs.format.limits import MAX_UNWRAP_TRIES
from modelfs.format.manifest import Manifest, Plan


class KeyProvider(abc.ABC):
    """Wraps and unwraps DEKs under one KEK. Implementations are synchronous and may block."""

    scheme: ClassVar[str]

    def wrap_key(self, dek: bytes, context: bytes) -> Recipient:
        """Wrap `dek` (32 bytes), bound to `context`, letting only KeyAccessError escape."""
        try:
            return self._wrap_key(dek, context)
        except KeyAccessError:
            raise
        except Exception as exc:
            # `from None`: a provider's error may quote its answer.
            raise KeyAccessError(f"{self.describe()}: wrapping failed ({type(exc).__name__})") from None

    def unwrap_key(self, recipient: Recipient, context: bytes) -> bytes | None:
        """The DEK, or None if this entry is not this KEK's; lets only KeyAccessError escape.

        The result is not yet checked against the commitment: `unwrap_dek` does that.
        """
        try:
            return self._unwrap_key(recipient, context)
        except KeyAccessError:
            raise
        except Exception as exc:
            raise KeyAccessError(f"{self.describe()}: unwrapping failed ({type(exc).__name__})") from None

    @abc.abstractmethod
    def describe(self) -> str:
        """How to name this KEK to a person, for example `file:1f2e...`."""

    @abc.abstractmethod
    def is_recipient(self, recipient: Recipient) -> bool:
        """Whether the entry claims to be wrapped by this KEK."""

    @abc.abstractmethod
    def _wrap_key(self, dek: bytes, context: bytes) -> Recipient: ...

    @abc.abstractmethod
    def _unwrap_key(self, recipient: Recipient, context: bytes) -> bytes | None: ...


def unwrap_dek(provider: KeyProvider, keys: KeysFile, release: Manifest | Plan) -> bytes:
    """The DEK of a release whose signature is verified.

    Args:
        provider: The KEK that this host may use.
        keys: Untrusted recipients.
        release: Names the commitment that decides.

    Raises:
        KeyDeniedError: No entry is this KEK's, or none opens to the committed DEK.
        KeyAccessError: The provider failed.
    """
    entries = [entry for entry in keys.recipients if provider.is_recipient(entry)]
    if not entries:
        others = ", ".join(sorted({f"{entry.scheme}:{entry.key_ref[:60]}" for entry in keys.recipients}))
        raise KeyDeniedError(f"the model is not wrapped for the KEK {provider.describe()}, only for {others}: use the right KEK")
    context = wrapping_context(release.model, release.key_id)
    for entry in entries[:MAX_UNWRAP_TRIES]:
        dek = provider.unwrap_key(entry, context)
        if dek is not None and len(dek) == 32 and commitment_agrees(dek, release.key_commitment):
            return dek
    raise KeyDeniedError(
        f"no wrapped key for the KEK {provider.describe()} opens to the key that the publisher committed to: "
        "the keys file was altered; fetch it again"
    )
