"""Signing keys and the making of DSSE signatures, by securesystemslib (docs/FORMAT.md section 3). For publishers only."""

import logging
import os
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, EllipticCurvePublicNumbers
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.dsse import Envelope
from securesystemslib.signer._crypto_signer import CryptoSigner
from securesystemslib.signer._key import SSlibKey
from securesystemslib.signer._signer import Signer

from modelfs.crypto.keyfiles import create_private, read_private
from modelfs.crypto.signatures import MAX_PEM_SIZE, TrustedKey, TrustedKeys, check_algorithm, pre_authentication_encoding
from modelfs.errors import ConfigError, KeyServiceError
from modelfs.format.envelope import EnvelopeRecord, build_envelope
from modelfs.format.fields import decode_base64

# What its signers log at debug level are requests and answers of key services.
logging.getLogger("securesystemslib").setLevel(logging.CRITICAL)

__all__ = [
    "Signer",
    "add_signature",
    "ed25519_key",
    "generate_signing_key",
    "load_signer",
    "public_pem",
    "sign_payload",
    "signing_key",
    "signing_key_from_pem",
    "signing_key_from_point",
    "trust_signer",
]


def generate_signing_key(path: Path) -> str:
    """Write a new Ed25519 key: `path` (PKCS#8 PEM, 0600) and `path`.pub; return its keyid.

    Raises:
        ConfigError: One of the two exists already (nothing is overwritten) or cannot be written.
    """
    private = Ed25519PrivateKey.generate()
    public = private.public_key()
    public_path = path.with_name(path.name + ".pub")
    if os.path.lexists(public_path):
        raise ConfigError(f"{public_path} exists already and is not overwritten: choose another path")
    create_private(path, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    create_private(public_path, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), mode=0o644)
    return SSlibKey.from_crypto(public).keyid


def load_signer(path: Path) -> CryptoSigner:
    """The signer of a private key file.

    Raises:
        ConfigError: Missing, readable by others, or not an unencrypted Ed25519 or ECDSA private key in PEM.
    """
    data = read_private(path, MAX_PEM_SIZE, "signing key")
    try:
        private = load_pem_private_key(data, None)
        check_algorithm(private.public_key(), path)
        return CryptoSigner(private)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # `from None`: the library's error could quote the key.
        raise ConfigError(f"{path} is not an unencrypted Ed25519 or ECDSA private key in PEM: make one with keygen") from None


def ed25519_key(raw: bytes) -> SSlibKey:
    """A public key from its 32 bytes; ValueError if they are none."""
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(raw))


def signing_key(der: bytes, what: str) -> SSlibKey:
    """A public key from its SubjectPublicKeyInfo in DER.

    Raises:
        ConfigError: It is of a kind that may not sign releases; `what` names it.
        ValueError: It is no public key.
    """
    try:
        return SSlibKey.from_crypto(check_algorithm(load_der_public_key(der), Path(what)).key)
    except UnsupportedAlgorithm as exc:
        raise ValueError("a public key of an unknown kind") from exc


def signing_key_from_pem(pem: bytes, what: str) -> SSlibKey:
    """`signing_key` of the same in PEM."""
    try:
        return SSlibKey.from_crypto(check_algorithm(load_pem_public_key(pem), Path(what)).key)
    except UnsupportedAlgorithm as exc:
        raise ValueError("a public key of an unknown kind") from exc


def signing_key_from_point(curve: str, x: bytes, y: bytes) -> SSlibKey:
    """A public key from a curve's name, as JWK has it, and the coordinates of a point; ValueError if it is none on P-256 or P-384."""
    curves = {"P-256": SECP256R1, "P-384": SECP384R1}
    if curve not in curves:
        raise ValueError("another curve")
    numbers = EllipticCurvePublicNumbers(int.from_bytes(x, "big"), int.from_bytes(y, "big"), curves[curve]())
    return SSlibKey.from_crypto(numbers.public_key())


def public_pem(signer: Signer) -> bytes:
    """The PEM file of a signer's public key, as --trust takes it."""
    (own,) = trust_signer(signer).keys
    return own.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def trust_signer(signer: Signer) -> TrustedKeys:
    """Trust exactly the public half of `signer`."""
    key = signer.public_key
    if not isinstance(key, SSlibKey):
        raise ConfigError("this kind of signing key cannot verify its own signatures")
    public: str = key.keyval["public"]
    if key.keytype == "ed25519":
        return TrustedKeys([TrustedKey(Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)))], 1)
    return TrustedKeys([check_algorithm(load_pem_public_key(public.encode()), Path("the signing key"))], 1)


def sign_payload(payload: bytes, payload_type: str, signer: Signer) -> EnvelopeRecord:
    """An envelope with one signature, which was verified: a key in a device or a service may not be the one that it shows.

    Raises:
        KeyServiceError: What the signer gave is no signature of its key.
    """
    return build_envelope(payload, payload_type, [_sign(payload, payload_type, signer)])


def add_signature(record: EnvelopeRecord, trusted: TrustedKeys, signer: Signer) -> tuple[EnvelopeRecord, bool]:
    """The envelope with the signatures of trusted keys, one of each, and the signer's; whether that was missing.

    Raises:
        ConfigError: The signer's key is not trusted: its signature would not count.
        KeyServiceError: As `sign_payload`.
    """
    payload, kind = record.payload_bytes, record.payloadType
    (own,) = trust_signer(signer).keys
    if own.der not in {key.der for key in trusted.keys}:
        raise ConfigError("the signing key is none of the trusted ones, so its signature would not count: name its public key with --trust")
    pae = pre_authentication_encoding(payload, kind)
    found: dict[str, bytes] = {}
    for key in trusted.keys:
        for entry in record.signatures:
            if key.verifies(decode_base64(entry.sig), pae):
                found[key.keyid] = decode_base64(entry.sig)
                break
    is_new = own.keyid not in found
    if is_new:
        _keyid, found[own.keyid] = _sign(payload, kind, signer)
    return build_envelope(payload, kind, list(found.items())), is_new


def _sign(payload: bytes, payload_type: str, signer: Signer) -> tuple[str, bytes]:
    (own,) = trust_signer(signer).keys
    signature = Envelope(payload, payload_type, {}).sign(signer)
    raw = bytes.fromhex(signature.signature)
    if not own.verifies(raw, pre_authentication_encoding(payload, payload_type)):
        raise KeyServiceError(
            "what came back from the signing key is no signature of it: nothing was published; check the key and its service"
        )
    return own.keyid, raw
