"""Release numbers only grow: what a new release comes after, and that no number is ever signed twice."""

from datetime import UTC, datetime

from modelfs.crypto.signatures import TrustedKeys
from modelfs.errors import ConfigError, RollbackError
from modelfs.format.limits import MAX_MANIFEST_SIZE
from modelfs.seal.retention import archived_releases
from modelfs.store.local import MANIFEST, Store
from modelfs.trust.release import VerifiedRelease, read_release, verify_release

EVER = datetime.min.replace(tzinfo=UTC)
"""Before every expiry: replacing an expired release is what a publisher does."""


def previous_release(store: Store, trusted: TrustedKeys | None, model: str, release: int) -> VerifiedRelease | None:
    """The release that `release` comes after, verified, expired or not; None for the first of a model.

    Raises:
        ConfigError: There is one, and no trusted key to verify it with.
        RollbackError: `release` does not grow.
        VerificationError: The release that is there is not by a trusted key or of another model.
    """
    archived = [number for number in archived_releases(store) if number >= release]
    if store.file_size(MANIFEST) is None and not archived:
        return None
    if trusted is None:
        raise ConfigError(f"{store.root} holds a release already: name its publisher's public key with --trust")
    for number in archived:  # manifest.json may be an older one that somebody put back
        name = f"manifests/{number}.json"
        verify_release(store.read_file(name, MAX_MANIFEST_SIZE), trusted, model=model, now=EVER, what=name)
        raise RollbackError(f"release {release} does not grow: {store.root} has {name}; use {max(archived) + 1} or more")
    previous = read_release(store, trusted, model=model, now=EVER)
    if release <= previous.manifest.release:
        raise RollbackError(
            f"release {release} does not grow: {store.root} holds release {previous.manifest.release}; "
            f"use {previous.manifest.release + 1} or more"
        )
    return previous
