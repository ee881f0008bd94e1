"""What a real server says when access is taken back, or when it cannot serve: denied is not unreachable (DESIGN section 4)."""

import os
import signal
import socket
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelfs.errors import KeyAccessError, KeyDeniedError, KeyServiceError
from modelfs.format.keysfile import KeysFile, keys_file, recipient
from modelfs.keys.interface import Grant
from modelfs.keys.vault import VaultProvider, connect
from modelfs.keys.vault_session import Session
from modelfs.keys.vault_settings import TokenFile, VaultSettings
from tests.vault.server import CONTEXT, DEK, TIMEOUT, Server, manifest, running_server


class Host:
    """A host with a key, a policy and a login of its own, which has opened its model once."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.key = server.key()
        self.name = self.key.partition("/")[2]
        self.policy = server.policy(self.key)
        self.role = server.role(self.policy)
        self.auth = server.approle(self.role)
        self.keys: KeysFile = server.wrapped(self.key)
        self.grant: Grant = self.provider().prove(self.keys, manifest(), None, False, TIMEOUT)
        self.mark = server.audit_mark()

    def provider(self) -> VaultProvider:
        return self.server.provider(self.auth, self.key)

    def prove(self, opened_before: bool = True, timeout_s: float = TIMEOUT) -> Grant:
        return self.provider().prove(self.keys, manifest(), self.grant.session, opened_before, timeout_s)

    def logins(self) -> int:
        return self.server.paths(self.mark).count("auth/approle/login")

    @property
    def session(self) -> Session:
        return Session.from_bytes(self.grant.session or b"")


@pytest.fixture
def host(server: Server) -> Host:
    return Host(server)


def revoke_accessor(host: Host) -> None:
    host.server.root.auth.token.revoke_accessor(host.grant.accessor)


def revoke_as_operator(host: Host) -> None:
    """With the shipped operator policy, and nothing more."""
    operator = host.server.vault.client((host.server.directory / "operator.token").read_text())
    assert host.grant.accessor in operator.auth.token.list_accessors()["data"]["keys"]
    operator.auth.token.revoke_accessor(host.grant.accessor)


def remove_policy(host: Host) -> None:
    host.server.root.sys.delete_policy(host.policy)


def forbid_key(host: Host) -> None:
    rules = f'path "transit/decrypt/{host.name}" {{ capabilities = ["deny"] }}\n'
    host.server.root.sys.create_or_update_policy(host.policy, rules + "".join(SELF_RULES))


SELF_RULES = [
    'path "auth/token/renew-self" { capabilities = ["update"] }\n',
    'path "auth/token/lookup-self" { capabilities = ["read"] }\n',
]


def raise_min_version(host: Host) -> None:
    host.server.root.secrets.transit.rotate_key(host.name)
    host.server.root.secrets.transit.update_key_configuration(host.name, min_decryption_version=2)


def delete_key(host: Host) -> None:
    host.server.root.secrets.transit.update_key_configuration(host.name, deletion_allowed=True)
    host.server.root.secrets.transit.delete_key(host.name)


def disable_role_and_revoke(host: Host) -> None:
    host.server.root.auth.approle.delete_role(host.role)
    revoke_accessor(host)


DENIALS: dict[str, tuple[Callable[[Host], None], str]] = {
    "accessor revoked": (revoke_accessor, "was revoked"),
    "accessor revoked by the operator": (revoke_as_operator, "was revoked"),
    "policy removed": (remove_policy, "revoked"),
    "key forbidden by policy": (forbid_key, "denies `update` on transit/decrypt/kek-"),
    "min_decryption_version raised": (raise_min_version, "min_decryption_version is above the version that wrapped it"),
    "key deleted": (delete_key, "the key does not exist"),
    "role deleted, token revoked": (disable_role_and_revoke, "was revoked"),
}


@pytest.mark.parametrize(("take_back", "text"), DENIALS.values(), ids=DENIALS)
def test_denied_and_stays_denied(host: Host, take_back: Callable[[Host], None], text: str) -> None:
    assert host.prove().dek == DEK
    take_back(host)
    for _ in range(3):
        with pytest.raises(KeyDeniedError, match=text):
            host.prove()
    assert host.logins() == 0, "a revoked login was replaced by a new one: revocation would undo itself"


def test_the_first_time_a_refused_wrapped_key_says_what_to_check(host: Host) -> None:
    raise_min_version(host)
    with pytest.raises(KeyAccessError, match="check that the key exists, that its min_decryption_version allows") as caught:
        host.prove(opened_before=False)
    assert type(caught.value) is KeyAccessError


def test_an_engine_that_is_gone_is_a_denial_only_for_what_was_open(server: Server) -> None:
    mount = server.name("engine")
    server.root.sys.enable_secrets_engine("transit", path=mount)
    server.root.secrets.transit.create_key("k", derived=True, mount_point=mount)
    auth = server.token_file(server.policy(f"{mount}/k"))
    keys = server.wrapped(f"{mount}/k")
    assert server.provider(auth, f"{mount}/k").prove(keys, manifest(), None, False, TIMEOUT).dek == DEK
    server.root.sys.disable_secrets_engine(mount)
    for opened_before, error in ((True, KeyDeniedError), (False, KeyAccessError)):
        with pytest.raises(KeyAccessError, match="no such secrets engine") as caught:
            server.provider(auth, f"{mount}/k").prove(keys, manifest(), None, opened_before, TIMEOUT)
        assert type(caught.value) is error


def test_a_rotated_key_still_opens_and_says_its_version(host: Host) -> None:
    host.server.root.secrets.transit.rotate_key(host.name)
    assert host.prove().key_version == 1
    newer = host.server.wrapped(host.key)
    grant = host.provider().prove(newer, manifest(), host.grant.session, True, TIMEOUT)
    assert (grant.dek, grant.key_version) == (DEK, 2)


def test_rewrapped_by_the_service_it_opens_after_the_minimum_was_raised(host: Host) -> None:
    """Server-side rewrap keeps the binding: context goes with it."""
    raise_min_version(host)
    with pytest.raises(KeyDeniedError):
        host.prove()
    transit = host.server.root.secrets.transit
    old, context = host.keys.recipients[0], b64encode(CONTEXT).decode()
    transit.update_key_configuration(host.name, min_decryption_version=1)
    answer = transit.rewrap_data(host.name, old.wrapped_key.decode(), context=context)
    transit.update_key_configuration(host.name, min_decryption_version=2)
    host.keys = keys_file([old, recipient("vault", host.key, "", answer["data"]["ciphertext"].encode())])
    assert host.prove().key_version == 2


PERMISSIONS = {
    "nothing at all": ("", "`update` on transit/decrypt/models"),
    "read instead of update": ('path "transit/decrypt/models" { capabilities = ["read"] }\n', "`update` on transit/decrypt/models"),
    "another key": ('path "transit/decrypt/other" { capabilities = ["update"] }\n', "`update` on transit/decrypt/models"),
}


@pytest.mark.parametrize(("rules", "missing"), PERMISSIONS.values(), ids=PERMISSIONS)
def test_a_missing_permission_is_named(server: Server, rules: str, missing: str) -> None:
    auth = server.token_file(server.policy(rules=rules))
    keys = server.wrapped()
    with pytest.raises(KeyDeniedError, match=missing):
        server.provider(auth).prove(keys, manifest(), None, False, TIMEOUT)
    with pytest.raises(KeyDeniedError, match="`update` on transit/encrypt/models"):
        server.provider(auth).wrap_key(DEK, b"context")


def test_wrapping_with_a_key_that_is_not_there_makes_none(server: Server) -> None:
    """The shipped policy has no `create`: a mistyped name is an error, not a new key."""
    auth = server.token_file(server.policy("transit/missing"))
    with pytest.raises(KeyAccessError, match="key"):
        server.provider(auth, "transit/missing").wrap_key(DEK, b"context")
    assert "missing" not in server.root.secrets.transit.list_keys()["data"]["keys"]


# A server that cannot serve; these have one of their own.


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Host]:
    with running_server(tmp_path) as found:
        yield Host(found)


def test_sealed_stopped_hanging(own: Host) -> None:
    """A whole outage: none of it is a denial, and afterwards the same login goes on."""
    vault = own.server.vault
    own.server.root.sys.seal()
    with pytest.raises(KeyServiceError, match="sealed"):
        own.prove()
    with pytest.raises(KeyServiceError, match="sealed"):
        own.provider().prove(own.keys, manifest(), None, False, TIMEOUT)
    vault.unseal()
    while vault.client("").sys.read_health_status(method="HEAD").status_code != 200:
        pass
    assert own.prove().dek == DEK
    os.kill(vault.pid, signal.SIGSTOP)
    with pytest.raises(KeyServiceError, match=r"did not answer within 0\.5 s"):
        own.prove(timeout_s=0.5)
    os.kill(vault.pid, signal.SIGCONT)
    assert own.prove().dek == DEK
    assert own.logins() == 0
    vault.stop()
    with pytest.raises(KeyServiceError, match="Connection refused"):
        own.prove()


def test_a_rate_limit_is_an_outage(own: Host) -> None:
    own.server.root.write_data("sys/quotas/rate-limit/all", data={"rate": 1, "interval": "30s"})
    with pytest.raises(KeyServiceError, match="too many requests"):
        for _ in range(3):
            own.prove()


def test_nobody_listens() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    _cannot_connect(f"https://127.0.0.1:{port}", "Connection refused")
    _cannot_connect("https://name.invalid:8200", "name is not known|did not answer")


def _cannot_connect(address: str, text: str) -> None:
    settings = VaultSettings(auth=TokenFile(path=Path("/dev/null")), address=address)
    connection = connect(settings)
    connection.session = Session("s.token", "", True, 60, 0, None, None)
    provider = VaultProvider("transit/models", connection, 2)
    keys = keys_file([recipient("vault", "transit/models", "", b"vault:v1:AAAA")])
    with pytest.raises(KeyServiceError, match=text):
        provider.prove(keys, manifest(), connection.session.to_bytes(), True, 2)
