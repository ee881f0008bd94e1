"""pending/manifest.json: a finished release that waits for signatures (docs/FORMAT.md section 7). Nothing here is verified."""

from collections.abc import Iterator
from contextlib import contextmanager

from modelfs.errors import ConfigError, FormatError, UnsupportedVersionError
from modelfs.format.envelope import parse_envelope
from modelfs.format.limits import MAX_MANIFEST_SIZE
from modelfs.format.manifest import MANIFEST_TYPE, Manifest, parse_manifest
from modelfs.store.local import Store

WAITING_NAME = "manifest.json"
WAITING = f"pending/{WAITING_NAME}"


_DISCARD = "discard it with `modelfs gc --discard-pending`"


def read_waiting(store: Store) -> bytes | None:
    """The bytes that wait; None if nothing does.

    Raises:
        FormatError: Something lies there that is no file or far too long.
        StoreError: It cannot be read.
    """
    if not is_waiting(store):
        return None
    if store.file_size(WAITING) is None:
        raise FormatError(f"{WAITING} in {store.root} is not a regular file: {_DISCARD}")
    with way_out():
        return store.read_file(WAITING, MAX_MANIFEST_SIZE)


def is_waiting(store: Store) -> bool:
    """Whether anything is there, a release or what somebody has put in its place."""
    return WAITING_NAME in store.names("pending")


@contextmanager
def way_out() -> Iterator[None]:
    """Let a FormatError of what waits say how to be rid of it; never a StoreError, which may pass."""
    try:
        yield
    except UnsupportedVersionError:
        raise  # nothing is wrong with it
    except FormatError as exc:
        raise type(exc)(f"{exc}; {_DISCARD}") from exc


def waiting_manifest(store: Store) -> Manifest | None:
    """The manifest that waits, signatures not checked: good enough to know what not to delete, for nothing else.

    Raises:
        FormatError: It is malformed.
    """
    data = read_waiting(store)
    if data is None:
        return None
    with way_out():
        return parse_manifest(parse_envelope(data, MANIFEST_TYPE, MAX_MANIFEST_SIZE, WAITING).payload_bytes)


def refuse_waiting(store: Store, look: str) -> None:
    """Raise ConfigError if a release waits: who starts another must decide about that one first. `look`: the command that shows it."""
    if is_waiting(store):
        raise ConfigError(
            f"a release waits for signatures in {store.root}/{WAITING}: look at it with `{look}`, sign it with the same and --sign-key, "
            f"or {_DISCARD}"
        )
