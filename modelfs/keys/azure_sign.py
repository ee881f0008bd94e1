"""A publisher's signing key that stays in Azure Key Vault, by securesystemslib's AzureSigner. EC keys, P-256 or P-384.

`azurekms://VAULT.vault.azure.net/keys/NAME/VERSION`. Permissions: keys/get and keys/sign (Key Vault Crypto User). Credentials: what Azure's
library finds (AZURE_CLIENT_ID with AZURE_TENANT_ID and a secret or certificate, a managed identity, the login of az).
"""

import logging
import re
from typing import Any

from azure.core.exceptions import AzureError, ClientAuthenticationError, HttpResponseError
from azure.identity import DefaultAzureCredential
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient
from securesystemslib.signer._azure_signer import SIGNATURE_ALGORITHMS, AzureSigner
from securesystemslib.signer._key import SSlibKey
from securesystemslib.signer._signature import Signature

from modelfs.crypto.signing import signing_key_from_point
from modelfs.errors import ConfigError, KeyAccessError, KeyDeniedError, KeyServiceError
from modelfs.keys.signer_options import SignerOptions

TIMEOUT_S = 10
_URI = re.compile(r"azurekms:(//([a-z0-9][a-z0-9.-]{1,200})/keys/([A-Za-z0-9-]{1,127})/([0-9a-f]{32}))")
BOUNDED: dict[str, Any] = {"connection_timeout": TIMEOUT_S, "read_timeout": TIMEOUT_S, "retry_total": 0, "logging_enable": False}


class KeyVaultSigner(AzureSigner):
    """AzureSigner with clients that wait for a bounded time and whose errors are ours."""

    def __init__(self, uri: str, public_key: SSlibKey, crypto_client: Any) -> None:
        """Bind one version of a key."""
        # Not the parent's: it would make a client of its own.
        self.crypto_client = crypto_client
        self.signature_algorithm = SIGNATURE_ALGORITHMS[public_key.scheme]
        self.hash_algorithm = public_key.get_hash_algorithm_name()
        self._public_key = public_key
        self._uri = uri

    def sign(self, payload: bytes) -> Signature:
        """Sign; KeyAccessError if the service refuses or gives no answer that counts."""
        try:
            return super().sign(payload)
        except AzureError as exc:
            raise _explain("sign with", self._uri, exc) from None


def open_signer(uri: str, _options: SignerOptions) -> KeyVaultSigner:
    """See `modelfs.keys.open_signer`."""
    found = _URI.fullmatch(uri)
    if not found:
        raise ConfigError(f"{uri!r} does not name a version of a key: use azurekms://VAULT.vault.azure.net/keys/NAME/VERSION")
    for name in ("azure", "msal", "urllib3"):  # they log requests and answers
        logging.getLogger(name).setLevel(logging.CRITICAL)
    credential = DefaultAzureCredential()
    keys = KeyClient(f"https://{found[2]}", credential, **BOUNDED)
    crypto = CryptographyClient(f"https:{found[1]}", credential, **BOUNDED)
    return bind(uri, found[3], found[4], keys, crypto)


def bind(uri: str, name: str, version: str, keys: Any, crypto: Any) -> KeyVaultSigner:
    """The signer of a version of a key, by Azure's two clients."""
    try:
        key = keys.get_key(name, version).key
    except AzureError as exc:
        raise _explain("show", uri, exc) from None
    try:
        public_key = signing_key_from_point(str(getattr(key.crv, "value", key.crv)), bytes(key.x), bytes(key.y))
    except (ValueError, TypeError, AttributeError):
        raise KeyAccessError(f"the key {uri} is no EC key on P-256 or P-384: make one of these") from None
    return KeyVaultSigner(uri, public_key, crypto)


def _explain(what: str, uri: str, exc: AzureError) -> KeyAccessError:
    """In words that hold nothing of the answer."""
    if isinstance(exc, ClientAuthenticationError) or (isinstance(exc, HttpResponseError) and exc.status_code == 403):
        return KeyDeniedError(f"Azure Key Vault does not let this login {what} {uri}: it takes the role Key Vault Crypto User")
    if isinstance(exc, HttpResponseError) and exc.status_code is not None and 400 <= exc.status_code < 429:
        return KeyAccessError(f"Azure Key Vault does not {what} {uri}: status {exc.status_code}; is it there, enabled and for signing?")
    return KeyServiceError(f"Azure Key Vault gave no answer ({type(exc).__name__}): check the name of the vault and the network")
