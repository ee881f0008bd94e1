"""Public keys of signing keys that stay in a service or device, as securesystemslib's signers take them. Only for who signs with one."""

import logging
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, EllipticCurvePublicNumbers
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import load_der_public_key, load_pem_public_key
from securesystemslib.signer._key import SSlibKey

from modelfs.crypto.signatures import check_algorithm

# What its signers log at debug level are requests to key services and their answers.
logging.getLogger("securesystemslib").setLevel(logging.CRITICAL)


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
