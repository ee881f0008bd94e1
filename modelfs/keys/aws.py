"""KEKs in AWS KMS: `awskms:REFERENCE`, a symmetric encryption key by its ARN, its alias's ARN, `alias/NAME` or its id (docs/AWS.md).

The DEK is made locally and wrapped by Encrypt, bound to format, model and key id by the encryption context. Proofs and commands call
Decrypt, always with this host's own reference. Rewrapping is ReEncrypt: the DEK does not leave the service.

Environment: what the AWS SDK for Python reads. Among it:
    credentials   AWS_ACCESS_KEY_ID with AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN; AWS_PROFILE, AWS_SHARED_CREDENTIALS_FILE and
                  AWS_CONFIG_FILE (roles, SSO, credential_process); AWS_ROLE_ARN with AWS_WEB_IDENTITY_TOKEN_FILE (EKS);
                  AWS_CONTAINER_CREDENTIALS_* (ECS, EKS); the metadata of an EC2 instance
    region        the reference's, if it is an ARN; else AWS_DEFAULT_REGION or the profile's
    endpoint      AWS_ENDPOINT_URL_KMS, AWS_ENDPOINT_URL, AWS_USE_FIPS_ENDPOINT, AWS_USE_DUALSTACK_ENDPOINT; https, or http to a loopback
                  address with --insecure-http
    TLS           AWS_CA_BUNDLE (the only authorities that count); nothing turns verification off
    network       HTTPS_PROXY, NO_PROXY; TLS goes through a proxy untouched
"""

import json
import time
from collections.abc import Callable
from typing import Any

from modelfs.errors import KeyAccessError, KeyDeniedError, KeyServiceError
from modelfs.format.keysfile import Recipient, recipient
from modelfs.keys.aws_answers import Kind, RefusedError
from modelfs.keys.aws_api import AwsConnection
from modelfs.keys.aws_login import login_from
from modelfs.keys.aws_reference import parse_key_arn, parse_reference
from modelfs.keys.interface import Attempt, EntryRefusedError, Grant, KeyProvider

COMMAND_TIMEOUT_S = 10.0
MAX_CIPHERTEXT_SIZE = 6144
"""The service's own limit."""


class AwsProvider(KeyProvider):
    """Wraps and unwraps by a KMS key. Looks for credentials when it is first used; holds no secret before that."""

    scheme = "awskms"

    def __init__(self, reference: str, insecure_http: bool = False, now: Callable[[], float] = time.time) -> None:
        """Bind one key.

        Args:
            reference: What follows `awskms:`.
            insecure_http: Allow plain http to a loopback address, and nowhere else.
            now: The wall clock, by which credentials end.

        Raises:
            ConfigError: The reference names no key.
        """
        self._reference = parse_reference(reference)
        self._now = now
        self.connection = AwsConnection(self._reference.region, insecure_http, now)

    @property
    def reference(self) -> str:
        """What the service is told."""
        return self._reference.text

    def describe(self) -> str:
        """`awskms:` and the reference."""
        return f"awskms:{self._reference.text}"

    def is_recipient(self, recipient: Recipient) -> bool:
        """Same scheme, and a key that the reference may name; which one an alias names, the service decides."""
        key = parse_key_arn(recipient.key_ref)
        return recipient.scheme == self.scheme and key is not None and self._reference.may_be(key)

    def is_certain(self, recipient: Recipient) -> bool:
        """Not by an alias, which may name any of these keys."""
        return not self._reference.is_alias and self.is_recipient(recipient)

    def _wrap_key(self, dek: bytes, context: bytes) -> Recipient:
        pairs = encryption_context(context)
        answer = self._call("encrypt", "wrap with", KeyId=self.reference, Plaintext=dek, EncryptionContext=pairs)
        return self._entry(answer, "")

    def _unwrap_key(self, recipient: Recipient, context: bytes) -> bytes | None:
        wrapped = recipient.wrapped_key
        if not 0 < len(wrapped) <= MAX_CIPHERTEXT_SIZE:
            return None  # nothing of this service's: it need not be asked
        pairs = encryption_context(context)
        answer = self._call("decrypt", "unwrap the key with", KeyId=self.reference, CiphertextBlob=wrapped, EncryptionContext=pairs)
        dek = answer.get("Plaintext")
        if not isinstance(dek, bytes):
            raise KeyServiceError(f"the key service {self.connection.where} answered without a key: something stands in between")
        return dek

    def _rewrap_key(self, recipient: Recipient, context: bytes) -> Recipient | None:
        """By ReEncrypt: the DEK stays in the service."""
        wrapped = recipient.wrapped_key
        if not 0 < len(wrapped) <= MAX_CIPHERTEXT_SIZE:
            return None
        key, pairs = self.reference, encryption_context(context)
        answer = self._call(
            "re_encrypt",
            "rewrap the key with",
            CiphertextBlob=wrapped,
            SourceKeyId=key,
            SourceEncryptionContext=pairs,
            DestinationKeyId=key,
            DestinationEncryptionContext=pairs,
        )
        return self._entry(answer, recipient.label)

    def _prove(self, attempt: Attempt) -> Grant:
        connection = self.connection
        connection.login = login_from(attempt.session)
        connection.begin(attempt.timeout_s, attempt.keep)
        dek, _entry = attempt.open_entry(self)
        login = connection.login
        if login is None:
            return Grant(dek, None, None, None)
        return Grant(dek, login.to_bytes(), max(0.0, login.left_s(self._now())), None)

    def _call(self, operation: str, what: str, **parameters: Any) -> dict[str, Any]:
        try:
            return self.connection.call(operation, COMMAND_TIMEOUT_S, **parameters)
        except RefusedError as refusal:
            text = f"the key service {self.connection.where} does not {what} {self.describe()}: {refusal}"
            if refusal.kind is Kind.DENIED:
                raise KeyDeniedError(text) from None
            raise (EntryRefusedError if operation != "encrypt" else KeyAccessError)(text) from None

    def _entry(self, answer: dict[str, Any], label: str) -> Recipient:
        """What Encrypt or ReEncrypt answered, if it is about the key that was named."""
        wrapped, key = answer.get("CiphertextBlob"), parse_key_arn(answer.get("KeyId"))
        if not isinstance(wrapped, bytes) or not 0 < len(wrapped) <= MAX_CIPHERTEXT_SIZE or key is None or not self._reference.may_be(key):
            raise KeyServiceError(
                f"the key service {self.connection.where} answered with something that is no wrapped key of {self.describe()}"
            )
        return recipient(self.scheme, key.text, label, wrapped)


def encryption_context(context: bytes) -> dict[str, str]:
    """The wrapping context as AWS has it: readable in CloudTrail, and to name in policies."""
    form, model, key_id = json.loads(context)
    return {"modelfs:format": form, "modelfs:model": model, "modelfs:key-id": key_id}


def open_provider(reference: str, insecure_http: bool = False) -> AwsProvider:
    """The provider of `awskms:REFERENCE`. Asks nobody yet.

    Raises:
        ConfigError: The reference names no key.
    """
    return AwsProvider(reference, insecure_http)
