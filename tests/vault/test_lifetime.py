"""Staying logged in: renewals to the token's own end, one login there, none before; a revoked token stays revoked.

Against a simulated service, whose clock runs as fast as wanted; test_real_lives.py has a real one with lives of seconds.
"""

import json
from base64 import b64encode
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfs.errors import KeyDeniedError, KeyServiceError
from modelfs.format.keysfile import keys_file, recipient
from modelfs.keys import vault_session
from modelfs.keys.interface import Grant
from modelfs.keys.vault import VaultProvider, connect
from modelfs.keys.vault_session import LOGIN_AT, MAX_SESSION_SIZE, Session
from modelfs.keys.vault_settings import AppRole, AuthMethod, TokenFile, VaultSettings
from modelfs.keys.vault_wire import Reply
from tests.vault.server import DEK, TIMEOUT, manifest, write_secret

KEYS = keys_file([recipient("vault", "transit/models", "", b"vault:v1:AAAA")])


@dataclass
class Token:
    """What the service knows about a token."""

    issued: float
    ttl: int
    max_ttl: int | None
    period: int = 0
    renewable: bool = True
    expires: float = 0
    revoked: bool = False


@dataclass
class Service:
    """A service whose time is `now`; each request takes `latency_s`."""

    now: float = 1000.0
    latency_s: float = 0.01
    ttl: int = 600
    max_ttl: int | None = 3600
    tokens: dict[str, Token] = field(default_factory=dict)
    logins: list[float] = field(default_factory=list)
    is_down: bool = False
    is_heard: bool = False
    """Whether requests arrive while it is down, and only answers are lost."""
    login_status: int = 200
    unwrap_status: int = 200

    def clock(self) -> float:
        return self.now

    def issue(self, name: str, ttl: int, max_ttl: int | None, **fields: Any) -> str:
        self.tokens[name] = Token(self.now, ttl, max_ttl, **fields, expires=self.now + ttl)
        return name

    def send(self, _method: str, path: str, headers: dict[str, str], body: bytes | None) -> Reply:
        self.now += self.latency_s / 2
        if self.is_down and not self.is_heard:
            raise KeyServiceError("down")
        status, value = self._answer(path, headers.get("X-Vault-Token", ""), json.loads(body or b"{}"))
        self.now += self.latency_s / 2
        if self.is_down:
            raise KeyServiceError("down")
        return Reply(status, "application/json", json.dumps(value).encode())

    def _answer(self, path: str, token: str, fields: dict[str, Any]) -> tuple[int, Any]:
        if path.endswith("/login"):
            if self.is_down or self.login_status != 200:
                return self.login_status, {"errors": ["x"]}
            self.logins.append(self.now)
            name = self.issue(f"s.{len(self.logins)}", self.ttl, self.max_ttl)
            return 200, {"auth": {"client_token": name}}
        held = self.tokens.get(token)
        if held is None or held.revoked or self.now >= held.expires:
            return 403, {"errors": ["permission denied"]}
        if path.endswith("lookup-self"):
            data: dict[str, Any] = {
                "type": "service",
                "accessor": f"a.{token}",
                "num_uses": 0,
                "renewable": held.renewable,
                "expire_time": "x",
            }
            data |= {"ttl": int(held.expires - self.now), "creation_ttl": held.ttl}
            return 200, {"data": data | ({"period": held.period} if held.period else {})}
        if path.endswith("renew-self"):
            granted = held.period or int(fields["increment"].rstrip("s"))
            if held.max_ttl is not None:
                granted = min(granted, int(held.issued + held.max_ttl - self.now))
            if granted <= 0:
                return 400, {"errors": ["past the max TTL, cannot renew"]}
            held.expires = self.now + granted
            return 200, {"auth": {"lease_duration": granted}}
        assert "/decrypt/" in path
        if self.unwrap_status != 200:
            return self.unwrap_status, {"errors": ["x"]}
        return 200, {"data": {"plaintext": b64encode(DEK).decode()}}


class FakeWire:
    """In the place of a connection."""

    def __init__(self, service: Service) -> None:
        self.send, self.endpoint = service.send, "service"

    def close(self) -> None:
        pass


@dataclass
class Host:
    """Proofs of one host, each by a provider of its own, as short-lived processes make them."""

    service: Service
    auth: AuthMethod
    session: bytes | None = None

    def prove(self) -> Grant:
        provider = VaultProvider(
            "transit/models", connect(VaultSettings(auth=self.auth, address="http://127.0.0.1:1", insecure_http=True), self.service.clock)
        )
        grant = provider.prove(KEYS, manifest(), self.session, self.session is not None, TIMEOUT, self.keep)
        assert grant.dek == DEK
        assert len(grant.session or b"") <= MAX_SESSION_SIZE
        token = self.service.tokens[Session.from_bytes(grant.session or b"").token]
        assert grant.ttl_s is None or self.service.now + grant.ttl_s <= token.expires, "promised beyond the token's end"
        self.session = grant.session
        return grant

    def keep(self, session: bytes) -> None:
        self.session = session

    def prove_for(self, seconds: float, every: float = 30) -> None:
        end = self.service.now + seconds
        while self.service.now < end:
            self.prove()
            self.service.now += every


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    made = Service()
    monkeypatch.setattr(vault_session, "Wire", lambda *_: FakeWire(made))
    return made


@pytest.fixture
def host(service: Service, tmp_path: Path) -> Host:
    role_id, secret_id = (write_secret(tmp_path / name, "id") for name in ("role-id", "secret-id"))
    return Host(service, AppRole(role_id_file=role_id, secret_id_file=secret_id))


def test_a_hundred_lives(host: Host, service: Service) -> None:
    host.prove_for(100 * 3600)
    lives = [b - a for a, b in zip(service.logins, service.logins[1:], strict=False)]
    assert len(lives) > 100
    assert all(LOGIN_AT * 3600 - 1 <= life <= LOGIN_AT * 3600 + 31 for life in lives), "a login before or after its time"


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    ttl=st.integers(5, 5000),
    factor=st.floats(1, 20),
    share=st.floats(0.02, 0.15),
    latency=st.floats(0.001, 0.15),
)
def test_any_ttl_any_latency(tmp_path: Path, ttl: int, factor: float, share: float, latency: float) -> None:
    """Proofs that come several times in a token's ttl never fail, and log in once a life, at its end."""
    max_ttl = max(ttl, int(ttl * factor), 10)
    service = Service(ttl=ttl, max_ttl=max_ttl, latency_s=latency)
    role_id, secret_id = (write_secret(tmp_path / name, "id") for name in ("role-id", "secret-id"))
    host = Host(service, AppRole(role_id_file=role_id, secret_id_file=secret_id))
    interval = ttl * share
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(vault_session, "Wire", lambda *_: FakeWire(service))
        host.prove_for(min(5 * max_ttl, 300 * interval), interval)
    slack = 6 * latency + 1
    for before, after in zip(service.logins, service.logins[1:], strict=False):
        assert after - before >= LOGIN_AT * max_ttl - slack, "logged in before the end"
        assert after - before <= LOGIN_AT * max_ttl + interval + slack


def test_a_periodic_token_never_needs_a_login(service: Service, tmp_path: Path) -> None:
    path = write_secret(tmp_path / "token", service.issue("s.periodic", 600, None, period=600))
    Host(service, TokenFile(path=path)).prove_for(30 * 86400, 200)
    assert service.logins == []


def test_an_outage_that_the_token_outlives_needs_no_login(host: Host, service: Service) -> None:
    host.prove()
    service.is_down = True
    for _ in range(10):
        service.now += 55
        with pytest.raises(KeyServiceError):
            host.prove()
    service.is_down = False
    host.prove()
    assert len(service.logins) == 1


def test_lost_answers_are_no_revocation(host: Host, service: Service) -> None:
    """The service has renewed the token and we do not know; later it ends, at a time that we do not know."""
    host.prove()
    service.is_down = service.is_heard = True
    for _ in range(20):
        service.now += 55
        with pytest.raises(KeyServiceError):
            host.prove()
    service.is_down = False
    host.prove()
    assert len(service.logins) == 1
    service.now += 700
    host.prove()
    assert len(service.logins) == 2


def test_an_outage_that_outlives_the_token_needs_one(host: Host, service: Service) -> None:
    host.prove()
    service.is_down = True
    for _ in range(20):
        service.now += 55
        with pytest.raises(KeyServiceError):
            host.prove()
    service.is_down = False
    for _ in range(5):
        host.prove()
    assert len(service.logins) == 2


@pytest.mark.parametrize("age", [0.0, 100.0, 1000.0, 2800.0, 2860.0, 2879.0])
def test_revoked_before_the_end_is_denied_for_good(host: Host, service: Service, age: float) -> None:
    """Also in the last moment before the next login is due: the old token must prove good before it is replaced."""
    host.prove_for(age)
    name = Session.from_bytes(host.session or b"").token if host.session else None
    if name is None:
        host.prove()
        name = "s.1"
    assert len(service.logins) == 1
    service.tokens[name].revoked = True
    for _ in range(100):
        service.now += 5
        if service.now >= Session.from_bytes(host.session or b"").expires_at:
            break
        with pytest.raises(KeyDeniedError, match="was revoked"):
            host.prove()
    assert len(service.logins) == 1


def test_a_renewal_counts_even_if_unwrapping_fails(host: Host, service: Service) -> None:
    """An outage of the key alone that outlasts the token's ttl: the token lives on, and a revocation of it is still one."""
    host.prove()
    service.unwrap_status = 503
    for _ in range(2 * service.ttl // 30):
        service.now += 30
        with pytest.raises(KeyServiceError):
            host.prove()
    service.tokens["s.1"].revoked = True
    with pytest.raises(KeyDeniedError, match="was revoked"):
        host.prove()
    assert len(service.logins) == 1


def test_a_login_that_fails_does_not_cost_the_old_one(host: Host, service: Service) -> None:
    host.prove_for(2850)
    service.login_status = 503
    host.prove_for(3550 - 2850)
    service.login_status = 400
    host.prove()
    assert len(service.logins) == 1
    service.now += 100
    with pytest.raises(KeyServiceError, match="refuses the login"):
        host.prove()
    service.login_status = 200
    host.prove()
    assert len(service.logins) == 2


def test_a_login_that_is_denied_is_a_denial(host: Host, service: Service) -> None:
    host.prove_for(2850)
    service.login_status = 403
    with pytest.raises(KeyDeniedError, match="denies the login"):
        host.prove_for(60)


def test_a_max_ttl_that_was_shortened_meanwhile(host: Host, service: Service) -> None:
    host.prove_for(600)
    for token in service.tokens.values():
        token.max_ttl = 1500
    service.max_ttl = 1500
    host.prove_for(3600)
    lives = [b - a for a, b in zip(service.logins, service.logins[1:], strict=False)]
    assert lives
    assert all(life >= LOGIN_AT * 1500 - 1 for life in lives)


def test_a_token_file_that_is_replaced_in_time(service: Service, tmp_path: Path) -> None:
    path = write_secret(tmp_path / "token", service.issue("s.one", 600, 3600))
    host = Host(service, TokenFile(path=path))
    host.prove_for(3000)
    write_secret(path, service.issue("s.two", 600, 3600))
    host.prove_for(3000)
    assert Session.from_bytes(host.session or b"").token == "s.two"


def test_a_token_file_that_is_not_replaced(service: Service, tmp_path: Path) -> None:
    path = write_secret(tmp_path / "token", service.issue("s.one", 600, 3600))
    host = Host(service, TokenFile(path=path))
    host.prove_for(3590)
    service.now = 1000 + 3601
    for _ in range(3):
        with pytest.raises(KeyServiceError, match="has ended: put a new one there"):
            host.prove()
    write_secret(path, service.issue("s.two", 600, 3600))
    host.prove()


def test_a_token_that_cannot_be_renewed_is_used_to_its_end(service: Service, tmp_path: Path) -> None:
    path = write_secret(tmp_path / "token", service.issue("s.one", 600, None, renewable=False))
    host = Host(service, TokenFile(path=path))
    host.prove_for(590)
    service.now = 1000 + 601
    with pytest.raises(KeyServiceError, match="has ended"):
        host.prove()


def test_a_token_that_cannot_be_renewed_can_be_revoked(service: Service, tmp_path: Path) -> None:
    path = write_secret(tmp_path / "token", service.issue("s.one", 600, None, renewable=False))
    host = Host(service, TokenFile(path=path))
    host.prove()
    service.tokens["s.one"].revoked = True
    with pytest.raises(KeyDeniedError):
        host.prove()


def test_a_suspended_host(host: Host, service: Service) -> None:
    """CLOCK_BOOTTIME has run on: the token ended during the sleep, and that is no revocation."""
    host.prove()
    service.now += 100_000
    host.prove()
    assert len(service.logins) == 2


def test_commands_do_not_renew_a_fresh_login_each_time(service: Service, host: Host) -> None:
    provider = VaultProvider(
        "transit/models", connect(VaultSettings(auth=host.auth, address="http://127.0.0.1:1", insecure_http=True), service.clock)
    )
    paths: list[str] = []
    send = service.send

    def noted(method: str, path: str, headers: dict[str, str], body: bytes | None) -> Reply:
        paths.append(path)
        return send(method, path, headers, body)

    service.send = noted
    for _ in range(1000):
        assert provider.unwrap_key(KEYS.recipients[0], b"context") == DEK
        service.now += 20
    assert len([path for path in paths if "renew" in path]) < 100
    assert len(service.logins) == 20000 // 2880 + 1


def test_session_bytes_round_trip_and_bound() -> None:
    session = Session("s.t", "a", True, 60, 1.5, None, 7.25, "secret")
    assert Session.from_bytes(session.to_bytes()) == session
    assert "s.t" not in repr(session)
    assert "secret" not in repr(session)
    with pytest.raises(KeyServiceError, match="too long"):
        Session("x" * 2000, "a", True, 60, 1.5, None, None, "y" * 100).to_bytes()
