"""A publisher's signing key that stays in Google Cloud KMS, by securesystemslib's GCPSigner. EC_SIGN_P256_SHA256 or EC_SIGN_P384_SHA384.

`gcpkms:projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/V`. Roles: cloudkms.publicKeyViewer and cloudkms.signer.
Credentials: what Google's library finds (GOOGLE_APPLICATION_CREDENTIALS, gcloud's, a machine's). A checksum more would add nothing:
every signature is verified under the public key that was shown.
"""

import logging
import re
from typing import Any

from google.api_core.exceptions import Forbidden, GoogleAPICallError, NotFound, Unauthenticated
from google.auth.exceptions import GoogleAuthError
from google.cloud import kms
from securesystemslib.exceptions import UnsupportedAlgorithmError
from securesystemslib.signer._gcp_signer import GCPSigner
from securesystemslib.signer._key import SSlibKey

from modelfs.crypto.signing import signing_key_from_pem
from modelfs.errors import ConfigError, KeyAccessError, KeyDeniedError, KeyServiceError
from modelfs.keys.signer_options import SignerOptions

TIMEOUT_S = 10.0
_URI = re.compile(r"gcpkms:(projects/[^/]+/locations/[^/]+/keyRings/[^/]+/cryptoKeys/[^/]+/cryptoKeyVersions/[0-9]{1,9})")


class CloudSigner(GCPSigner):
    """GCPSigner with a client that does not wait for a minute and says in one sentence what is wrong."""

    def __init__(self, name: str, public_key: SSlibKey, client: "Client") -> None:
        """Bind one version of a key."""
        # Not the parent's: it would make a client of its own.
        self.hash_algorithm = public_key.get_hash_algorithm_name()
        self.gcp_keyid = name
        self._public_key = public_key
        self.client: Any = client


class Client:
    """What GCPSigner takes for a client of Google's."""

    def __init__(self, service: Any) -> None:
        """Wrap a KeyManagementServiceClient."""
        self._service = service

    def asymmetric_sign(self, request: dict[str, Any]) -> Any:
        """One attempt, with a deadline."""
        return self._call("sign with", self._service.asymmetric_sign, request)

    def get_public_key(self, request: dict[str, Any]) -> Any:
        """One attempt, with a deadline."""
        return self._call("show the public key of", self._service.get_public_key, request)

    def _call(self, what: str, call: Any, request: dict[str, Any]) -> Any:
        name = request["name"]
        try:
            return call(request=request, timeout=TIMEOUT_S, retry=None)
        except (Forbidden, Unauthenticated):
            raise KeyDeniedError(f"Google Cloud KMS does not let this login {what} {name}: it takes the role cloudkms.signer") from None
        except NotFound:
            raise KeyAccessError(f"Google Cloud KMS has no {name}") from None
        except GoogleAPICallError as exc:
            # `from None`, and no text: it may quote the answer.
            kind = KeyAccessError if exc.code is not None and 400 <= exc.code < 429 else KeyServiceError
            raise kind(f"Google Cloud KMS does not {what} {name} ({type(exc).__name__}): is it enabled, and for signing?") from None
        except GoogleAuthError as exc:
            raise KeyServiceError(f"no login for Google Cloud KMS ({type(exc).__name__}): see GOOGLE_APPLICATION_CREDENTIALS") from None


def open_signer(uri: str, _options: SignerOptions) -> CloudSigner:
    """See `modelfs.keys.open_signer`."""
    found = _URI.fullmatch(uri)
    if not found:
        raise ConfigError(
            f"{uri!r} does not name a version of a key: use gcpkms:projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/V"
        )
    for name in ("google", "grpc", "urllib3"):  # they log requests and answers
        logging.getLogger(name).setLevel(logging.CRITICAL)
    try:
        client = Client(kms.KeyManagementServiceClient())
    except GoogleAuthError as exc:
        raise KeyServiceError(f"no login for Google Cloud KMS ({type(exc).__name__}): see GOOGLE_APPLICATION_CREDENTIALS") from None
    return bind(found[1], client)


def bind(name: str, client: Client) -> CloudSigner:
    """The signer of a version of a key by its resource name."""
    answer = client.get_public_key({"name": name})
    try:
        return CloudSigner(name, signing_key_from_pem(answer.pem.encode(), f"gcpkms:{name}"), client)
    except (ValueError, UnsupportedAlgorithmError, AttributeError):
        raise KeyServiceError(f"Google Cloud KMS shows something that is no public key of {name}") from None
