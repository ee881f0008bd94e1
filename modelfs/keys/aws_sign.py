"""A publisher's signing key that stays in AWS KMS: `awskms:REFERENCE`, by securesystemslib's AWSSigner. ECC_NIST_P256 or ECC_NIST_P384.

Permissions: kms:GetPublicKey and kms:Sign. Environment: see aws.py.
"""

from typing import Any

from securesystemslib.signer._aws_signer import AWSSigner
from securesystemslib.signer._key import SSlibKey
from securesystemslib.signer._signature import Signature

from modelfs.crypto.service_keys import signing_key
from modelfs.errors import ConfigError, KeyAccessError, KeyDeniedError, KeyServiceError
from modelfs.keys.aws import COMMAND_TIMEOUT_S
from modelfs.keys.aws_answers import Kind, RefusedError
from modelfs.keys.aws_api import AwsConnection
from modelfs.keys.aws_reference import parse_reference
from modelfs.keys.signer_options import SignerOptions

_NOT_FOR_SIGNING = frozenset({"InvalidKeyUsageException", "UnsupportedOperationException"})


class KmsSigner(AWSSigner):
    """AWSSigner with our connection: its own has no deadline and logs what it sends and gets."""

    def __init__(self, reference: str, public_key: SSlibKey, client: "_Client") -> None:
        """Bind one key."""
        # Not the parent's: it would make a client of its own.
        self.aws_key_id = reference
        self._public_key = public_key
        self.aws_algo = self.aws_algos[public_key.scheme]
        self.client = client

    def sign(self, payload: bytes) -> Signature:
        """Sign; that the signature is one, `sign_payload` sees.

        Raises:
            KeyAccessError: The service refuses, or gives no answer that counts.
        """
        try:
            return super().sign(payload)
        except KeyAccessError:
            raise
        except Exception as exc:
            # `from None`: the error may quote the answer.
            raise KeyServiceError(f"{self.client.where} answered with something that is no signature ({type(exc).__name__})") from None


class _Client:
    """What AWSSigner takes for a client of boto3."""

    def __init__(self, reference: str, insecure_http: bool) -> None:
        parsed = parse_reference(reference)
        self._name = f"awskms:{parsed.text}"
        self._connection = AwsConnection(parsed.region, insecure_http)

    @property
    def where(self) -> str:
        return f"the key service {self._connection.where}"

    def sign(self, **parameters: Any) -> dict[str, Any]:
        return self._call("sign", "sign with", parameters)

    def get_public_key(self, **parameters: Any) -> dict[str, Any]:
        return self._call("get_public_key", "show the public key of", parameters)

    def _call(self, operation: str, what: str, parameters: dict[str, Any]) -> dict[str, Any]:
        try:
            return self._connection.call(operation, COMMAND_TIMEOUT_S, **parameters)
        except RefusedError as refusal:
            if refusal.code in _NOT_FOR_SIGNING:
                raise KeyAccessError(f"the key {self._name} is none for signing with ECDSA on P-256 or P-384: {refusal.code}") from None
            kind = KeyDeniedError if refusal.kind is Kind.DENIED else KeyAccessError
            raise kind(f"{self.where} does not {what} {self._name}: {refusal}") from None


def open_signer(uri: str, options: SignerOptions) -> KmsSigner:
    """See `modelfs.keys.open_signer`."""
    reference = uri.removeprefix("awskms:")
    client = _Client(reference, options.vault is not None and options.vault.insecure_http)
    answer = client.get_public_key(KeyId=reference)
    try:
        public_key = signing_key(answer["PublicKey"], uri)
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError):
        raise KeyServiceError(f"{client.where} shows something that is no public key of {uri}") from None
    if public_key.scheme not in AWSSigner.aws_algos:
        raise ConfigError(f"{uri} is not an ECC_NIST_P256 or ECC_NIST_P384 key: make one for SIGN_VERIFY")
    return KmsSigner(reference, public_key, client)
