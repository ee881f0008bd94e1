"""From untrusted bytes to a verified release (docs/FORMAT.md section 6, steps 1 and 2).

Only `verify_release` makes a `VerifiedRelease`, so code that takes one cannot be handed an unverified manifest. What it does not do: unwrap
keys, look at blobs, remember releases (trust/host_state.py).
"""

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime

from modelfs.crypto.signatures import TrustedKeys, verify_envelope
from modelfs.errors import BlobNotFoundError, ExpiredError, RollbackError, StoreError, VerificationError
from modelfs.format.envelope import parse_envelope
from modelfs.format.fields import parse_time
from modelfs.format.keysfile import KeysFile, parse_keys
from modelfs.format.limits import MAX_KEYS_SIZE, MAX_MANIFEST_SIZE
from modelfs.format.manifest import MANIFEST_TYPE, Manifest, parse_manifest, without_blobs
from modelfs.store.local import MANIFEST, Store


@dataclass(frozen=True)
class VerifiedRelease:
    """A manifest whose signatures, name and expiry were checked."""

    manifest: Manifest
    payload_digest: str
    """SHA-256 of the signed payload, hex: identifies the release's content."""
    signed_by: tuple[str, ...]
    """keyids of the trusted keys that signed."""

    def without_blobs(self) -> "VerifiedRelease":
        """This release less its blobs: hundreds of bytes for each."""
        return replace(self, manifest=without_blobs(self.manifest))


def verify_release(data: bytes, trusted: TrustedKeys, *, model: str | None, now: datetime, what: str = MANIFEST) -> VerifiedRelease:
    """Verify the bytes of a manifest.json.

    Args:
        data: Untrusted bytes.
        trusted: Never empty.
        model: The expected name; None accepts any (for `verify` and `inspect`, which use nothing of it).
        now: Aware wall-clock time.
        what: How to call the bytes in messages.

    Raises:
        FormatError: Malformed envelope or payload.
        SignatureError: Threshold not met.
        VerificationError: Another model than `model`.
        ExpiredError: `expires` has passed.
    """
    record = parse_envelope(data, MANIFEST_TYPE, MAX_MANIFEST_SIZE, what)
    payload, signed_by = verify_envelope(record, trusted, what)
    manifest = parse_manifest(payload)
    if model is not None and manifest.model != model:
        raise VerificationError(f"this is the model {manifest.model!r}, not {model!r}: name the right model or the right directory")
    check_expiry(manifest, now)
    return VerifiedRelease(manifest, hashlib.sha256(payload).hexdigest(), tuple(signed_by))


def check_expiry(manifest: Manifest, now: datetime) -> None:
    """Raise ExpiredError from the second on that the manifest names."""
    if manifest.expires is not None and now >= parse_time(manifest.expires):
        raise ExpiredError(
            f"release {manifest.release} of {manifest.model} expired at {manifest.expires}: ask its publisher for a newer one"
        )


def check_minimum(manifest: Manifest, minimum: int) -> None:
    """Raise RollbackError for a release below an operator's minimum."""
    if manifest.release < minimum:
        raise RollbackError(f"release {manifest.release} of {manifest.model} is older than the required {minimum}: fetch the newer release")


def read_release(store: Store, trusted: TrustedKeys, *, model: str | None, now: datetime) -> VerifiedRelease:
    """`verify_release` of a store's manifest.json; also StoreError when there is none."""
    try:
        data = store.read_file(MANIFEST, MAX_MANIFEST_SIZE)
    except BlobNotFoundError as exc:
        raise StoreError(f"{store.root} holds no sealed model (no {MANIFEST}): check the path") from exc
    return verify_release(data, trusted, model=model, now=now)


def read_keys(store: Store, manifest: Manifest) -> KeysFile:
    """The recipients of a release: untrusted until a DEK agrees with the commitment."""
    name = f"keys/{manifest.key_commitment}.json"
    return parse_keys(store.read_file(name, MAX_KEYS_SIZE), name)
