"""Signing keys in AWS KMS: on ministack, which signs digests right, and on moto, which signs their digests: that is never published."""

import logging
from pathlib import Path

import pytest

from modelfs.crypto.signatures import load_trusted_keys, verify_envelope
from modelfs.crypto.signing import sign_payload, trust_signer
from modelfs.errors import ConfigError, KeyAccessError, KeyServiceError
from modelfs.keys import export_public_key, open_signer
from modelfs.keys.vault_settings import VaultSettings
from tests.aws.emulators import ACCESS_KEY, SECRET_KEY, Emulator, credentials_file, environment, use

TYPE = "application/vnd.test"
HTTP = VaultSettings(insecure_http=True)


@pytest.fixture
def login(ministack: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, environment(ministack.address, credentials_file(tmp_path / "credentials")))


@pytest.mark.usefixtures("login")
@pytest.mark.parametrize("spec", ["ECC_NIST_P256", "ECC_NIST_P384"])
def test_signs_and_verifies(ministack: Emulator, tmp_path: Path, spec: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    uri = f"awskms:{ministack.key(KeySpec=spec, KeyUsage='SIGN_VERIFY')}"
    signer = open_signer(uri, HTTP)
    envelope = sign_payload(b"payload", TYPE, signer)
    public = tmp_path / "aws.pub"
    public.write_bytes(export_public_key(uri, HTTP))
    for trusted in (load_trusted_keys([public]), trust_signer(signer)):
        assert verify_envelope(envelope, trusted, "it") == (b"payload", [signer.public_key.keyid])
    for secret in (ACCESS_KEY, SECRET_KEY, "Signing response"):
        assert secret not in caplog.text


@pytest.mark.usefixtures("login")
def test_an_alias_that_is_pointed_at_another_key(ministack: Emulator) -> None:
    """Between opening the key and signing with it: the signature is not the one of the key that was shown."""
    first, second = (ministack.key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY") for _ in range(2))
    ministack.admin().create_alias(AliasName="alias/release", TargetKeyId=first)
    signer = open_signer("awskms:alias/release", HTTP)
    sign_payload(b"payload", TYPE, signer)
    ministack.admin().update_alias(AliasName="alias/release", TargetKeyId=second)
    with pytest.raises(KeyServiceError, match="no signature of it: nothing was published"):
        sign_payload(b"payload", TYPE, signer)


def test_a_service_that_signs_something_else(moto: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto hashes what is a digest already."""
    use(monkeypatch, environment(moto.address, credentials_file(tmp_path / "credentials")))
    signer = open_signer(f"awskms:{moto.key(KeySpec='ECC_NIST_P256', KeyUsage='SIGN_VERIFY')}", HTTP)
    with pytest.raises(KeyServiceError, match="no signature of it: nothing was published"):
        sign_payload(b"payload", TYPE, signer)


@pytest.mark.usefixtures("login")
def test_keys_that_cannot_sign(ministack: Emulator) -> None:
    with pytest.raises(KeyAccessError, match="is none for signing") as symmetric:
        open_signer(f"awskms:{ministack.key()}", HTTP)
    assert not isinstance(symmetric.value, KeyServiceError), "nothing to wait for"
    refused = {
        f"awskms:{ministack.key(KeySpec='RSA_2048', KeyUsage='SIGN_VERIFY')}": ConfigError,
        "awskms:alias/nowhere": KeyAccessError,
        "awskms:": ConfigError,
        "awskms:x y": ConfigError,
    }
    for uri, errors in refused.items():
        with pytest.raises(errors) as caught:
            open_signer(uri, HTTP)
        assert "\n" not in str(caught.value)
    disabled = ministack.key(KeySpec="ECC_NIST_P256", KeyUsage="SIGN_VERIFY")
    signer = open_signer(f"awskms:{disabled}", HTTP)
    ministack.admin().disable_key(KeyId=disabled)
    with pytest.raises(KeyAccessError):
        sign_payload(b"payload", TYPE, signer)


@pytest.mark.usefixtures("login")
def test_plain_http_takes_the_flag(ministack: Emulator) -> None:
    with pytest.raises(KeyAccessError, match="plain http"):
        open_signer(f"awskms:{ministack.key(KeySpec='ECC_NIST_P256', KeyUsage='SIGN_VERIFY')}")
