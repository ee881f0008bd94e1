"""A model sealed for a KEK of its own in a real server, mounted with short leases, and what takes it away."""

import contextlib
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from modelfs.keys import open_kek
from modelfs.keys.vault_settings import AppRole
from tests.helpers import KeySet
from tests.leases.watching import FILE, PLAIN, RENEW_S, TTL_S, Outage, Outcome, Sample, Watcher, endure, mounts, pause, seal_for, status
from tests.mount.conftest import modelfs
from tests.vault.server import Server

__all__ = [
    "DENIALS", "FILE", "PLAIN", "RENEW_S", "TTL_S", "Denial", "Leased", "Outage", "Outcome", "Sample", "Watcher",
    "endure", "mounts", "pause", "revoke_accessors", "status",
]  # fmt: skip


class Leased:
    """A sealed model and the login of the host that mounts it."""

    def __init__(self, server: Server, keys: KeySet, base: Path, more: int = 0) -> None:
        """`more` bytes of zeros beside the file that readers read: the sealed model is that much larger."""
        self.server = server
        self.key = server.key()
        self.policy = server.policy(self.key)
        self.role = server.role(self.policy)
        self.auth: AppRole = server.approle(self.role)
        self.sealed = seal_for(open_kek(f"vault:{self.key}", server.settings(self.auth)), keys, base, more)

    @property
    def login(self) -> str:
        return f"approle:role_id_file={self.auth.role_id_file},secret_id_file={self.auth.secret_id_file}"

    def options(self, *, auth: str = "", address: str = "", ttl_s: float = TTL_S) -> list[object]:
        vault = self.server.vault
        where = ["--kek", f"vault:{self.key}", "--vault-address", address or vault.address, "--vault-ca-file", vault.ca.path]
        return [*where, "--vault-auth", auth or self.login, "--renew-every", RENEW_S, "--ttl", ttl_s]

    def accessors(self) -> list[str]:
        """Of every token that has this model's policy."""
        auth = self.server.root.auth.token
        found = []
        for accessor in auth.list_accessors()["data"]["keys"]:
            with contextlib.suppress(Exception):
                if self.policy in auth.lookup_accessor(accessor)["data"]["policies"]:
                    found.append(accessor)
        assert found
        return found

    def rewrap(self) -> "subprocess.CompletedProcess[str]":
        """`modelfs rewrap`, by somebody who may do nothing else."""
        vault, name = self.server.vault, self.key_name
        auth = self.server.token_file(self.server.policy(rules=f'path "transit/rewrap/{name}" {{ capabilities = ["update"] }}\n'))
        where = ["--kek", f"vault:{self.key}", "--vault-address", vault.address, "--vault-ca-file", vault.ca.path]
        what = ["rewrap", self.sealed.path, "--model", "demo", "--trust", self.sealed.keys.public]
        return modelfs(*what, *where, "--vault-auth", f"token:{auth.path}", "--json")

    @property
    def key_name(self) -> str:
        return self.key.rpartition("/")[2]


# Denials.


def revoke_accessors(leased: Leased) -> None:
    for accessor in leased.accessors():
        leased.server.root.auth.token.revoke_accessor(accessor)


def remove_policy(leased: Leased) -> None:
    leased.server.root.sys.delete_policy(leased.policy)


def raise_minimum(leased: Leased) -> None:
    transit = leased.server.root.secrets.transit
    transit.rotate_key(leased.key_name)
    transit.update_key_configuration(leased.key_name, min_decryption_version=2)


def delete_key(leased: Leased) -> None:
    transit = leased.server.root.secrets.transit
    transit.update_key_configuration(leased.key_name, deletion_allowed=True)
    transit.delete_key(leased.key_name)


@dataclass(frozen=True)
class Denial:
    """An operator's act, and what the audit log says of it afterwards."""

    act: Callable[[Leased], None]
    reason: str


DENIALS = {
    "accessor revoked": Denial(revoke_accessors, "it was revoked"),
    "policy removed": Denial(remove_policy, "it was revoked (or may not `update` auth/token/renew-self any more)"),
    "min_decryption_version raised": Denial(raise_minimum, "min_decryption_version is above the version that wrapped it"),
    "key deleted": Denial(delete_key, "the key does not exist"),
}
