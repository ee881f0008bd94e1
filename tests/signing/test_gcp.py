"""Signing keys in Google Cloud KMS, of which no emulator exists: on the stand-in of tests/gcp, over TLS, with a login and permissions."""

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from modelfs.crypto.signatures import load_trusted_keys, verify_envelope
from modelfs.crypto.signing import sign_payload
from modelfs.errors import ConfigError, KeyAccessError, KeyDeniedError, KeyServiceError
from modelfs.keys import export_public_key, open_signer
from tests.gcp.fake import SIGN, VIEW, FakeKms, answer, page

TYPE = "application/vnd.test"
VERSION = "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1"


@pytest.fixture
def uri(gcp: FakeKms, gcp_login: Callable[[Path], None]) -> str:
    """A key that this login may use."""
    version = gcp.signing_key("release", ec.SECP256R1())
    gcp_login(gcp.account("publisher", version, SIGN, VIEW))
    return f"gcpkms:{version}?endpoint={gcp.endpoint}"


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1()], ids=["P-256", "P-384"])
def test_signs_and_verifies(
    gcp: FakeKms, gcp_login: Callable[[Path], None], tmp_path: Path, curve: ec.EllipticCurve, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    version = gcp.signing_key(f"sign-{curve.name}", curve)
    gcp_login(gcp.account("signer", version, SIGN, VIEW))
    uri = f"gcpkms:{version}?endpoint={gcp.endpoint}"
    signer = open_signer(uri)
    envelope = sign_payload(b"payload", TYPE, signer)
    public = tmp_path / "gcp.pub"
    public.write_bytes(export_public_key(uri, None))
    assert verify_envelope(envelope, load_trusted_keys([public]), "it") == (b"payload", [signer.public_key.keyid])
    assert "signing re" not in caplog.text
    assert "earer" not in caplog.text


def test_another_keys_signature_is_never_published(gcp: FakeKms, uri: str) -> None:
    signer = open_signer(uri)
    gcp.signing_keys[signer.gcp_keyid] = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(KeyServiceError, match="no signature of it"):
        sign_payload(b"payload", TYPE, signer)


def test_a_permission_that_is_missing(gcp: FakeKms, gcp_login: Callable[[Path], None], uri: str) -> None:
    version = uri.removeprefix("gcpkms:").partition("?")[0]
    gcp_login(gcp.account("viewer", version, VIEW))
    signer = open_signer(uri)
    with pytest.raises(KeyDeniedError, match=r"sign with .*gcp-signer\.json"):
        sign_payload(b"payload", TYPE, signer)
    gcp_login(gcp.account("nobody", version))
    with pytest.raises(KeyDeniedError, match="show the public key of"):
        open_signer(uri)


def test_a_disabled_version(gcp: FakeKms, uri: str) -> None:
    signer = open_signer(uri)
    gcp.keys[signer.gcp_keyid].states[1] = "DISABLED"
    with pytest.raises(KeyAccessError, match="is it enabled"):
        sign_payload(b"payload", TYPE, signer)


OUTAGES = {
    "throttled": answer("RESOURCE_EXHAUSTED", "own words"),
    "unavailable": answer("UNAVAILABLE", "own words"),
    "a proxy's page": page(502, b"<html>own words</html>"),
}


@pytest.mark.parametrize("misbehave", OUTAGES.values(), ids=OUTAGES)
def test_no_answer_that_counts(gcp: FakeKms, uri: str, misbehave: Callable[..., None]) -> None:
    signer = open_signer(uri)
    gcp.misbehave = misbehave
    try:
        with pytest.raises(KeyServiceError) as caught:
            sign_payload(b"payload", TYPE, signer)
    finally:
        gcp.misbehave = None
    assert "own words" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["gcpkms:", "gcpkms:projects/p", "gcpkms:" + VERSION.rpartition("/cryptoKeyVersions")[0], f"gcpkms:{VERSION}?endpoint=a/b"]
)
def test_malformed_names(uri: str) -> None:
    with pytest.raises(ConfigError, match="does not name a version of a key"):
        open_signer(uri)
