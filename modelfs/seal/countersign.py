"""`modelfs sign`: a second person releases. A signature more for the release that waits in pending/, without its DEK.

Nothing there is believed: a trusted key must have signed it, it must be of the right model, not expired and newer than what is published,
and every blob must be as it says. What is signed is exactly the payload that was verified.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from modelfs.crypto.signatures import TrustedKeys
from modelfs.crypto.signing import Signer, add_signature
from modelfs.errors import ConfigError, FormatError, StoreError, VerificationError
from modelfs.format.envelope import parse_envelope, serialize_envelope
from modelfs.format.limits import MAX_MANIFEST_SIZE
from modelfs.format.manifest import MANIFEST_TYPE, Manifest
from modelfs.reader.verify import Fault, verify_store
from modelfs.seal.growth import EVER, previous_release
from modelfs.seal.releasing import publish, tidy
from modelfs.seal.waiting import WAITING, read_waiting, way_out
from modelfs.seal.work import Surroundings
from modelfs.store.local import MANIFEST, Store
from modelfs.trust.release import VerifiedRelease, read_keys, verify_release

_EARLY = f"{MANIFEST} was this release already, with too few signatures: somebody put it there before it was released"


@dataclass(frozen=True)
class SignRequest:
    """What a signer asks for."""

    model: str
    trusted: TrustedKeys
    """Its threshold is how many of these keys must have signed before the release is published."""
    signer: Signer | None
    """None: only look."""
    payload_digest: str | None = None
    """The only payload to sign, as the one who sealed it has said."""


@dataclass(frozen=True)
class Waiting:
    """What a signer is about to sign; shown before anything is read in full or signed."""

    manifest: Manifest
    payload_digest: str
    """SHA-256 of the signed payload, hex: what two people compare."""
    signed_by: tuple[str, ...]
    """keyids of the trusted keys that have signed."""
    replaces: int | None
    """The release that is published now."""
    recipients: tuple[str, ...]
    """Who the keys file is wrapped for; nobody vouches for it."""

    @property
    def sealed_bytes(self) -> int:
        """Ciphertext and digests of all blobs."""
        shapes = [self.manifest.geometry(blob) for blob in self.manifest.blobs]
        return sum(shape.ciphertext_size + shape.digests_size for shape in shapes)

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        manifest = self.manifest
        return {
            **manifest.model_dump(exclude={"blobs"}),
            "payload_digest": self.payload_digest,
            "signed_by": list(self.signed_by),
            "replaces": self.replaces,
            "blobs": len(manifest.blobs),
            "plaintext_bytes": sum(blob.size for blob in manifest.blobs if blob.id != manifest.index),
            "sealed_bytes": self.sealed_bytes,
            "keks": list(self.recipients),
        }


@dataclass
class SignReport:
    """What became of it."""

    is_new: bool
    """Whether this run added a signature."""
    is_published: bool
    signed_by: list[str]
    notes: list[str] = field(default_factory=list)


def sign_waiting(path: Path, request: SignRequest, around: Surroundings, show: Callable[[Waiting], None]) -> SignReport:
    """Verify the release that waits, sign it, and publish it if that is enough.

    Args:
        path: A sealed model.
        request: See `SignRequest`.
        around: Its `progress` is told of ciphertext bytes.
        show: Given what is about to be verified in full and signed.

    Raises:
        ConfigError: No release waits, or the signing key is not trusted.
        FormatError: What waits is malformed.
        SignatureError: No trusted key has signed it.
        VerificationError: Another model or payload, expired, or not as signed.
        RollbackError: It does not grow.
        KeyAccessError: The signing key cannot be used.
        StoreError: The store cannot be read or written.
    """
    with Store(path) as store:
        if not store.names("pending"):
            raise _nothing_waits(store)
        with store.writer_lock():
            return _sign(store, request, around, show)


def _sign(store: Store, request: SignRequest, around: Surroundings, show: Callable[[Waiting], None]) -> SignReport:
    any_of = TrustedKeys(request.trusted.keys, 1)
    data = read_waiting(store)
    if data is None:
        raise _nothing_waits(store)
    with way_out():
        release = verify_release(data, any_of, model=request.model, now=around.now, what=WAITING)
    manifest = release.manifest
    if request.payload_digest is not None and request.payload_digest != release.payload_digest:
        raise VerificationError(
            f"the release that waits has the payload digest {release.payload_digest} and not {request.payload_digest}: ask who sealed it"
        )
    published = _published(store, release, request.trusted)
    if published is not None:
        return published
    previous = previous_release(store, request.trusted, request.model, manifest.release, release.payload_digest)
    show(
        Waiting(
            manifest,
            release.payload_digest,
            release.signed_by,
            previous.manifest.release if previous else None,
            _recipients(store, manifest),
        )
    )
    faults = verify_store(store, manifest, around.progress)
    if faults:
        raise VerificationError(
            f"the release that waits is not whole, {len(faults)} fault(s), the first: {_describe(faults[0])}; nothing was signed: "
            "seal it again (`modelfs gc --discard-pending` first)"
        )
    if request.signer is None:
        return SignReport(False, False, list(release.signed_by))
    record = parse_envelope(data, MANIFEST_TYPE, MAX_MANIFEST_SIZE, WAITING)
    signed, is_new = add_signature(record, request.trusted, request.signer)
    envelope = serialize_envelope(signed)
    signed_by = list(verify_release(envelope, any_of, model=request.model, now=around.now, what=WAITING).signed_by)
    if len(signed_by) < request.trusted.threshold:
        store.write_file(WAITING, envelope)
        return SignReport(is_new, False, signed_by)
    notes = [_EARLY] if previous is not None and previous.payload_digest == release.payload_digest else []
    return SignReport(is_new, True, signed_by, [*notes, *publish(store, envelope, manifest.release)])


def _published(store: Store, waiting: VerifiedRelease, trusted: TrustedKeys) -> SignReport | None:
    """If a run died between publishing the release that waits and clearing up: clear up."""
    try:
        envelope = store.read_file(MANIFEST, MAX_MANIFEST_SIZE)
        current = verify_release(envelope, trusted, model=waiting.manifest.model, now=EVER)
    except (StoreError, FormatError, VerificationError):
        return None
    if current.payload_digest != waiting.payload_digest:
        return None
    notes = tidy(store, envelope, current.manifest.release)
    return SignReport(False, True, list(current.signed_by), ["it was published already", *notes])


def _recipients(store: Store, manifest: Manifest) -> tuple[str, ...]:
    try:
        return tuple(f"{entry.scheme}:{entry.key_ref}" for entry in read_keys(store, manifest).recipients)
    except (StoreError, FormatError):
        return ()  # one of the faults that are found next


def _describe(fault: Fault) -> str:
    where = fault.blob if fault.block is None else f"{fault.blob} block {fault.block}"
    return f"{where}: {fault.what}: expected {fault.expected}, found {fault.found}"


def _nothing_waits(store: Store) -> ConfigError:
    return ConfigError(f"no release waits for signatures in {store.root}: make one with `modelfs seal --pending`")
