"""Signing keys and the making of DSSE signatures (docs/FORMAT.md section 3). For publishers only.

A key in a file signs with `cryptography` alone. A key that stays in a service is a signer of securesystemslib (keys/vault_sign.py),
which is imported only for that: it loads the client of every key service that is installed.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from modelfs.crypto.keyfiles import create_private, read_private
from modelfs.crypto.signatures import MAX_PEM_SIZE, TrustedKey, TrustedKeys, check_algorithm, pre_authentication_encoding
from modelfs.errors import ConfigError, KeyServiceError
from modelfs.format.envelope import EnvelopeRecord, build_envelope
from modelfs.format.fields import decode_base64


class MadeSignature(Protocol):
    """A signature as securesystemslib has it."""

    @property
    def keyid(self) -> str:
        """Of the key that signed."""

    @property
    def signature(self) -> str:
        """Hex."""


class Signer(Protocol):
    """What signs: a `KeyFileSigner`, or a signer of securesystemslib."""

    @property
    def public_key(self) -> object:
        """The public half: a `TrustedKey`, or a key of securesystemslib."""

    def sign(self, payload: bytes) -> MadeSignature:
        """Sign exactly `payload`."""


@dataclass(frozen=True)
class FileSignature:
    """See `MadeSignature`."""

    keyid: str
    signature: str


class KeyFileSigner:
    """Signs with a private key from a file."""

    def __init__(self, private: Ed25519PrivateKey | EllipticCurvePrivateKey, public: TrustedKey) -> None:
        """Take a key and its own public half."""
        self._private = private
        self.public_key = public

    def sign(self, payload: bytes) -> FileSignature:
        """Sign as `TrustedKey.verifies` expects it."""
        if isinstance(self._private, Ed25519PrivateKey):
            made = self._private.sign(payload)
        else:
            made = self._private.sign(payload, self.public_key.ecdsa)
        return FileSignature(self.public_key.keyid, made.hex())


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
    try:
        create_private(public_path, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), mode=0o644)
    except BaseException:
        path.unlink()
        raise
    return TrustedKey(public).keyid


def load_signer(path: Path) -> KeyFileSigner:
    """The signer of a private key file.

    Raises:
        ConfigError: Missing, readable by others, or not an unencrypted Ed25519 or ECDSA private key in PEM.
    """
    data = read_private(path, MAX_PEM_SIZE, "signing key")
    try:
        private = load_pem_private_key(data, None)
        public = check_algorithm(private.public_key(), path)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # `from None`: the library's error could quote the key.
        raise ConfigError(f"{path} is not an unencrypted Ed25519 or ECDSA private key in PEM: make one with keygen") from None
    if not isinstance(private, Ed25519PrivateKey | EllipticCurvePrivateKey):
        raise TypeError("a private key is of another kind than its public half")
    return KeyFileSigner(private, public)


def public_pem(signer: Signer) -> bytes:
    """The PEM file of a signer's public key, as --trust takes it."""
    (own,) = trust_signer(signer).keys
    return own.key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def trust_signer(signer: Signer) -> TrustedKeys:
    """Trust exactly the public half of `signer`."""
    key = signer.public_key
    if isinstance(key, TrustedKey):
        return TrustedKeys([key], 1)
    from securesystemslib.signer._key import SSlibKey

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
    pae = pre_authentication_encoding(payload, payload_type)
    raw = bytes.fromhex(signer.sign(pae).signature)
    if not own.verifies(raw, pae):
        raise KeyServiceError(
            "what came back from the signing key is no signature of it: nothing was published; check the key and its service"
        )
    return own.keyid, raw
