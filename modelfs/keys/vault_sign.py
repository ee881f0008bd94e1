"""A publisher's signing key that stays in a Vault: `hv:NAME/VERSION`, by securesystemslib's VaultSigner.

Its URI has no room for a mount: the key is in the secrets engine `transit`. Ed25519 only, as VaultSigner.
"""

import re
from base64 import b64decode

from securesystemslib.exceptions import UnverifiedSignatureError, VerificationError
from securesystemslib.signer._key import SSlibKey
from securesystemslib.signer._signature import Signature
from securesystemslib.signer._vault_signer import VaultSigner

from modelfs.crypto.service_keys import ed25519_key
from modelfs.errors import ConfigError, KeyAccessError, KeyServiceError
from modelfs.keys.signer_options import SignerOptions
from modelfs.keys.vault import COMMAND_TIMEOUT_S, VaultProvider, connect
from modelfs.keys.vault_api import RefusedError, text_at, value_at
from modelfs.keys.vault_session import VaultConnection

_URI = re.compile(r"hv:([A-Za-z0-9_][A-Za-z0-9._-]{0,127})/([1-9][0-9]{0,8})")


class TransitSigner(VaultSigner):
    """VaultSigner with our connection: its own takes address, token and proxies from the environment and follows redirects."""

    def __init__(self, name: str, version: int, public_key: SSlibKey, connection: VaultConnection) -> None:
        """Bind one version of a key."""
        # Not the parent's: it would look for a token in the environment and in the home directory.
        self.hv_key_name = name
        self.hv_key_version = version
        self._public_key = public_key
        self._connection = connection

    def sign(self, payload: bytes) -> Signature:
        """Sign, and see that the signature is one.

        Raises:
            KeyAccessError: The service refuses, or gives no answer that counts.
        """
        name, where = self.hv_key_name, self._connection.endpoint
        with self._connection.operation(COMMAND_TIMEOUT_S) as api:
            self._client = api.client
            try:
                signature = super().sign(payload)
            except RefusedError as refusal:
                if refusal.status == 403:
                    raise self._connection.denied(f"`update` on transit/sign/{name}") from None
                raise KeyAccessError(
                    f"the key service {where} refuses to sign with {name} version {self.hv_key_version}: {refusal}"
                ) from None
            except (KeyError, IndexError, ValueError, TypeError, AttributeError):
                raise KeyServiceError(f"the key service {where} answered with something that is no signature") from None
            finally:
                del self._client
        try:
            self._public_key.verify_signature(signature, payload)
        except (UnverifiedSignatureError, VerificationError):
            raise KeyServiceError(f"the key service {where} signs {name} with another key than it shows: nothing was published") from None
        return signature


def open_signer(uri: str, options: SignerOptions) -> TransitSigner:
    """See `modelfs.keys.open_signer`."""
    name, version = _parse(uri)
    shared = next((kek.connection for kek in options.keks if isinstance(kek, VaultProvider)), None)
    connection = shared or connect(options.vault)
    return TransitSigner(name, version, ed25519_key(_read_key(name, version, connection)), connection)


def _parse(uri: str) -> tuple[str, int]:
    found = _URI.fullmatch(uri)
    if not found:
        raise ConfigError(f"{uri!r} does not name a signing key in a Vault: use hv:NAME/VERSION, for example hv:release/1")
    return found[1], int(found[2])


def _read_key(name: str, version: int, connection: VaultConnection) -> bytes:
    where = connection.endpoint
    with connection.operation(COMMAND_TIMEOUT_S) as api:
        try:
            data = value_at(api.client.secrets.transit.read_key(name), "data")
        except RefusedError as refusal:
            if refusal.status == 403:
                raise connection.denied(f"`read` on transit/keys/{name}") from None
            raise KeyAccessError(f"the key service {where} has no signing key {name} in transit: {refusal}") from None
    if text_at(data, "type") != "ed25519":
        raise KeyAccessError(
            f"the key {name} at {where} is not of type ed25519: make one with `vault write transit/keys/{name} type=ed25519`"
        )
    versions = value_at(data, "keys")
    if not isinstance(versions, dict) or str(version) not in versions:
        raise KeyAccessError(f"the key {name} at {where} has no version {version}")
    try:
        raw = b64decode(text_at(versions, str(version), "public_key"), validate=True)
    except ValueError:
        raw = b""
    if len(raw) != 32:
        raise KeyServiceError(f"the key service {where} shows something that is no public key of {name}")
    return raw
