"""An impostor of a Vault: it answers as one would, until a test makes it misbehave at one of its endpoints."""

from base64 import b64encode

from tests.leases.impostor import Request, ServiceImpostor, answer

TOKEN = "s.IMPOSTORimpostorIMPOSTOR"


class Impostor(ServiceImpostor):
    """`dek` is what it unwraps to."""

    @property
    def seen(self) -> list[tuple[str, str]]:
        """Path and token of each request."""
        return [(request.path, request.headers.get("x-vault-token", "")) for request in self.requests]

    def usual(self, request: Request) -> bytes:
        path = request.path
        if path.endswith("lookup-self"):
            return answer({"data": {"type": "service", "accessor": "acc", "ttl": 3600, "creation_ttl": 3600, "renewable": True, "num_uses": 0, "expire_time": "x"}})  # fmt: skip  # noqa: E501
        if path.endswith("/login"):
            return answer({"auth": {"client_token": TOKEN, "accessor": "acc", "lease_duration": 3600, "renewable": True}})
        if path.endswith("renew-self"):
            return answer({"auth": {"client_token": TOKEN, "lease_duration": 3600, "renewable": True}})
        if "/encrypt/" in path:
            return answer({"data": {"ciphertext": "vault:v1:" + b64encode(self.dek).decode()}})
        if "/decrypt/" in path:
            return answer({"data": {"plaintext": b64encode(self.dek).decode()}})
        return answer({"errors": []}, 404)
