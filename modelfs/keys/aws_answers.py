"""Which answers of AWS KMS count, and as what (docs/AWS.md has the same table; a test compares them). No network.

An error counts only if it is one that the service itself writes: status 400 to 404, a request id, JSON called so, an object with `__type`.
Its text is never passed on: what stands in messages is ours.
"""

import json
from dataclasses import dataclass, field
from enum import StrEnum

CONTENT_TYPES = ("application/x-amz-json-1.1", "application/json")


class Kind(StrEnum):
    """What an error is about."""

    DENIED = "denied"
    """The service says no to this host, or to this key as a whole."""
    ENTRY = "refused"
    """The service does not open this wrapped key: a denial if this mount has opened it before."""
    OUTAGE = "unreachable"
    ALLOWED = "allowed"
    """A dry run would have succeeded."""


ANSWERS: dict[str, tuple[Kind, str]] = {
    "AccessDeniedException": (Kind.DENIED, "no permission: the key policy, an IAM policy or the endpoint's policy does not allow it"),
    "NotAuthorized": (Kind.DENIED, "no permission"),
    "UnrecognizedClientException": (Kind.DENIED, "the access key does not exist (any more) or is not active"),
    "InvalidClientTokenId": (Kind.DENIED, "the access key does not exist (any more) or is not active"),
    "DisabledException": (Kind.DENIED, "the key is disabled"),
    "KMSInvalidStateException": (Kind.DENIED, "the key's state forbids it: pending deletion, or without key material"),
    "NotFoundException": (Kind.ENTRY, "there is no such key or alias in this region"),
    "InvalidCiphertextException": (Kind.ENTRY, "it was altered, or wrapped for another model or release"),
    "IncorrectKeyException": (Kind.ENTRY, "it was wrapped by another key: does the alias still name the one that wrapped it?"),
    "IncorrectKeyMaterialException": (Kind.ENTRY, "it was wrapped by other key material"),
    "InvalidKeyUsageException": (Kind.ENTRY, "the key is not one for symmetric encryption"),
    "UnsupportedOperationException": (Kind.ENTRY, "the key is of another kind"),
    "ExpiredTokenException": (Kind.OUTAGE, "the temporary credentials have ended and were not renewed"),
    "ExpiredToken": (Kind.OUTAGE, "the temporary credentials have ended and were not renewed"),
    "InvalidSignatureException": (Kind.OUTAGE, "the request's signature does not count: see that the clock and the secret key are right"),
    "SignatureDoesNotMatch": (Kind.OUTAGE, "the request's signature does not count: see that the clock and the secret key are right"),
    "IncompleteSignatureException": (Kind.OUTAGE, "the request's signature is not whole"),
    "MissingAuthenticationTokenException": (Kind.OUTAGE, "the request came without a signature: something stands in between"),
    "OptInRequired": (Kind.OUTAGE, "the account or the region is not enabled"),
    "ThrottlingException": (Kind.OUTAGE, "too many requests"),
    "LimitExceededException": (Kind.OUTAGE, "a quota is exceeded"),
    "KMSInternalException": (Kind.OUTAGE, "an internal error"),
    "DependencyTimeoutException": (Kind.OUTAGE, "it waited for something in vain"),
    "KeyUnavailableException": (Kind.OUTAGE, "the key is not available now"),
    "DryRunOperationException": (Kind.ALLOWED, "a dry run would have succeeded"),
}
"""Code of the service -> what it is about, and what is said of it. Any other code is an outage; so is the last without a dry run."""

EXPIRED = frozenset({"ExpiredTokenException", "ExpiredToken"})
"""Credentials that have ended, whatever this host's clock says: others must be found."""
_KEY_STORE = ("key store", "unavailable")
"""What KMSInvalidStateException says when it is about the way to an external key store, and not about the key."""


class RefusedError(Exception):
    """The service itself refused. Translated before it leaves the provider."""

    def __init__(self, code: str, kind: Kind, reason: str) -> None:
        """Take the service's code, what it is about, and a reason in words of ours."""
        super().__init__(f"{reason} ({code})")
        self.code = code
        self.kind = kind


@dataclass(frozen=True)
class Reply:
    """An HTTP answer, believed in no way yet."""

    status: int
    content_type: str
    request_id: str
    """Every answer of the service has one; a proxy's page has none."""
    body: bytes = field(repr=False)


def judge(reply: Reply) -> RefusedError:
    """What an answer means that is no success."""
    code, text = _parse(reply)
    if 300 <= reply.status < 400:
        return RefusedError(str(reply.status), Kind.OUTAGE, "it points elsewhere, which is not followed")
    if not code:
        return RefusedError(
            str(reply.status), Kind.OUTAGE, "the answer is not one of AWS KMS: something stands in between, or the endpoint is wrong"
        )
    kind, reason = ANSWERS.get(code, (Kind.OUTAGE, f"status {reply.status}"))
    if code not in ANSWERS:
        code = "another error"  # not even its name is passed on
    if code == "KMSInvalidStateException" and any(part in text.lower() for part in _KEY_STORE):
        kind, reason = Kind.OUTAGE, "its key store cannot be reached"
    if not 400 <= reply.status <= 404:
        kind = Kind.OUTAGE
    return RefusedError(code, kind, reason)


def _parse(reply: Reply) -> tuple[str, str]:
    """(code, text); empty where the answer is not one that the service writes."""
    if reply.content_type.partition(";")[0].strip().lower() not in CONTENT_TYPES or not reply.request_id:
        return "", ""
    try:
        answer = json.loads(reply.body)
    except (ValueError, RecursionError):
        return "", ""
    code = answer.get("__type") if isinstance(answer, dict) else None
    if not isinstance(code, str):
        return "", ""
    text = answer.get("message", answer.get("Message"))
    # With a name space before `#`, or without.
    return code.rpartition("#")[2][:128], text[:4096] if isinstance(text, str) else ""
