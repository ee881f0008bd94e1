"""Signing keys and the making of DSSE signatures (docs/FORMAT.md section 3). For publishers only.

A key in a file signs with `cryptography` alone. A key that stays in a service is a signer of securesystemslib (keys/vault_sign.py),
which is imported only for that: it loads the client of every key service that is installed.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

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
from modelfs.errors import ConfigError
from modelfs.format.envelope import EnvelopeRecord, build_envelope

if TYPE_CHECKING:
    from securesystemslib.signer._key import SSlibKey


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
    create_private(public_path, public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo), mode=0o644)
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


def ed25519_key(raw: bytes) -> "SSlibKey":
    """A public key of securesystemslib from its 32 bytes; ValueError if they are none."""
    from securesystemslib.signer._key import SSlibKey

    return SSlibKey.from_crypto(Ed25519PublicKey.from_public_bytes(raw))


def ed25519_pem(raw: bytes) -> bytes:
    """The PEM file of a public key, as --trust takes it, from its 32 bytes; ValueError if they are none."""
    return Ed25519PublicKey.from_public_bytes(raw).public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


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
    """An envelope with one signature."""
    signature = signer.sign(pre_authentication_encoding(payload, payload_type))
    return build_envelope(payload, payload_type, [(signature.keyid, bytes.fromhex(signature.signature))])
