"""An impostor of AWS KMS: it answers as the service would, until a test makes it misbehave at one of its operations."""

import json
from base64 import b64encode
from typing import Any

from tests.leases.impostor import Request, ServiceImpostor, http

KEY_ARN = "arn:aws:kms:eu-central-1:111122223333:key/1234abcd-12ab-34cd-56ef-1234567890ab"
JSON = "application/x-amz-json-1.1"


def reply(value: Any, status: int = 200) -> bytes:
    """An answer as the service writes it."""
    return http(status, json.dumps(value).encode(), JSON, x_amzn_RequestId="5d3ab6ea-0000-4000-8000-000000000000")


def error(code: str, message: str = "a text of the service", status: int = 400) -> bytes:
    return reply({"__type": code, "message": message}, status)


class Impostor(ServiceImpostor):
    """`dek` is what it unwraps to."""

    def what_of(self, request: Request) -> str:
        return request.headers.get("x-amz-target", request.path).rpartition(".")[2]

    def usual(self, request: Request) -> bytes:
        fields = json.loads(request.body)
        answers = {
            "Encrypt": {"CiphertextBlob": b64encode(b"wrapped").decode(), "KeyId": KEY_ARN},
            "ReEncrypt": {"CiphertextBlob": b64encode(b"again").decode(), "KeyId": KEY_ARN, "SourceKeyId": KEY_ARN},
            "Decrypt": {"Plaintext": b64encode(self.dek).decode(), "KeyId": KEY_ARN},
            "DescribeKey": {"KeyMetadata": {"Arn": KEY_ARN, "KeyId": fields.get("KeyId"), "KeyState": "Enabled", "Enabled": True}},
        }
        return reply(answers[self.what_of(request)])

    def sent(self, operation: str) -> list[dict[str, Any]]:
        """Bodies of the requests for one operation."""
        return [json.loads(request.body) for request in self.requests if self.what_of(request) == operation]
