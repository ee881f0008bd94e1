"""A publisher's signing key that stays in Google Cloud KMS, by securesystemslib's GCPSigner. EC_SIGN_P256_SHA256 or EC_SIGN_P384_SHA384.

`gcpkms:projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/V`. Permissions: policies/gcp-signer.json. Transport,
environment and `?endpoint=` as for KEKs (gcp.py). A checksum more would add nothing: every signature is verified under the public
key that was shown.
"""

import re
from typing import Any

import requests
from google.api_core.exceptions import Forbidden, GoogleAPICallError, NotFound, Unauthenticated
from google.auth.exceptions import GoogleAuthError
from securesystemslib.signer._gcp_signer import GCPSigner
from securesystemslib.signer._key import SSlibKey

from modelfs.crypto.service_keys import signing_key_from_pem
from modelfs.errors import ConfigError, KeyAccessError, KeyDeniedError, KeyServiceError
from modelfs.keys.gcp import COMMAND_TIMEOUT_S, ENDPOINT, in_time, make_client
from modelfs.keys.signer_options import SignerOptions

_URI = re.compile(
    r"gcpkms:(projects/[^/?]+/locations/[^/?]+/keyRings/[^/?]+/cryptoKeys/[^/?]+/cryptoKeyVersions/[0-9]{1,9})(?:\?endpoint=(.*))?"
)


class CloudSigner(GCPSigner):
    """GCPSigner with a client that does not wait for a minute and says in one sentence what is wrong."""

    def __init__(self, name: str, public_key: SSlibKey, client: "_Client") -> None:
        """Bind one version of a key."""
        # Not the parent's: it would make a client of its own.
        self.hash_algorithm = public_key.get_hash_algorithm_name()
        self.gcp_keyid = name
        self._public_key = public_key
        self.client: Any = client


class _Client:
    """What GCPSigner takes for a client of Google's: one attempt, with a deadline for all of it."""

    def __init__(self, endpoint: str | None) -> None:
        self._endpoint = endpoint
        self._client: Any = None

    def asymmetric_sign(self, request: dict[str, Any]) -> Any:
        return self._call("sign with", "asymmetric_sign", request)

    def get_public_key(self, request: dict[str, Any]) -> Any:
        return self._call("show the public key of", "get_public_key", request)

    def _call(self, what: str, method: str, request: dict[str, Any]) -> Any:
        name = request["name"]

        def do() -> Any:
            self._client = self._client or make_client(self._endpoint)
            return getattr(self._client, method)(request=request, timeout=COMMAND_TIMEOUT_S, retry=None)

        try:
            return in_time(COMMAND_TIMEOUT_S, do)
        except (Forbidden, Unauthenticated):
            raise KeyDeniedError(f"Google Cloud KMS does not let this login {what} {name}: see policies/gcp-signer.json") from None
        except NotFound:
            raise KeyAccessError(f"Google Cloud KMS has no {name}") from None
        except GoogleAPICallError as exc:
            # `from None`, and no text: it may quote the answer.
            kind = KeyAccessError if exc.code is not None and 400 <= exc.code < 429 else KeyServiceError
            raise kind(f"Google Cloud KMS does not {what} {name} ({type(exc).__name__}): is it enabled, and for signing?") from None
        except GoogleAuthError as exc:
            raise KeyServiceError(f"no login for Google Cloud KMS ({type(exc).__name__}): see GOOGLE_APPLICATION_CREDENTIALS") from None
        except requests.RequestException as exc:
            raise KeyServiceError(f"Google Cloud KMS cannot be reached ({type(exc).__name__})") from None


def open_signer(uri: str, _options: SignerOptions) -> CloudSigner:
    """See `modelfs.keys.open_signer`."""
    found = _URI.fullmatch(uri)
    if not found or (found[2] is not None and not ENDPOINT.fullmatch(found[2])):
        raise ConfigError(
            f"{uri!r} does not name a version of a key: use gcpkms:projects/P/locations/L/keyRings/R/cryptoKeys/K/cryptoKeyVersions/V"
        )
    name, client = found[1], _Client(found[2])
    answer = client.get_public_key({"name": name})
    try:
        return CloudSigner(name, signing_key_from_pem(answer.pem.encode(), f"gcpkms:{name}"), client)
    except (ValueError, AttributeError):
        raise KeyServiceError(f"Google Cloud KMS shows something that is no public key of {name}") from None
