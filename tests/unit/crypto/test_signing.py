"""Signatures and the threshold: distinct keys count, not signatures and not keyids."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.dsse import Envelope
from securesystemslib.signer import CryptoSigner, SSlibKey

from modelfs.crypto.signatures import TrustedKeys, load_trusted_keys, verify_envelope
from modelfs.crypto.signing import generate_signing_key, load_signer, sign_payload, trust_signer
from modelfs.errors import ConfigError, SignatureError
from modelfs.format.envelope import EnvelopeRecord, build_envelope, serialize_envelope
from modelfs.format.fields import decode_base64
from tests.helpers import KeySet

TYPE = "application/vnd.modelfs.manifest+json"
PAYLOAD = b'{"release":1}'


def private_pem(key: object, encryption: object = None) -> bytes:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption or NoEncryption())


def write_pair(directory: Path, name: str, key: object) -> tuple[Path, Path]:
    private, public = directory / name, directory / f"{name}.pub"
    private.write_bytes(private_pem(key))
    private.chmod(0o600)
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    return private, public


@dataclass(frozen=True)
class Signers:
    private: list[Path]
    public: list[Path]


@pytest.fixture(scope="module")
def signers(tmp_path_factory: pytest.TempPathFactory) -> Signers:
    """An Ed25519, a P-256 and a P-384 key."""
    directory = tmp_path_factory.mktemp("signers")
    made = [ed25519.Ed25519PrivateKey.generate(), ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())]
    pairs = [write_pair(directory, f"k{number}", key) for number, key in enumerate(made)]
    return Signers([pair[0] for pair in pairs], [pair[1] for pair in pairs])


def signature(private: Path, payload: bytes = PAYLOAD, payload_type: str = TYPE) -> tuple[str, bytes]:
    entry = sign_payload(payload, payload_type, load_signer(private)).signatures[0]
    return entry.keyid, decode_base64(entry.sig)


@pytest.mark.parametrize("number", range(3), ids=["Ed25519", "P-256", "P-384"])
def test_securesystemslib_agrees(signers: Signers, number: int) -> None:
    """An independent implementation of DSSE verifies what a key file signed, under the same keyid; and signs what we verify."""
    record = sign_payload(PAYLOAD, TYPE, load_signer(signers.private[number]))
    key = load_pem_public_key(signers.public[number].read_bytes())
    theirs = Envelope.from_dict(json.loads(serialize_envelope(record)))
    assert list(theirs.verify([SSlibKey.from_crypto(key)], 1)) == [record.signatures[0].keyid]
    signer = CryptoSigner(load_pem_private_key(signers.private[number].read_bytes(), None))
    assert count_of(sign_payload(PAYLOAD, TYPE, signer), load_trusted_keys([signers.public[number]])) == 1


def test_a_key_file_loads_the_client_of_no_key_service(signers: Signers) -> None:
    program = (
        "import sys; from pathlib import Path; from modelfs.crypto.signing import *;"
        " sign_payload(b'x', 'y', load_signer(Path(sys.argv[1])));"
        " print(*sorted({'hvac', 'requests', 'boto3', 'securesystemslib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, str(signers.private[0])], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"


def envelope(*signatures: tuple[str, bytes], payload: bytes = PAYLOAD) -> EnvelopeRecord:
    return build_envelope(payload, TYPE, list(signatures))


def count_of(record: EnvelopeRecord, trusted: TrustedKeys) -> int:
    return len(verify_envelope(record, trusted, "manifest.json")[1])


@pytest.mark.parametrize("number", [0, 1, 2], ids=["Ed25519", "P-256", "P-384"])
def test_sign_and_verify(signers: Signers, number: int) -> None:
    record = sign_payload(PAYLOAD, TYPE, load_signer(signers.private[number]))
    payload, signed_by = verify_envelope(record, load_trusted_keys([signers.public[number]]), "manifest.json")
    assert payload == PAYLOAD
    assert signed_by == [record.signatures[0].keyid]


def test_signature_is_dsse(signers: Signers) -> None:
    """Checked with the bare key, over the pre-authentication encoding written out by hand."""
    key = ed25519.Ed25519PrivateKey.generate()
    private, public = write_pair(signers.private[0].parent, "bare", key)
    _, sig = signature(private)
    key.public_key().verify(sig, b"DSSEv1 %d %b %d %b" % (len(TYPE), TYPE.encode(), len(PAYLOAD), PAYLOAD))
    assert public.exists()


@pytest.mark.parametrize("threshold", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_threshold(signers: Signers, threshold: int, count: int) -> None:
    record = envelope(*[signature(private) for private in signers.private[:count]])
    trusted = load_trusted_keys(signers.public, threshold)
    if count >= threshold:
        assert count_of(record, trusted) == count
    else:
        with pytest.raises(SignatureError, match=f"by {count} of the trusted keys and needs {threshold}"):
            verify_envelope(record, trusted, "manifest.json")


def test_repeated_signature_counts_once(signers: Signers) -> None:
    record = envelope(*[signature(signers.private[0])] * 5)
    with pytest.raises(SignatureError, match="by 1 of"):
        verify_envelope(record, load_trusted_keys(signers.public, 2), "manifest.json")


def test_two_signatures_of_one_key_count_once(signers: Signers) -> None:
    """ECDSA signs differently each time, so no two signatures are equal."""
    first, second = signature(signers.private[1]), signature(signers.private[1])
    assert first != second
    with pytest.raises(SignatureError, match="by 1 of"):
        verify_envelope(envelope(first, ("another", second[1])), load_trusted_keys(signers.public, 2), "manifest.json")


def test_one_key_under_two_keyids_counts_once(signers: Signers) -> None:
    sig = signature(signers.private[0])[1]
    with pytest.raises(SignatureError, match="by 1 of"):
        verify_envelope(envelope(("a", sig), ("b", sig)), load_trusted_keys(signers.public, 2), "manifest.json")


def test_one_key_in_two_files_is_one_trusted_key(signers: Signers, tmp_path: Path) -> None:
    """The same key as PEM with other line ends and a comment: distinct by DER, so it is the same."""
    twin = tmp_path / "twin.pub"
    twin.write_bytes(b"# a comment\n" + signers.public[0].read_bytes().replace(b"\n", b"\r\n"))
    assert len(load_trusted_keys([signers.public[0], twin, signers.public[0]]).keys) == 1
    with pytest.raises(ConfigError, match="threshold of 2"):
        load_trusted_keys([signers.public[0], twin], 2)


def test_keyid_decides_nothing(signers: Signers) -> None:
    (own, sig), (other, _) = signature(signers.private[0]), signature(signers.private[1])
    trusted = load_trusted_keys([signers.public[0]])
    for keyid in ("", "nonsense", other, own):
        assert count_of(envelope((keyid, sig)), trusted) == 1
    # And a lie in the other direction: a stranger's signature under a trusted keyid.
    with pytest.raises(SignatureError):
        verify_envelope(envelope((own, signature(signers.private[1])[1])), trusted, "manifest.json")


def test_good_signature_among_bad_ones(signers: Signers) -> None:
    record = envelope(("x", b""), ("y", bytes(64)), signature(signers.private[2]), signature(signers.private[0]))
    assert count_of(record, load_trusted_keys([signers.public[0]])) == 1


GARBAGE = [b"", b"\0", bytes(63), bytes(64), bytes(65), b"\x30\x06\x02\x01\x00\x02\x01\x00", b"\x30" * 200, bytes(range(72))]


@pytest.mark.parametrize("sig", GARBAGE, ids=range(len(GARBAGE)))
@pytest.mark.parametrize("number", [0, 1, 2], ids=["Ed25519", "P-256", "P-384"])
def test_garbage_signatures_are_signature_errors(signers: Signers, number: int, sig: bytes) -> None:
    with pytest.raises(SignatureError):
        verify_envelope(envelope(("k", sig)), load_trusted_keys([signers.public[number]]), "manifest.json")


@pytest.mark.parametrize("number", [0, 1, 2], ids=["Ed25519", "P-256", "P-384"])
def test_every_bit_of_payload_and_signature_matters(signers: Signers, number: int) -> None:
    keyid, sig = signature(signers.private[number])
    trusted = load_trusted_keys([signers.public[number]])
    for position in range(len(PAYLOAD)):
        changed = bytearray(PAYLOAD)
        changed[position] ^= 1
        with pytest.raises(SignatureError):
            verify_envelope(envelope((keyid, sig), payload=bytes(changed)), trusted, "manifest.json")
    for position in range(0, len(sig), 7):
        changed = bytearray(sig)
        changed[position] ^= 1
        with pytest.raises(SignatureError):
            verify_envelope(envelope((keyid, bytes(changed))), trusted, "manifest.json")


def test_signature_is_bound_to_its_type(signers: Signers) -> None:
    of_a_plan = signature(signers.private[0], payload_type="application/vnd.modelfs.plan+json")
    with pytest.raises(SignatureError):
        verify_envelope(envelope(of_a_plan), load_trusted_keys([signers.public[0]]), "manifest.json")


def test_trust_signer_trusts_its_own_key_only(signers: Signers) -> None:
    trusted = trust_signer(load_signer(signers.private[0]))
    assert count_of(envelope(signature(signers.private[0])), trusted) == 1
    with pytest.raises(SignatureError):
        verify_envelope(envelope(signature(signers.private[1])), trusted, "manifest.json")


def test_load_trusted_keys_refuses_nothing_at_all() -> None:
    with pytest.raises(ConfigError, match="--trust"):
        load_trusted_keys([])


@pytest.mark.parametrize("threshold", [-1, 0, 2])
def test_load_trusted_keys_refuses_an_impossible_threshold(keys_dir: KeySet, threshold: int) -> None:
    with pytest.raises(ConfigError, match=f"threshold of {threshold} "):
        load_trusted_keys([keys_dir.public], threshold)


def test_load_trusted_keys_refuses_a_private_key(keys_dir: KeySet) -> None:
    with pytest.raises(ConfigError, match="is a private key: --trust takes the public one"):
        load_trusted_keys([keys_dir.signing])


def rsa_public() -> bytes:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def curve_public() -> bytes:
    return ec.generate_private_key(ec.SECP521R1()).public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "not a public key"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "not a public key"),
        (b"\xff" * 20_000, "not a public key"),
        (rsa_public(), "not an Ed25519 or ECDSA P-256/P-384 key"),
        (curve_public(), "not an Ed25519 or ECDSA P-256/P-384 key"),
    ],
    ids=["empty", "broken", "garbage", "RSA", "P-521"],
)
def test_load_trusted_keys_refuses_the_file(tmp_path: Path, content: bytes, text: str) -> None:
    path = tmp_path / "key.pub"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=text):
        load_trusted_keys([path])


@pytest.mark.parametrize("name", ["missing", "."])
def test_load_trusted_keys_refuses_the_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot read the trusted key"):
        load_trusted_keys([tmp_path / name])


def ed25519_key() -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.generate()


@pytest.mark.parametrize(
    ("content", "mode"),
    [
        (b"", 0o600),
        (b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n", 0o600),
        (private_pem(ed25519_key(), BestAvailableEncryption(b"password")), 0o600),
        (private_pem(rsa.generate_private_key(public_exponent=65537, key_size=2048)), 0o600),
        (private_pem(ec.generate_private_key(ec.SECP521R1())), 0o600),
        (private_pem(ed25519_key()) + b"x" * 20_000, 0o600),
        (private_pem(ed25519_key()), 0o640),
        (private_pem(ed25519_key()), 0o604),
    ],
    ids=["empty", "broken", "encrypted", "RSA", "P-521", "too long", "group may read", "others may read"],
)
def test_load_signer_refuses(tmp_path: Path, content: bytes, mode: int) -> None:
    path = tmp_path / "key.pem"
    path.write_bytes(content)
    path.chmod(mode)
    with pytest.raises(ConfigError) as caught:
        load_signer(path)
    assert caught.value.__cause__ is None or "PRIVATE" not in str(caught.value.__cause__)


def test_generate_signing_key_makes_a_private_and_a_public_file(tmp_path: Path) -> None:
    path = tmp_path / "new.pem"
    keyid = generate_signing_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert load_signer(path).public_key.keyid == keyid
    assert load_trusted_keys([path.with_name("new.pem.pub")]).keys[0].keyid == keyid


@pytest.mark.parametrize("existing", ["new.pem", "new.pem.pub"])
def test_generate_signing_key_overwrites_nothing(tmp_path: Path, existing: str) -> None:
    (tmp_path / existing).write_bytes(b"precious")
    with pytest.raises(ConfigError, match="not overwritten"):
        generate_signing_key(tmp_path / "new.pem")
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [(existing, b"precious")]
