"""rotate: the same tree under keys that nobody has had; its cost is said before, and what cannot be done leaves the old release alone."""

import os
from datetime import timedelta
from pathlib import Path
from threading import Event

import pytest

from modelfs.crypto.aead import BlobCipher
from modelfs.crypto.kdf import index_key
from modelfs.errors import (
    BlobNotFoundError,
    BlockAuthError,
    ConfigError,
    ExpiredError,
    KeyDeniedError,
    RollbackError,
    SignatureError,
    StoreError,
    VerificationError,
)
from modelfs.format.geometry import TAG_SIZE
from modelfs.keys.interface import unwrap_dek
from modelfs.seal.encrypt import Cancelled
from modelfs.seal.retention import collect_garbage
from modelfs.seal.rotate import Cost
from modelfs.store.local import Store
from modelfs.trust.release import read_keys
from tests.conftest import SealedBuilder
from tests.helpers import BLOCK, NOW, KeySet, Sealed, rotate, seal, store_files

FILES = {"a": b"a" * 9000, "d/b": os.urandom(3_000_001), "empty": b"", "same": b"s" * 100, "twin": b"s" * 100}


@pytest.fixture
def model(sealed: SealedBuilder) -> Sealed:
    return sealed(FILES, symlinks={"d/link": "../a"})


def test_the_same_tree_under_new_keys(model: Sealed, keys_dir: KeySet) -> None:
    before, old = model.manifest, model.index()
    report = rotate(keys_dir, model.path, release=2)
    assert report is not None
    assert vars(report) == {
        "model": "demo", "release": 2, "old_release": 1, "files": 5, "bytes": 3_009_201, "encrypted": 5, "resumed": 0, "notes": [],
    }  # fmt: skip
    after, new = model.manifest, model.index()
    assert model.read() == FILES
    assert model.faults() == []
    own = {"blob", "key"}
    assert [entry.model_dump(exclude=own) for entry in new.entries] == [entry.model_dump(exclude=own) for entry in old.entries]
    assert not {blob.id for blob in after.blobs} & {blob.id for blob in before.blobs}
    assert not {entry.key for entry in new.files} & {entry.key for entry in old.files}
    assert (after.release, after.block_size, after.digest, after.expires) == (2, before.block_size, before.digest, before.expires)
    assert after.key_commitment != before.key_commitment
    assert after.key_id != before.key_id
    assert sorted(os.listdir(model.path)) == ["blobs", "keys", "manifest.json", "manifests"]


@pytest.mark.parametrize("digest", ["blake3", "sha256"])
@pytest.mark.parametrize("block_size", [4096, 131072, 4 << 20])
def test_every_block_size_and_digest(keys_dir: KeySet, sealed: SealedBuilder, block_size: int, digest: str) -> None:
    model = sealed({"f": os.urandom(5_000_003), "g": b"1"}, block_size=block_size, digest=digest)
    rotate(keys_dir, model.path, release=2)
    assert model.read() == model.plain
    assert (model.manifest.block_size, model.manifest.digest) == (block_size, digest)


def test_expiry_is_kept(keys_dir: KeySet, sealed: SealedBuilder) -> None:
    model = sealed({"f": b"1"}, expires=NOW + timedelta(days=9))
    expires = model.manifest.expires
    rotate(keys_dir, model.path, release=2)
    assert model.manifest.expires == expires is not None
    with pytest.raises(ExpiredError):
        rotate(keys_dir, model.path, release=3, now=NOW + timedelta(days=10))


def test_after_gc_the_old_keys_open_nothing(model: Sealed, keys_dir: KeySet) -> None:
    """Whoever has the old DEK has every blob key of the old index too."""
    dek, keys = model.dek(), [entry.blob_key for entry in model.index().files]
    rotate(keys_dir, model.path, release=2)
    with Store(model.path) as store, store.writer_lock():
        collect_garbage(store, 1)
    manifest = model.manifest
    assert os.listdir(model.path / "keys") == [f"{manifest.key_commitment}.json"]
    ids = {name for name in os.listdir(model.path / "blobs") if not name.endswith(".digests")}
    assert ids == {blob.id for blob in manifest.blobs}
    tried = 0
    for blob in manifest.blobs:
        shape = manifest.geometry(blob)
        block = (model.path / "blobs" / blob.id).read_bytes()[: shape.block_length(0) + TAG_SIZE]
        for key in [*keys, dek, index_key(dek, blob.id)]:
            with pytest.raises(BlockAuthError):
                BlobCipher(key, blob.id, shape).decrypt_block(0, memoryview(block), memoryview(bytearray(shape.block_length(0))))
            tried += 1
    assert tried == 6 * 7


def test_recipients_are_those_that_are_named(model: Sealed, keys_dir: KeySet) -> None:
    rotate(keys_dir, model.path, release=2, keks=[keys_dir.kek, keys_dir.stranger_kek])
    with Store(model.path) as store:
        assert len(read_keys(store, model.manifest).recipients) == 2
    rotate(keys_dir, model.path, release=3, keks=[keys_dir.kek])
    with Store(model.path) as store:
        keys = read_keys(store, model.manifest)
    assert len(keys.recipients) == 1
    assert unwrap_dek(keys_dir.provider(), keys, model.manifest) == model.dek()


def test_cost_is_told_before_anything_is_written(model: Sealed, keys_dir: KeySet) -> None:
    before = {name: (model.path / name).stat().st_mtime_ns for name in store_files(model.path)}
    told: list[Cost] = []

    def tell(cost: Cost) -> bool:
        told.append(cost)
        assert {name: (model.path / name).stat().st_mtime_ns for name in store_files(model.path) if "pending" not in name} == before
        return False

    assert rotate(keys_dir, model.path, release=2, tell=tell) is None
    assert {name: (model.path / name).stat().st_mtime_ns for name in store_files(model.path)} == before
    (cost,) = told
    stored = sum((model.path / name).stat().st_size for name in store_files(model.path) if name.startswith("blobs/"))
    assert (cost.read_bytes, cost.write_bytes, cost.files, cost.resumed) == (stored, stored, 5, 0)
    assert (cost.old_release, cost.release, cost.plaintext_bytes) == (1, 2, 3_009_201)
    assert cost.free_bytes > stored
    assert 0 < cost.least_seconds < 60
    written = set(store_files(model.path))
    rotate(keys_dir, model.path, release=2)
    new = [name for name in store_files(model.path) if name.startswith("blobs/") and name not in written]
    assert sum((model.path / name).stat().st_size for name in new) == cost.write_bytes


def test_what_does_not_fit_is_refused_at_once(model: Sealed, keys_dir: KeySet, monkeypatch: pytest.MonkeyPatch) -> None:
    before = store_files(model.path)
    stored = sum((model.path / name).stat().st_size for name in before if name.startswith("blobs/"))
    monkeypatch.setattr(Store, "free_bytes", lambda _self: stored - 1)
    with pytest.raises(StoreError, match=f"takes {stored} bytes and .* has {stored - 1} free: make room"):
        rotate(keys_dir, model.path, release=2)
    assert store_files(model.path) == before
    monkeypatch.setattr(Store, "free_bytes", lambda _self: stored)
    rotate(keys_dir, model.path, release=2)


def test_an_interrupted_rotation_goes_on(model: Sealed, keys_dir: KeySet) -> None:
    stop, costs = Event(), []
    stored = sum(file.stat().st_size for file in (model.path / "blobs").iterdir())

    def progress(count: int) -> None:
        if count == 100:  # one of the small files, which come last
            stop.set()

    with pytest.raises(Cancelled):
        rotate(keys_dir, model.path, release=2, stop=stop, progress=progress)
    assert model.read() == FILES
    assert model.manifest.release == 1

    def tell(cost: Cost) -> bool:
        costs.append(cost)
        return True

    report = rotate(keys_dir, model.path, release=2, tell=tell)
    assert report is not None
    assert report.resumed >= 1
    assert report.resumed + report.encrypted == 5
    assert costs[0].resumed == report.resumed
    assert costs[0].write_bytes < stored
    assert model.read() == FILES


def test_another_release_or_a_seal_starts_anew(model: Sealed, keys_dir: KeySet) -> None:
    def interrupt(release: int) -> None:
        stop = Event()
        with pytest.raises(Cancelled):
            rotate(keys_dir, model.path, release=release, stop=stop, progress=lambda _: stop.set())

    interrupt(2)
    report = rotate(keys_dir, model.path, release=3)
    assert report is not None
    assert report.notes == ["the unfinished rotation of release 2 is not this one: started anew"]
    assert report.resumed == 0
    interrupt(4)
    again = seal(keys_dir, model.source, model.path, release=4)
    assert again.notes == ["the unfinished rotation of release 4 is not this one: started anew"]
    assert again.resumed == 0
    assert again.reused == 5
    stop = Event()
    (model.source / "a").write_bytes(b"new" * 9000)
    with pytest.raises(Cancelled):
        seal(keys_dir, model.source, model.path, release=5, stop=stop, progress=lambda _: stop.set())
    rotated = rotate(keys_dir, model.path, release=5)
    assert rotated is not None
    assert rotated.notes == ["the unfinished seal of release 5 is not this one: started anew"]
    assert model.read() == FILES


def test_a_rotation_of_another_release_is_not_resumed(model: Sealed, keys_dir: KeySet) -> None:
    """Release 1 was put back after release 2 was begun to be rotated from another."""
    other = model.copy(model.path.parent / "other")
    stop = Event()
    with pytest.raises(Cancelled):
        rotate(keys_dir, other.path, release=3, stop=stop, progress=lambda _: stop.set())
    (model.source / "a").write_bytes(b"x")
    seal(keys_dir, model.source, model.path, release=2)
    (other.path / "pending").rename(model.path / "pending")
    for blob in (other.path / "blobs").iterdir():
        (model.path / "blobs" / blob.name).write_bytes(blob.read_bytes())
    report = rotate(keys_dir, model.path, release=3)
    assert report is not None
    assert report.resumed == 0
    assert model.read()["a"] == b"x"


REFUSED = {
    "the release does not grow": (RollbackError, {"release": 1}),
    "another model": (VerificationError, {"release": 2, "model": "other"}),
    "a KEK that does not open it": (KeyDeniedError, {"release": 2, "keks": "stranger"}),
    "a stranger's release": (SignatureError, {"release": 2, "trusted": "stranger"}),
}


@pytest.mark.parametrize(("error", "options"), REFUSED.values(), ids=REFUSED)
def test_refused(model: Sealed, keys_dir: KeySet, error: type[Exception], options: dict[str, object]) -> None:
    from modelfs.crypto.signatures import load_trusted_keys

    if "keks" in options:
        options = {**options, "keks": [keys_dir.stranger_kek]}
    if "trusted" in options:
        options = {**options, "trusted": load_trusted_keys([keys_dir.stranger_public])}
    before = store_files(model.path)
    with pytest.raises(error):
        rotate(keys_dir, model.path, **options)
    assert store_files(model.path) == before


def put_back(model: Sealed, keys_dir: KeySet) -> None:
    """Release 2 is published; then the storage puts release 1 back and takes away what tells of release 2."""
    old = (model.path / "manifest.json").read_bytes()
    (model.source / "a").write_bytes(b"new" * 3000)
    seal(keys_dir, model.source, model.path, release=2)
    (model.path / "manifest.json").write_bytes(old)
    (model.path / "manifests/2.json").unlink()


def test_a_release_that_was_put_back_is_not_signed_as_the_newest(model: Sealed, keys_dir: KeySet) -> None:
    put_back(model, keys_dir)
    before = store_files(model.path)
    with pytest.raises(RollbackError, match=r"holds release 1 and not 2, which is to be rotated: put release 2 back"):
        rotate(keys_dir, model.path, release=3, old_release=2)
    assert store_files(model.path) == before
    assert model.manifest.release == 1


def test_without_the_number_of_the_old_release_only_the_report_tells(model: Sealed, keys_dir: KeySet) -> None:
    """A known limit (docs/THREAT_MODEL.md)."""
    put_back(model, keys_dir)
    report = rotate(keys_dir, model.path, release=3)
    assert report is not None
    assert report.old_release == 1
    assert model.read() == FILES


def test_the_old_release_that_is_named_is_rotated_and_no_newer_one(model: Sealed, keys_dir: KeySet) -> None:
    rotate(keys_dir, model.path, release=2, old_release=1)
    with pytest.raises(VerificationError, match="holds release 2 and not 1") as caught:
        rotate(keys_dir, model.path, release=3, old_release=1)
    assert not isinstance(caught.value, RollbackError)
    assert model.manifest.release == 2
    assert model.read() == FILES


def test_nothing_there(keys_dir: KeySet, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no sealed model"):
        rotate(keys_dir, tmp_path, release=1)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("damage", ["flip", "truncate", "missing", "digests"])
def test_a_damaged_blob_is_never_encrypted_anew(model: Sealed, keys_dir: KeySet, damage: str) -> None:
    blob = model.blob_path("d/b")
    data = bytearray(blob.read_bytes())
    if damage == "flip":
        data[2_500_000] ^= 1
        blob.write_bytes(data)
    elif damage == "truncate":
        blob.write_bytes(data[:-BLOCK])
    elif damage == "missing":
        blob.unlink()
    else:
        blob.with_name(f"{blob.name}.digests").write_bytes(b"\0" * 32)
    with pytest.raises((VerificationError, BlobNotFoundError), match=f"d/b cannot be encrypted anew, its blob {blob.name} is damaged"):
        rotate(keys_dir, model.path, release=2)
    assert model.manifest.release == 1


def test_rotated_twice_and_sealed_again_reuses(model: Sealed, keys_dir: KeySet) -> None:
    rotate(keys_dir, model.path, release=2)
    rotate(keys_dir, model.path, release=3)
    report = seal(keys_dir, model.source, model.path, release=4)
    assert (report.reused, report.encrypted) == (5, 0)
    assert model.read() == FILES


def test_pending_waits(model: Sealed, keys_dir: KeySet) -> None:
    rotate(keys_dir, model.path, release=2, pending=True)
    assert model.manifest.release == 1
    assert sorted(os.listdir(model.path / "pending")) == ["lock", "manifest.json"]
    with pytest.raises(ConfigError, match="a release waits for signatures"):
        rotate(keys_dir, model.path, release=3)
