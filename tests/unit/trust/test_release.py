"""From bytes to a verified release: signature, name, expiry, minimum."""

from datetime import timedelta
from pathlib import Path

import pytest

from modelfs.crypto.signatures import load_trusted_keys
from modelfs.errors import ExpiredError, FormatError, LimitExceededError, RollbackError, SignatureError, StoreError, VerificationError
from modelfs.format.limits import MAX_MANIFEST_SIZE
from modelfs.store.local import Store
from modelfs.trust.release import check_minimum, read_release, verify_release
from tests.conftest import SealedBuilder
from tests.helpers import MODEL, NOW, KeySet, Sealed, resign, write_manifest


@pytest.fixture
def model(sealed: SealedBuilder) -> Sealed:
    return sealed({"a": b"x"}, expires=NOW + timedelta(days=1))


def test_read_release(model: Sealed, keys_dir: KeySet) -> None:
    with Store(model.path) as store:
        release = read_release(store, keys_dir.trusted(), model=MODEL, now=NOW)
    assert (release.manifest.model, release.manifest.release) == (MODEL, 1)
    assert release.signed_by == (keys_dir.trusted().keys[0].keyid,)
    assert len(release.payload_digest) == 64


def test_verify_release_refuses_a_stranger(model: Sealed, keys_dir: KeySet) -> None:
    with pytest.raises(SignatureError):
        verify_release((model.path / "manifest.json").read_bytes(), load_trusted_keys([keys_dir.stranger_public]), model=None, now=NOW)


@pytest.mark.parametrize("name", ["other", "Demo", "demo2"])
def test_verify_release_refuses_another_model(model: Sealed, keys_dir: KeySet, name: str) -> None:
    with pytest.raises(VerificationError, match=f"'{MODEL}', not '{name}'"):
        verify_release((model.path / "manifest.json").read_bytes(), keys_dir.trusted(), model=name, now=NOW)


@pytest.mark.parametrize(("seconds", "good"), [(-1, True), (0, False), (1, False)])
def test_release_expires_at_the_named_second(model: Sealed, keys_dir: KeySet, seconds: int, good: bool) -> None:
    data = (model.path / "manifest.json").read_bytes()
    now = NOW + timedelta(days=1, seconds=seconds)
    if good:
        assert verify_release(data, keys_dir.trusted(), model=MODEL, now=now).manifest.expires
    else:
        with pytest.raises(ExpiredError, match="expired at 2025-06-02T12:00:00Z"):
            verify_release(data, keys_dir.trusted(), model=MODEL, now=now)


def test_signature_is_checked_before_the_payload_is_parsed(model: Sealed, keys_dir: KeySet) -> None:
    write_manifest(model.path, b"not even JSON", keys_dir.stranger_signing)
    data = (model.path / "manifest.json").read_bytes()
    with pytest.raises(SignatureError):
        verify_release(data, keys_dir.trusted(), model=MODEL, now=NOW)
    write_manifest(model.path, b"not even JSON", keys_dir.signing)
    with pytest.raises(FormatError):
        verify_release((model.path / "manifest.json").read_bytes(), keys_dir.trusted(), model=MODEL, now=NOW)


def test_payload_digest_identifies_the_content_not_the_signature(model: Sealed, keys_dir: KeySet) -> None:
    before = model.release()
    resign(model, lambda fields: None)
    assert model.release().payload_digest == before.payload_digest
    resign(model, lambda fields: fields.update(created="2024-01-01T00:00:00Z"))
    assert model.release().payload_digest != before.payload_digest


@pytest.mark.parametrize(("minimum", "good"), [(0, True), (1, True), (2, False)])
def test_check_minimum(model: Sealed, minimum: int, good: bool) -> None:
    if good:
        check_minimum(model.manifest, minimum)
    else:
        with pytest.raises(RollbackError, match="required 2"):
            check_minimum(model.manifest, minimum)


def test_read_release_of_an_empty_directory(tmp_path: Path, keys_dir: KeySet) -> None:
    with Store(tmp_path) as store, pytest.raises(StoreError, match="holds no sealed model"):
        read_release(store, keys_dir.trusted(), model=None, now=NOW)


def test_read_release_checks_the_size_before_reading(model: Sealed, keys_dir: KeySet) -> None:
    with open(model.path / "manifest.json", "r+b") as file:
        file.truncate(MAX_MANIFEST_SIZE + 1)  # sparse
    with Store(model.path) as store, pytest.raises(LimitExceededError, match="limit of 67108864"):
        read_release(store, keys_dir.trusted(), model=None, now=NOW)
