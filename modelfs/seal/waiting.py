"""pending/manifest.json: a finished release that waits for signatures (docs/FORMAT.md section 7). Nothing here is verified."""

from modelfs.errors import BlobNotFoundError, ConfigError
from modelfs.format.envelope import parse_envelope
from modelfs.format.limits import MAX_MANIFEST_SIZE
from modelfs.format.manifest import MANIFEST_TYPE, Manifest, parse_manifest
from modelfs.store.local import Store

WAITING_NAME = "manifest.json"
WAITING = f"pending/{WAITING_NAME}"


def waiting_manifest(store: Store) -> Manifest | None:
    """The manifest that waits, signatures not checked: good enough to know what not to delete, for nothing else.

    Raises:
        FormatError: It is malformed.
    """
    try:
        data = store.read_file(WAITING, MAX_MANIFEST_SIZE)
    except BlobNotFoundError:
        return None
    return parse_manifest(parse_envelope(data, MANIFEST_TYPE, MAX_MANIFEST_SIZE, WAITING).payload_bytes)


def refuse_waiting(store: Store) -> None:
    """Raise ConfigError if a release waits: who starts another must decide about that one first."""
    if store.file_size(WAITING) is not None:
        raise ConfigError(
            f"a release waits for signatures in {store.root}/{WAITING}: look at it and sign it with `modelfs sign`, "
            "or discard it with `modelfs gc --discard-pending`"
        )
