"""What commands that only show a sealed model read of it: verified where a publisher is trusted, and marked where none is."""

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

from modelfs.crypto.signatures import load_trusted_keys
from modelfs.errors import ConfigError
from modelfs.format.manifest import Manifest
from modelfs.store.local import MANIFEST, Store
from modelfs.trust.release import read_release


def manifest_to_show(store: Store, trust: list[Path], threshold: int) -> tuple[Manifest, list[str] | None]:
    """The current manifest, whatever its expiry, and the key ids that signed it; None: nothing of it is verified.

    Raises:
        ConfigError: The directory holds no sealed model, or a key cannot be used.
        FormatError, VerificationError, StoreError: As `read_release`.
    """
    if trust:
        release = read_release(store, load_trusted_keys(trust, threshold), model=None, now=datetime.min.replace(tzinfo=UTC))
        return release.manifest, list(release.signed_by)
    from modelfs.seal.retention import current_manifest

    manifest = current_manifest(store)
    if manifest is None:
        raise ConfigError(f"{store.root} holds no sealed model (no {MANIFEST}): check the path")
    return manifest, None


def describe_trust(signed_by: Sequence[str] | None) -> str:
    """Who signed, for people."""
    return "NOT VERIFIED: name the publisher with --trust" if signed_by is None else f"signed by {', '.join(signed_by)}"
