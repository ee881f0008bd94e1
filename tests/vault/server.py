"""A real server for tests (scripts/dev_vault.py) and what tests make in it; one for each session that asks."""

import contextlib
import importlib.util
import itertools
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from modelfs.crypto.kdf import key_commitment
from modelfs.format.keysfile import KeysFile, keys_file, wrapping_context
from modelfs.format.manifest import BlobEntry, Manifest
from modelfs.keys.vault import VaultProvider, connect
from modelfs.keys.vault_session import boottime
from modelfs.keys.vault_settings import AppRole, AuthMethod, TokenFile, VaultSettings
from tests.helpers import REPOSITORY

_spec = importlib.util.spec_from_file_location("dev_vault", REPOSITORY / "scripts" / "dev_vault.py")
assert _spec is not None
assert _spec.loader is not None
dev_vault = importlib.util.module_from_spec(_spec)
sys.modules["dev_vault"] = dev_vault
_spec.loader.exec_module(dev_vault)
write_secret: Callable[[Path, str], Path] = dev_vault.write_secret

DEK, KEY_ID, MODEL = b"\xd3" * 16 + b"EK" * 8, "ab" * 16, "demo"
CONTEXT = wrapping_context(MODEL, KEY_ID)
WRONG_KEYS = {
    "zeros": bytes(32),
    "another key": b"E" * 32,
    "one bit": bytes([DEK[0] ^ 1]) + DEK[1:],
    "short": DEK[:31],
    "long": DEK + b"\0",
    "empty": b"",
}
"""What a service may answer instead of the DEK."""
TIMEOUT = 5.0

_numbers = itertools.count(1)

SELF = """
path "auth/token/renew-self" { capabilities = ["update"] }
path "auth/token/lookup-self" { capabilities = ["read"] }
"""


def manifest(dek: bytes = DEK, key_id: str = KEY_ID, model: str = MODEL) -> Manifest:
    """A release whose key is `dek`; only what concerns keys means anything."""
    return Manifest(
        block_size=4096,
        blobs=[BlobEntry(id="0" * 32, root="0" * 64, size=1)],
        cipher="AES-256-GCM",
        created="2025-01-01T00:00:00Z",
        digest="blake3",
        expires=None,
        format="modelfs/1",
        index="0" * 32,
        key_commitment=key_commitment(dek).hex(),
        key_id=key_id,
        model=model,
        release=1,
    )


class Server:
    """The session's server, and names that no other test has."""

    def __init__(self, vault: Any) -> None:
        self.vault = vault
        self.root = vault.client()

    @property
    def directory(self) -> Path:
        path: Path = self.vault.directory
        return path

    def name(self, prefix: str) -> str:
        return f"{prefix}-{next(_numbers)}"

    def key(self, **options: Any) -> str:
        """A new KEK `transit/NAME`."""
        name = self.name("kek")
        self.root.secrets.transit.create_key(name, **{"derived": True, **options})
        return f"transit/{name}"

    def policy(self, key: str = "transit/models", rules: str | None = None) -> str:
        """A new policy: may unwrap with `key`, and wrap."""
        name, (mount, _, kek) = self.name("policy"), key.rpartition("/")
        text = "".join(f'path "{mount}/{verb}/{kek}" {{ capabilities = ["update"] }}\n' for verb in ("decrypt", "encrypt"))
        self.root.sys.create_or_update_policy(name, (text if rules is None else rules) + SELF)
        return name

    def settings(self, auth: AuthMethod, **options: Any) -> VaultSettings:
        fields = {"address": self.vault.address, "ca_file": self.vault.ca.path, **options}
        return VaultSettings(auth=auth, **fields)

    def provider(
        self, auth: AuthMethod, key: str = "transit/models", clock: Callable[[], float] = boottime, **options: Any
    ) -> VaultProvider:
        return VaultProvider(key, connect(self.settings(auth, **options), clock))

    def token_file(self, policy: str, **options: Any) -> TokenFile:
        """A new token in a file."""
        answer = self.root.auth.token.create(policies=[policy], **{"ttl": "1h", "no_default_policy": True, **options})
        return TokenFile(path=write_secret(self.directory / self.name("token"), answer["auth"]["client_token"]))

    def role(self, policy: str, **options: Any) -> str:
        """A new AppRole."""
        name = self.name("role")
        fields = {"token_ttl": "1h", "token_max_ttl": "24h", "token_no_default_policy": True, **options}
        self.root.auth.approle.create_or_update_approle(name, token_policies=[policy], **fields)
        return name

    def approle(self, role: str, **options: Any) -> AppRole:
        """Files with a role id and a new secret id."""
        role_id = self.root.auth.approle.read_role_id(role)["data"]["role_id"]
        secret_id = self.root.auth.approle.generate_secret_id(role)["data"]["secret_id"]
        return AppRole(
            role_id_file=write_secret(self.directory / self.name("role-id"), role_id),
            secret_id_file=write_secret(self.directory / self.name("secret-id"), secret_id),
            **options,
        )

    def wrapped(self, key: str = "transit/models", dek: bytes = DEK, context: bytes = CONTEXT) -> KeysFile:
        """A keys file as the publisher would make it."""
        with_all = TokenFile(path=write_secret(self.directory / self.name("root"), self.vault.root_token))
        return keys_file([self.provider(with_all, key).wrap_key(dek, context)])

    def audited(self, since: int = 0) -> list[dict[str, Any]]:
        """Requests that the server has answered, from byte `since` of its audit log on."""
        with open(self.vault.audit_log, "rb") as file:
            file.seek(since)
            lines = [json.loads(line) for line in file.read().splitlines()]
        return [line for line in lines if line["type"] == "response"]

    def audit_mark(self) -> int:
        size: int = self.vault.audit_log.stat().st_size
        return size

    def paths(self, since: int) -> list[str]:
        """Paths of the requests since a mark, in order."""
        return [line["request"]["path"] for line in self.audited(since)]


@contextlib.contextmanager
def running_server(directory: Path, is_durable: bool = False) -> Iterator[Server]:
    """A real OpenBao over TLS with a CA of its own, in a directory, provisioned as scripts/dev-vault does."""
    directory.mkdir(exist_ok=True)
    vault = dev_vault.DevVault(directory, is_durable=is_durable)
    vault.start()
    try:
        vault.provision()
        yield Server(vault)
    finally:
        vault.stop()
