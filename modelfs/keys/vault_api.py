"""Vault's API over our wire: hvac knows the paths and parameters, this module decides which answers count (docs/DESIGN.md, key service).

An error counts only if it is one that the service itself writes: 400, 403 or 404 with a JSON body `{"errors": [...]}`. Its text is never
passed on: what stands in messages is ours.
"""

import json
from typing import Any

import hvac

from modelfs.errors import KeyServiceError
from modelfs.keys.vault_wire import Reply, Wire

_REASONS = {
    "permission denied": "permission denied",
    "encryption key not found": "the key does not exist",
    "signing key not found": "the key does not exist",
    "no handler for route": "no such secrets engine or login method is mounted",
    "disallowed by policy (too old)": "min_decryption_version is above the version that wrapped it",
    "message authentication failed": "it was altered, or wrapped by another key or for another model",
    "invalid ciphertext": "it is not a wrapped key",
    "missing 'context'": "the key is a derived one and needs a context",
    "encryption not supported": "the key is not one for encryption",
    "invalid role or secret id": "the role id or secret id is not valid (any more)",
    "wrapping token is not valid": "the wrapping token is not valid (any more)",
    "not renewable": "the token cannot be renewed",
    "namespace": "the namespace does not exist",
}
"""Texts of the service that are recognised -> what is said instead."""

_OTHER_STATUS = {
    412: "its data is not up to date yet",
    429: "too many requests, or a standby server",
    472: "a standby server of another data centre",
    473: "a performance standby server",
    503: "it is sealed or under maintenance",
}


class RefusedError(Exception):
    """The service itself refused. Translated before it leaves the provider."""

    def __init__(self, status: int, reason: str) -> None:
        """Take the HTTP status (400, 403 or 404) and a reason in words of ours."""
        super().__init__(f"{reason} ({status})")
        self.status = status


class _Adapter(hvac.adapters.Adapter):  # type: ignore[misc]  # hvac has no types, and asks for a subclass
    """What hvac's API classes send through."""

    def __init__(self, wire: Wire, namespace: str | None) -> None:
        # Not the parent's: it would open a session of requests.
        self.wire = wire
        self.base_uri = str(wire.endpoint)
        self.namespace = namespace
        self.token = ""

    def get_login_token(self, response: Any) -> str:
        return text_at(response, "auth", "client_token")

    def request(self, method: str, url: str, headers: Any = None, raise_exception: bool = True, **options: Any) -> dict[str, Any]:
        sent = {"X-Vault-Request": "true", **(headers or {})}
        if self.token:
            sent["X-Vault-Token"] = self.token
        if self.namespace:
            sent["X-Vault-Namespace"] = self.namespace
        body = None
        if options.get("json") is not None:
            body = json.dumps(options["json"]).encode()
            sent["Content-Type"] = "application/json"
        return _read(self.wire.send(method.upper(), url, sent, body), self.base_uri)


def _read(reply: Reply, address: str) -> dict[str, Any]:
    is_json = reply.content_type.partition(";")[0].strip().lower() == "application/json"
    answer: Any = None
    if is_json and reply.body:
        try:
            answer = json.loads(reply.body)
        except (ValueError, RecursionError):
            is_json = False
    if reply.status == 204:
        return {}
    if reply.status == 200 and isinstance(answer, dict):
        return answer
    if reply.status in (400, 403, 404) and isinstance(answer, dict):
        errors = answer.get("errors")
        if isinstance(errors, list) and (errors or reply.status == 404) and all(isinstance(error, str) for error in errors):
            raise RefusedError(reply.status, _reason(errors))
    if reply.status in _OTHER_STATUS:
        why = f"{_OTHER_STATUS[reply.status]} ({reply.status})"
    elif 300 <= reply.status < 400:
        why = f"it points elsewhere ({reply.status}), which is not followed: give the address of the active server"
    elif reply.status in (200, 400, 403, 404):
        why = f"the answer ({reply.status}) is not one of a Vault: something stands in between, or the address is wrong"
    else:
        why = f"status {reply.status}"
    raise KeyServiceError(f"the key service {address} cannot serve now: {why}")


def _reason(errors: list[str]) -> str:
    if not errors:
        return "there is no such thing"
    text = " ".join(errors)[:4096].lower()
    return next((ours for theirs, ours in _REASONS.items() if theirs in text), "for a reason in its log")


class VaultApi:
    """A conversation with one server: hvac's classes over one wire."""

    def __init__(self, wire: Wire, namespace: str | None) -> None:
        """Nothing is sent yet."""
        self._adapter = _Adapter(wire, namespace)
        self.address = str(wire.endpoint)
        # An empty token keeps hvac from looking for one in the environment and in the home directory.
        self.client = hvac.Client(url=self.address, token="", verify=True, adapter=lambda **_: self._adapter)

    @property
    def token(self) -> str:
        """What requests are made with; empty: nothing."""
        return str(self._adapter.token)

    @token.setter
    def token(self, token: str) -> None:
        self._adapter.token = token

    def post(self, path: str, **fields: str) -> dict[str, Any]:
        """A call that hvac does not have, or wants to make over a connection of its own (login by TLS certificate)."""
        answer: dict[str, Any] = self._adapter.post(url=f"/v1/{path}", json=fields)
        return answer

    def close(self) -> None:
        """End the connection."""
        self._adapter.wire.close()


def value_at(answer: Any, *path: str) -> Any:
    """A value inside an answer; KeyServiceError when it is not there: some server says 200 and means nothing."""
    for name in path:
        answer = answer.get(name) if isinstance(answer, dict) else None
    if answer is None:
        raise KeyServiceError(f"the key service's answer lacks {'.'.join(path)}: it is not a Vault, or something stands in between")
    return answer


def text_at(answer: Any, *path: str) -> str:
    """`value_at` of a text."""
    value = value_at(answer, *path)
    if not isinstance(value, str):
        raise KeyServiceError(f"in the key service's answer {'.'.join(path)} is no text")
    return value


def seconds_at(answer: Any, *path: str) -> int:
    """`value_at` of a duration in whole seconds."""
    value = value_at(answer, *path)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 1 << 40:
        raise KeyServiceError(f"in the key service's answer {'.'.join(path)} is no number of seconds")
    return value
