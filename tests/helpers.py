"""What many tests need: keys, a source tree, sealing it, reading all of it back. Real cryptography throughout."""

import json
import os
import shutil
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from modelfs.crypto.signatures import TrustedKeys, load_trusted_keys
from modelfs.crypto.signing import generate_signing_key, load_signer, sign_payload
from modelfs.errors import ModelfsError
from modelfs.format import canonical
from modelfs.format.envelope import serialize_envelope
from modelfs.format.fields import decode_base64
from modelfs.format.index import FileEntry, Index
from modelfs.format.manifest import MANIFEST_TYPE, BlobEntry, Manifest, parse_manifest
from modelfs.keys.file import FileProvider, generate_kek, open_provider
from modelfs.keys.interface import unwrap_dek
from modelfs.reader.blob import BlobReader, ReadBuffers
from modelfs.reader.index import fetch_index, open_index
from modelfs.reader.verify import Fault, verify_store
from modelfs.seal.publish import SealReport, SealRequest, Surroundings, seal_model
from modelfs.seal.rotate import Cost, RotateReport, RotateRequest, rotate_model
from modelfs.seal.scan import scan_source
from modelfs.store.local import Store
from modelfs.trust.release import VerifiedRelease, read_keys, read_release

REPOSITORY = Path(__file__).resolve().parent.parent
NOW = datetime(2025, 6, 1, 12, 0, 0, tzinfo=UTC)
MODEL = "demo"
BLOCK = 4096


@dataclass(frozen=True)
class KeySet:
    """Key files: a publisher's, a stranger's, and a KEK of each."""

    directory: Path

    @classmethod
    def generate(cls, directory: Path) -> "KeySet":
        """Make all of them."""
        for name in ("release.pem", "stranger.pem"):
            generate_signing_key(directory / name)
        for name in ("kek", "stranger.kek"):
            generate_kek(directory / name)
        return cls(directory)

    @property
    def signing(self) -> Path:
        return self.directory / "release.pem"

    @property
    def public(self) -> Path:
        return self.directory / "release.pem.pub"

    @property
    def kek(self) -> Path:
        return self.directory / "kek"

    @property
    def stranger_signing(self) -> Path:
        return self.directory / "stranger.pem"

    @property
    def stranger_public(self) -> Path:
        return self.directory / "stranger.pem.pub"

    @property
    def stranger_kek(self) -> Path:
        return self.directory / "stranger.kek"

    def trusted(self) -> TrustedKeys:
        return load_trusted_keys([self.public])

    def provider(self) -> FileProvider:
        return open_provider(str(self.kek))


def write_tree(root: Path, files: Mapping[str, bytes | None], symlinks: Mapping[str, str] | None = None) -> Path:
    """Make a source tree: bytes are files, None is a directory."""
    root.mkdir(parents=True, exist_ok=True)
    for path, content in files.items():
        target = root / path
        if content is None:
            target.mkdir(parents=True, exist_ok=True)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(content)
    for path, link in (symlinks or {}).items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        os.symlink(link, root / path)
    return root


def seal(
    keys: KeySet,
    source: Path,
    destination: Path,
    *,
    release: int = 1,
    model: str = MODEL,
    block_size: int = BLOCK,
    digest: str = "blake3",
    expires: datetime | None = None,
    trusted: TrustedKeys | None = None,
    signing: Path | None = None,
    keks: Sequence[Path] = (),
    follow_symlinks: bool = False,
    entropy: Callable[[int], bytes] = os.urandom,
    progress: Callable[[int], None] = lambda _: None,
    stop: threading.Event | None = None,
    now: datetime = NOW,
    pending: bool = False,
) -> SealReport:
    """`modelfs seal` in process. A later release trusts the publisher's own key unless told otherwise."""
    request = SealRequest(
        model=model,
        release=release,
        providers=[open_provider(str(kek)) for kek in keks or [keys.kek]],
        signer=load_signer(signing or keys.signing),
        digest=digest,
        block_size=block_size,
        expires=expires,
        trusted=trusted or keys.trusted(),
        is_pending=pending,
    )
    around = Surroundings(now=now, entropy=entropy, progress=progress, stop=stop or threading.Event())
    return seal_model(scan_source(source, follow_symlinks), destination, request, around)


def rotate(
    keys: KeySet,
    path: Path,
    *,
    release: int,
    model: str = MODEL,
    trusted: TrustedKeys | None = None,
    signing: Path | None = None,
    keks: Sequence[Path] = (),
    old_release: int | None = None,
    pending: bool = False,
    entropy: Callable[[int], bytes] = os.urandom,
    progress: Callable[[int], None] = lambda _: None,
    stop: threading.Event | None = None,
    tell: Callable[[Cost], bool] = lambda _: True,
    now: datetime = NOW,
) -> RotateReport | None:
    """`modelfs rotate` in process."""
    providers = [open_provider(str(kek)) for kek in keks or [keys.kek]]
    signer = load_signer(signing or keys.signing)
    request = RotateRequest(model, release, providers, signer, trusted or keys.trusted(), old_release, pending)
    around = Surroundings(now=now, entropy=entropy, progress=progress, stop=stop or threading.Event())
    return rotate_model(path, request, around, tell)


@dataclass(frozen=True)
class Sealed:
    """A sealed model on disk, and the keys to look into it."""

    path: Path
    source: Path
    keys: KeySet
    plain: Mapping[str, bytes] = field(default_factory=dict)
    """Expected plaintext of every file of the current release."""

    def copy(self, to: Path) -> "Sealed":
        """The same, elsewhere, to be damaged."""
        shutil.copytree(self.path, to, symlinks=True)
        return Sealed(to, self.source, self.keys, self.plain)

    def release(self) -> VerifiedRelease:
        with Store(self.path) as store:
            return read_release(store, self.keys.trusted(), model=None, now=NOW)

    @property
    def manifest(self) -> Manifest:
        return self.release().manifest

    def dek(self) -> bytes:
        with Store(self.path) as store:
            manifest = self.manifest
            return unwrap_dek(self.keys.provider(), read_keys(store, manifest), manifest)

    def index(self) -> Index:
        with Store(self.path) as store:
            return open_index(fetch_index(store, self.manifest), self.manifest, self.dek())

    def faults(self) -> list[Fault]:
        """What `verify` finds."""
        with Store(self.path) as store:
            return verify_store(store, self.manifest)

    def entry(self, path: str) -> FileEntry:
        return next(entry for entry in self.index().files if entry.path == path)

    def blob_path(self, path: str) -> Path:
        """Where the ciphertext of the source file `path` is."""
        return self.path / "blobs" / self.entry(path).blob

    def read(self) -> dict[str, bytes]:
        """Every file's plaintext; raises what reading raises."""
        outcome = read_all(self.path, self.keys)
        if outcome.error is not None:
            raise outcome.error
        for result in outcome.files.values():
            if result.error is not None:
                raise result.error
        return {path: result.data for path, result in outcome.files.items()}


@dataclass
class FileOutcome:
    """What came out of one file, and the error that ended it."""

    data: bytes
    error: ModelfsError | None
    spilled: bytes = b""
    """What the reply buffer held after the failed read."""


@dataclass
class ReadOutcome:
    """What came out of a sealed model."""

    error: ModelfsError | None
    files: dict[str, FileOutcome]

    @property
    def errors(self) -> list[ModelfsError]:
        first = [self.error] if self.error else []
        return first + [result.error for result in self.files.values() if result.error]


def read_all(path: Path, keys: KeySet, *, model: str | None = MODEL, step: int = BLOCK) -> ReadOutcome:
    """Read a sealed model as a mount would: verify, unwrap, open the index, read every file, `step` bytes at a time.

    Only ModelfsError is caught: any other exception is a bug and fails the test.
    """
    files: dict[str, FileOutcome] = {}
    try:
        with Store(path) as store:
            manifest = read_release(store, keys.trusted(), model=model, now=NOW).manifest
            dek = unwrap_dek(keys.provider(), read_keys(store, manifest), manifest)
            index = open_index(fetch_index(store, manifest), manifest, dek)
            blobs = {blob.id: blob for blob in manifest.blobs}
            buffers = ReadBuffers()
            for entry in index.files:
                files[entry.path] = _read_file(store, manifest, blobs[entry.blob], entry, buffers, step)
    except ModelfsError as exc:
        return ReadOutcome(exc, files)
    return ReadOutcome(None, files)


def _read_file(store: Store, manifest: Manifest, blob: BlobEntry, entry: FileEntry, buffers: ReadBuffers, step: int) -> FileOutcome:
    data = bytearray()
    out = bytearray(step)
    try:
        reader = BlobReader(store, blob, manifest.geometry(blob), manifest.digest, entry.blob_key, buffers)
    except ModelfsError as exc:
        return FileOutcome(b"", exc)
    try:
        while True:
            out[:] = bytes(step)
            count = reader.read_into(len(data), memoryview(out))
            data += out[:count]
            if count < step:
                return FileOutcome(bytes(data), None)
    except ModelfsError as exc:
        return FileOutcome(bytes(data), exc, bytes(out))
    finally:
        reader.close()


def resign(sealed: Sealed, change: Callable[[dict[str, Any]], None], signing: Path | None = None) -> None:
    """Replace manifest.json by one whose payload `change` has edited, signed by `signing` (default: the publisher)."""
    payload = manifest_fields(sealed.path / "manifest.json")
    change(payload)
    write_manifest(sealed.path, canonical.serialize_value(payload), signing or sealed.keys.signing)


def write_manifest(path: Path, payload: bytes, signing: Path) -> None:
    """Sign any payload as manifest.json."""
    (path / "manifest.json").write_bytes(serialize_envelope(sign_payload(payload, MANIFEST_TYPE, load_signer(signing))))


def manifest_fields(path: Path) -> dict[str, Any]:
    """The payload of a manifest.json as plain JSON, nothing verified."""
    fields: dict[str, Any] = json.loads(manifest_payload(path))
    return fields


def manifest_payload(path: Path) -> bytes:
    return decode_base64(json.loads(path.read_bytes())["payload"])


def unverified_manifest(path: Path) -> Manifest:
    return parse_manifest(manifest_payload(path))


def store_files(path: Path) -> list[str]:
    """Every file of a sealed model, relative, sorted."""
    found = sorted(str(file.relative_to(path)) for file in path.rglob("*") if file.is_file())
    assert found, f"nothing in {path}"
    return found


def chunks(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
