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


def previous_release(
    store: Store, trusted: TrustedKeys | None, model: str, release: int, waiting: str | None = None
) -> VerifiedRelease | None:
    """The release that `release` comes after, verified, expired or not; None for the first of a model.

    One trusted key is enough for it: the threshold is for what is to be published. So a model moves from one signature to two.
    Whoever takes over content from it looks at its `signed_by`.

    Args:
        store: Its writer's lock is held by the caller.
        trusted: Its threshold is not asked for.
        model: The expected name.
        release: The number that is to grow.
        waiting: Payload digest of the release that waits, if that is `release`: a copy of it, which the storage can put anywhere
            before enough people have signed, does not hinder it. In manifest.json, it is what is returned.

    Raises:
        ConfigError: There is one, and no trusted key to verify it with.
        RollbackError: `release` does not grow.
        VerificationError: The release that is there is not by a trusted key or of another model.
    """
    archived = [number for number in archived_releases(store) if number >= release]
    has_current = store.file_size(MANIFEST) is not None
    if not has_current and not archived:
        return None
    if trusted is None:
        raise ConfigError(f"{store.root} holds a release already: name its publisher's public key with --trust")
    any_of = TrustedKeys(trusted.keys, 1)
    for number in archived:  # manifest.json may be an older one that somebody put back
        name = f"manifests/{number}.json"
        found = verify_release(store.read_file(name, MAX_MANIFEST_SIZE), any_of, model=model, now=EVER, what=name)
        if found.payload_digest != waiting:
            raise RollbackError(f"release {release} does not grow: {store.root} has {name}; use {max(archived) + 1} or more")
    if not has_current:
        return None
    previous = read_release(store, any_of, model=model, now=EVER)
    if release <= previous.manifest.release and previous.payload_digest != waiting:
        raise RollbackError(
            f"release {release} does not grow: {store.root} holds release {previous.manifest.release}; "
            f"use {previous.manifest.release + 1} or more"
        )
    return previous
