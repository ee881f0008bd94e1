"""Signing keys and DSSE signatures, by securesystemslib (docs/FORMAT.md section 3)."""

import os
from pathlib import Path
from typing import Any

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer._crypto_signer import CryptoSigner
from securesystemslib.signer._key import SSlibKey
from securesystemslib.signer._signature import Signature
from securesystemslib.signer._signer import Signer

from modelfs.crypto.keyfiles import create_private, read_private
from modelfs.errors import ConfigError, SignatureError
from modelfs.format.envelope import EnvelopeRecord, build_envelope
from modelfs.format.fields import decode_base64

__all__ = [
    "Signer",
    "TrustedKeys",
    "ed25519_key",
    "ed25519_pem",
    "generate_signing_key",
    "load_signer",
    "load_trusted_keys",
    "sign_payload",
    "trust_signer",
    "verify_envelope",
]

MAX_PEM_SIZE = 16 * 1024


class TrustedKeys:
    """Distinct public keys and how many of them must have signed."""

    def __init__(self, keys: list[SSlibKey], threshold: int) -> None:
        """Take keys already made distinct; use `load_trusted_keys` or `trust_signer`."""
        if not 1 <= threshold <= len(keys):
            raise ConfigError(f"a threshold of {threshold} cannot be met by {len(keys)} distinct trusted key(s): give more --trust keys")
        self.keys = keys
        self.threshold = threshold


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
        _check_algorithm(private.public_key(), path)
        return CryptoSigner(private)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # `from None`: the library's error could quote the key.
        raise ConfigError(f"{path} is not an unencrypted Ed25519 or ECDSA private key in PEM: make one with keygen") from None


def _check_algorithm(key: Any, path: Path) -> None:
    curves = SECP256R1 | SECP384R1
    if isinstance(key, Ed25519PublicKey) or (isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, curves)):
        return
    raise ConfigError(f"{path} is not an Ed25519 or ECDSA P-256/P-384 key: make one with `modelfs keygen signing`")


def ed25519_key(raw: bytes) -> SSlibKey:
    """A public key from its 32 bytes; ValueError if they are none."""
    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(raw))


def ed25519_pem(raw: bytes) -> bytes:
    """The PEM file of a public key, as --trust takes it, from its 32 bytes; ValueError if they are none."""
    return Ed25519PublicKey.from_public_bytes(raw).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def load_trusted_keys(paths: list[Path], threshold: int = 1) -> TrustedKeys:
    """Public keys from PEM files, made distinct by their DER.

    Raises:
        ConfigError: No key at all, an unreadable one, or fewer distinct keys than `threshold`.
    """
    if not paths:
        raise ConfigError("no trusted key: name the publisher's public key with --trust")
    distinct: dict[bytes, SSlibKey] = {}
    for path in paths:
        try:
            with open(path, "rb") as file:
                data = file.read(MAX_PEM_SIZE + 1)
            if b"PRIVATE KEY" in data:
                raise ConfigError(f"{path} is a private key: --trust takes the public one (PATH.pub)")
            key = load_pem_public_key(data)
        except OSError as exc:
            raise ConfigError(f"cannot read the trusted key {path}: {os.strerror(exc.errno or 0)}") from exc
        except (ValueError, UnsupportedAlgorithm) as exc:
            raise ConfigError(f"{path} is not a public key in PEM: --trust takes the publisher's PATH.pub") from exc
        _check_algorithm(key, path)
        distinct[key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)] = SSlibKey.from_crypto(key)
    return TrustedKeys(list(distinct.values()), threshold)


def trust_signer(signer: Signer) -> TrustedKeys:
    """Trust exactly the public half of `signer`."""
    key = signer.public_key
    if not isinstance(key, SSlibKey):
        raise ConfigError("this kind of signing key cannot verify its own signatures")
    return TrustedKeys([key], 1)


def sign_payload(payload: bytes, payload_type: str, signer: Signer) -> EnvelopeRecord:
    """An envelope with one signature."""
    envelope = Envelope(payload, payload_type, {})
    signature = envelope.sign(signer)
    return build_envelope(payload, payload_type, [(signature.keyid, bytes.fromhex(signature.signature))])


def verify_envelope(record: EnvelopeRecord, trusted: TrustedKeys, what: str) -> tuple[bytes, list[str]]:
    """Verify the threshold of signatures over the raw payload.

    Every trusted key is tried on every signature: a keyid is only a hint, so neither a repeated nor a false one changes the
    count of distinct keys.

    Returns:
        The payload, and the keyids (of the trusted keys, not of the envelope) that signed.

    Raises:
        SignatureError: Fewer distinct trusted keys than the threshold signed.
    """
    payload = record.payload_bytes
    pae = Envelope(payload, record.payloadType, {}).pae()
    signatures = [entry.sig for entry in record.signatures]
    signed = [key.keyid for key in trusted.keys if any(_verifies(key, sig, pae) for sig in signatures)]
    if len(signed) < trusted.threshold:
        raise SignatureError(
            f"{what} is signed by {len(signed)} of the trusted keys and needs {trusted.threshold}: "
            "it is not this publisher's, or it was altered; check --trust or fetch the model again"
        )
    return payload, signed


def _verifies(key: SSlibKey, sig_base64: str, pae: bytes) -> bool:
    try:
        key.verify_signature(Signature(key.keyid, decode_base64(sig_base64).hex()), pae)
    except (UnverifiedSignatureError, VerificationError):
        return False
    return True
