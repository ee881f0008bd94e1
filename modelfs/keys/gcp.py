"""KEKs in Google Cloud KMS: `gcpkms:projects/P/locations/L/keyRings/R/cryptoKeys/K` (docs/GCP.md).

The DEK is made locally and wrapped by `encrypt`; the context is additional authenticated data, so the service itself binds a wrapped key
to model and key id. CRC32C is sent and checked both ways. The service cannot rewrap: the DEK passes through this process when it is.

Spoken by the client library's REST transport: an error of the service is a JSON object there, which no proxy's page can be mistaken for,
and no thread of gRPC lives in a process that forks.

Environment: what the library owns, GOOGLE_APPLICATION_CREDENTIALS and the other application default credentials, REQUESTS_CA_BUNDLE and
HTTPS_PROXY. An endpoint of one's own (Private Service Connect) is part of the URI: `...?endpoint=HOST[:PORT]`, always https.
"""

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import google_crc32c
import requests
from google.api_core.exceptions import GoogleAPICallError
from google.auth.exceptions import GoogleAuthError
from google.cloud import kms_v1
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceRestTransport

from modelfs.errors import ConfigError, KeyAccessError, KeyDeniedError, KeyServiceError
from modelfs.format.keysfile import Recipient, recipient
from modelfs.format.limits import MAX_WRAPPED_SIZE
from modelfs.keys.deadline import within
from modelfs.keys.interface import Attempt, EntryRefusedError, Grant, KeyProvider

COMMAND_TIMEOUT_S = 10.0

T = TypeVar("T")

_ID = r"[A-Za-z0-9_-]{1,63}"
_PROJECT = r"[a-z0-9.:-]{1,128}"  # domain-scoped projects have a colon
_RESOURCE = re.compile(rf"projects/{_PROJECT}/locations/[a-z0-9-]{{1,63}}/keyRings/{_ID}/cryptoKeys/{_ID}")
ENDPOINT = re.compile(r"(?=.{1,253}(?::|\Z))[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[1-9][0-9]{0,4})?")
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}")

_DENIED = "PERMISSION_DENIED"
_REFUSED = {"NOT_FOUND", "FAILED_PRECONDITION", "INVALID_ARGUMENT"}
"""Statuses that are about this key or this entry: gone, disabled or destroyed, does not open. Everything else is no answer."""


@dataclass(frozen=True)
class _Refusal(Exception):
    """A well-formed error of the service itself, without its words."""

    status: str
    reason: str

    def __str__(self) -> str:
        return self.status + (f" ({self.reason})" if self.reason else "")


class GcpProvider(KeyProvider):
    """Wraps and unwraps by a symmetric CryptoKey. Finds credentials when it is first used; holds no secret before that."""

    scheme = "gcpkms"

    def __init__(self, resource: str, endpoint: str | None, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Bind one key.

        Args:
            resource: `projects/P/locations/L/keyRings/R/cryptoKeys/K`.
            endpoint: HOST[:PORT], or None for Google's own.
            timeout_s: For each wrapping or unwrapping, with finding credentials.
        """
        self._resource = resource
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._client: kms_v1.KeyManagementServiceClient | None = None

    def describe(self) -> str:
        """`gcpkms:RESOURCE`, never the endpoint."""
        return f"gcpkms:{self._resource}"

    def is_recipient(self, recipient: Recipient) -> bool:
        """Same scheme and resource name."""
        return recipient.scheme == self.scheme and recipient.key_ref == self._resource

    def _wrap_key(self, dek: bytes, context: bytes) -> Recipient:
        request = kms_v1.EncryptRequest(
            name=self._resource,
            plaintext=dek,
            plaintext_crc32c=_crc32c(dek),
            additional_authenticated_data=context,
            additional_authenticated_data_crc32c=_crc32c(context),
        )
        try:
            answer: kms_v1.EncryptResponse = self._call("encrypt", request)
        except _Refusal as refusal:
            if refusal.status == _DENIED:
                raise self._denied("cloudkms.cryptoKeyVersions.useToEncrypt", refusal) from None
            raise KeyAccessError(
                f"Google Cloud KMS refuses to wrap with {self.describe()}: {refusal}; check that the key exists, that its purpose is "
                "ENCRYPT_DECRYPT and that its primary version is enabled"
            ) from None
        wrapped = answer.ciphertext
        if not answer.verified_plaintext_crc32c or not answer.verified_additional_authenticated_data_crc32c:
            raise KeyServiceError("Google Cloud KMS did not receive what was sent (CRC32C): nothing was kept, try again")
        if _crc32c(wrapped) != answer.ciphertext_crc32c or not 0 < len(wrapped) <= MAX_WRAPPED_SIZE:
            raise KeyServiceError("the wrapped key was altered on its way from Google Cloud KMS (CRC32C): nothing was kept, try again")
        return recipient(self.scheme, self._resource, "", wrapped)

    def _unwrap_key(self, recipient: Recipient, context: bytes) -> bytes | None:
        wrapped = recipient.wrapped_key
        request = kms_v1.DecryptRequest(
            name=self._resource,
            ciphertext=wrapped,
            ciphertext_crc32c=_crc32c(wrapped),
            additional_authenticated_data=context,
            additional_authenticated_data_crc32c=_crc32c(context),
        )
        try:
            answer = self._decrypt(request)
        except _Refusal as refusal:
            if refusal.status == _DENIED:
                raise self._denied("cloudkms.cryptoKeyVersions.useToDecrypt", refusal) from None
            raise EntryRefusedError(
                f"Google Cloud KMS does not unwrap the key with {self.describe()}: {refusal}; check that the key and the version that "
                "wrapped it exist and are enabled, and that the model was sealed for this very key"
            ) from None
        if _crc32c(answer.plaintext) != answer.plaintext_crc32c:
            raise KeyServiceError("the key was altered on its way from Google Cloud KMS (CRC32C)")
        return bytes(answer.plaintext)

    def _decrypt(self, request: kms_v1.DecryptRequest) -> kms_v1.DecryptResponse:
        """Ask again once if the request is called invalid: the service says so of a wrapped key that does not open, and of one that
        was altered on its way."""
        try:
            answer: kms_v1.DecryptResponse = self._call("decrypt", request)
        except _Refusal as refusal:
            if refusal.status != "INVALID_ARGUMENT":
                raise
            answer = self._call("decrypt", request)
        return answer

    def probe(self) -> None:
        """Ask for rubbish to be unwrapped, which a host that may use the key is refused for being rubbish; for `modelfs doctor`.

        Raises:
            KeyAccessError: The key cannot be used from here: denied, gone, or no answer.
        """
        try:
            self._call("decrypt", kms_v1.DecryptRequest(name=self._resource, ciphertext=b"modelfs doctor"))
        except _Refusal as refusal:
            if refusal.status == _DENIED:
                raise self._denied("cloudkms.cryptoKeyVersions.useToDecrypt", refusal) from None
            if refusal.status != "INVALID_ARGUMENT":
                raise KeyAccessError(f"Google Cloud KMS has no usable key {self.describe()}: {refusal}") from None
            return
        raise KeyServiceError("something that is not Google Cloud KMS unwraps rubbish: do not use it")

    def _prove(self, attempt: Attempt) -> Grant:
        self._timeout_s = attempt.timeout_s
        dek, _entry = in_time(attempt.timeout_s, lambda: attempt.open_entry(self))
        return Grant(dek, None, None, None)

    def _denied(self, permission: str, refusal: _Refusal) -> KeyDeniedError:
        return KeyDeniedError(
            f"Google Cloud KMS denies {permission} on {self.describe()}: {refusal}; "
            "whoever owns the key must grant it to this host's service account"
        )

    def _call(self, method: str, request: Any) -> Any:
        """One call, without retries, within the deadline.

        Raises:
            _Refusal: A well-formed error of the service itself: denied, or about this key or entry.
            KeyServiceError: No answer that counts.
        """
        return in_time(self._timeout_s, lambda: self._call_at_once(method, request))

    def _call_at_once(self, method: str, request: Any) -> Any:
        try:
            if self._client is None:
                self._client = make_client(self._endpoint)
            return getattr(self._client, method)(request=request, retry=None, timeout=self._timeout_s)
        except GoogleAPICallError as exc:
            refusal = _find_refusal(exc)
            if refusal is not None:
                raise refusal from None
            raise KeyServiceError(f"Google Cloud KMS gave no answer that counts (HTTP {exc.code and int(exc.code)})") from None
        except GoogleAuthError as exc:
            raise KeyServiceError(
                f"no login at Google ({type(exc).__name__}): check the application default credentials of this host "
                "(GOOGLE_APPLICATION_CREDENTIALS, or the service account of the machine)"
            ) from None
        except requests.RequestException as exc:
            raise KeyServiceError(f"Google Cloud KMS cannot be reached ({type(exc).__name__})") from None


def in_time(timeout_s: float, action: Callable[[], T]) -> T:
    """`within`, in this provider's words.

    Raises:
        KeyServiceError: It took longer.
    """
    try:
        return within(timeout_s, action)
    except TimeoutError:
        raise KeyServiceError(f"Google Cloud KMS did not answer within {timeout_s:g} s") from None


def _crc32c(data: bytes) -> int:
    return int(google_crc32c.value(data))


def make_client(endpoint: str | None) -> kms_v1.KeyManagementServiceClient:
    """A client that logs nothing and follows no redirect; `endpoint` is HOST[:PORT], or None for Google's own."""
    # At debug level the library writes requests and answers into the log, the DEK among them; and warns of a missing project each time.
    client = kms_v1.KeyManagementServiceClient(transport="rest", client_options={"api_endpoint": endpoint} if endpoint else None)
    silence()
    transport = client.transport
    if not isinstance(transport, KeyManagementServiceRestTransport):
        raise RuntimeError("the library made another transport than it was asked for")
    transport._session.max_redirects = 0  # one would take the DEK to another host
    return client


def silence() -> None:
    """Keep the library from logging what it sends and gets, whatever the environment asks of it."""
    logging.getLogger("google").setLevel(logging.CRITICAL)
    for name, found in list(logging.Logger.manager.loggerDict.items()):
        if name.startswith("google.") and isinstance(found, logging.Logger) and found.level not in (logging.NOTSET, logging.CRITICAL):
            found.setLevel(logging.CRITICAL)


def _find_refusal(exc: GoogleAPICallError) -> _Refusal | None:
    """What the service itself has said (AIP-193), if it is about the key: a JSON object whose code is the HTTP status."""
    try:
        error = exc.response.json()["error"]
        status, code = error["status"], error["code"]
        if code != exc.response.status_code or not isinstance(error["message"], str):
            return None
        reasons = [detail.get("reason", "") for detail in error.get("details", []) if isinstance(detail, dict)]
    except (AttributeError, ValueError, TypeError, KeyError):
        return None
    if status != _DENIED and status not in _REFUSED:
        return None
    return _Refusal(status, next((reason for reason in reasons if isinstance(reason, str) and _REASON.fullmatch(reason)), ""))


def open_provider(reference: str) -> GcpProvider:
    """The provider of `gcpkms:RESOURCE[?endpoint=HOST[:PORT]]`; asks nobody yet.

    Raises:
        ConfigError: Malformed.
    """
    resource, question, query = reference.partition("?")
    name, _equals, endpoint = query.partition("=")
    if not _RESOURCE.fullmatch(resource):
        raise ConfigError(
            f"gcpkms:{reference} does not name a key: use gcpkms:projects/PROJECT/locations/LOCATION/keyRings/RING/cryptoKeys/KEY, "
            "without a version"
        )
    if question and (name != "endpoint" or not ENDPOINT.fullmatch(endpoint)):
        raise ConfigError(f"gcpkms:{reference} ends in something unknown: only ?endpoint=HOST[:PORT] may follow the key")
    return GcpProvider(resource, endpoint or None)


silence()
