"""Trusted keys and the verification of DSSE signatures (docs/FORMAT.md section 3).

Needs `cryptography` alone: a host that mounts verifies and never signs, and the library of signers (signing.py) loads the client
of every key service that is installed.
"""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, SECP384R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key

from modelfs.errors import ConfigError, SignatureError
from modelfs.format.envelope import EnvelopeRecord
from modelfs.format.fields import decode_base64

MAX_PEM_SIZE = 16 * 1024


@dataclass(frozen=True)
class TrustedKey:
    """One public key, Ed25519 or ECDSA over P-256 or P-384."""

    key: Ed25519PublicKey | EllipticCurvePublicKey

    @property
    def der(self) -> bytes:
        """SubjectPublicKeyInfo: what makes two keys the same."""
        return self.key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)

    @property
    def keyid(self) -> str:
        """How signatures name it: SHA-256 of the key as canonical JSON, as securesystemslib and so in-toto and TUF have it."""
        if isinstance(self.key, Ed25519PublicKey):
            return _keyid("ed25519", "ed25519", self.key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex())
        pem = self.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        return _keyid("ecdsa", f"ecdsa-sha2-nistp{self.key.key_size}", pem)

    @property
    def ecdsa(self) -> ECDSA:
        """How a key on a curve signs (FIPS 186-5): with the curve's own digest size."""
        is_p256 = isinstance(self.key, EllipticCurvePublicKey) and isinstance(self.key.curve, SECP256R1)
        return ECDSA(SHA256() if is_p256 else SHA384())

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether this key signed exactly `data` (RFC 8032; FIPS 186-5 with the curve's own digest size)."""
        try:
            if isinstance(self.key, Ed25519PublicKey):
                self.key.verify(signature, data)
            else:
                self.key.verify(signature, data, self.ecdsa)
        except InvalidSignature:
            return False
        return True


def _keyid(key_type: str, scheme: str, public: str) -> str:
    # Canonical JSON (OLPC): sorted keys, no spaces, nothing escaped but quotes and backslashes, of which there are none here.
    text = f'{{"keytype":"{key_type}","keyval":{{"public":"{public}"}},"scheme":"{scheme}"}}'
    return hashlib.sha256(text.encode()).hexdigest()


class TrustedKeys:
    """Distinct public keys and how many of them must have signed."""

    def __init__(self, keys: list[TrustedKey], threshold: int) -> None:
        """Take keys already made distinct; use `load_trusted_keys` or `signing.trust_signer`."""
        if not 1 <= threshold <= len(keys):
            raise ConfigError(f"a threshold of {threshold} cannot be met by {len(keys)} distinct trusted key(s): give more --trust keys")
        self.keys = keys
        self.threshold = threshold


def load_trusted_keys(paths: list[Path], threshold: int = 1) -> TrustedKeys:
    """Public keys from PEM files, made distinct by their DER.

    Raises:
        ConfigError: No key at all, an unreadable one, or fewer distinct keys than `threshold`.
    """
    if not paths:
        raise ConfigError("no trusted key: name the publisher's public key with --trust")
    distinct: dict[bytes, TrustedKey] = {}
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
        trusted = check_algorithm(key, path)
        distinct[trusted.der] = trusted
    return TrustedKeys(list(distinct.values()), threshold)


def check_algorithm(key: object, path: Path) -> TrustedKey:
    """A public key of a kind that may sign releases; ConfigError for any other, which names the file."""
    curves = SECP256R1 | SECP384R1
    if isinstance(key, Ed25519PublicKey) or (isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, curves)):
        return TrustedKey(key)
    raise ConfigError(f"{path} is not an Ed25519 or ECDSA P-256/P-384 key: make one with `modelfs keygen signing`")


def pre_authentication_encoding(payload: bytes, payload_type: str) -> bytes:
    """What a DSSE signature signs (DSSE protocol 1.0, PAE)."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


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
    pae = pre_authentication_encoding(payload, record.payloadType)
    signatures = [decode_base64(entry.sig) for entry in record.signatures]
    signed = [key.keyid for key in trusted.keys if any(key.verifies(signature, pae) for signature in signatures)]
    if len(signed) < trusted.threshold:
        raise SignatureError(
            f"{what} is signed by {len(signed)} of the trusted keys and needs {trusted.threshold}: "
            "it is not this publisher's, or it was altered; check --trust or fetch the model again"
        )
    return payload, signed
