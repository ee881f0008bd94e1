"""Credentials: temporary ones are used to near their end, and nothing else is kept."""

import json
import stat
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from modelfs.errors import KeyAccessError, KeyDeniedError, KeyServiceError
from modelfs.format.keysfile import keys_file, recipient
from modelfs.keys.aws_login import FULL_LIFE_S, MAX_SESSION_SIZE, Login, login_from
from modelfs.keys.interface import Grant
from tests.aws.emulators import ACCESS_KEY, SECRET_KEY, Emulator, credentials_file, environment, provider, use
from tests.aws.impostor import KEY_ARN, Impostor, error
from tests.leases.impostor import Request, http
from tests.vault.server import CONTEXT, DEK, manifest

KEYS = keys_file([recipient("awskms", KEY_ARN, "", b"wrapped")])


@pytest.fixture
def impostor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Impostor]:
    made = Impostor(None, DEK)
    use(monkeypatch, environment(made.address, tmp_path / "none"))
    yield made
    made.close()


class Helper:
    """A credential_process: a program that the SDK runs for temporary credentials."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer, self.calls = directory / "answer", directory / "calls"
        script = directory / "helper"
        script.write_text(f"#!{sys.executable} -S\nopen({str(self.calls)!r}, 'a').write('x')\nprint(open({str(self.answer)!r}).read())\n")
        script.chmod(script.stat().st_mode | stat.S_IXUSR)
        config = directory / "config"
        config.write_text(f"[default]\ncredential_process = {script}\n")
        monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
        self.give("one", 3600)

    def give(self, name: str, life_s: float) -> None:
        ends = datetime.fromtimestamp(time.time() + life_s, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        fields = {"AccessKeyId": f"ASIA{name.upper()}", "SecretAccessKey": f"secret of {name}", "SessionToken": f"token of {name}"}
        self.answer.write_text(json.dumps({"Version": 1, "Expiration": ends, **fields}))

    @property
    def count(self) -> int:
        return len(self.calls.read_text()) if self.calls.exists() else 0


@pytest.fixture
def helper(impostor: Impostor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Helper:
    return Helper(tmp_path, monkeypatch)


def prove(session: bytes | None, kept: list[bytes] | None = None, now: float | None = None) -> Grant:
    kept = [] if kept is None else kept
    clock = time.time if now is None else lambda: now
    return provider(KEY_ARN, clock).prove(KEYS, manifest(), session, True, 20.0, kept.append)


def tokens(impostor: Impostor) -> list[str]:
    return [request.headers.get("x-amz-security-token", "") for request in impostor.requests]


def test_temporary_credentials_go_from_proof_to_proof(impostor: Impostor, helper: Helper) -> None:
    kept: list[bytes] = []
    first = prove(None, kept)
    assert first.session is not None
    assert kept == [first.session]
    assert first.ttl_s is not None
    assert 3500 < first.ttl_s <= 3600
    helper.give("two", 3600)
    for _ in range(3):
        assert prove(first.session).session == first.session
    assert helper.count == 1
    assert set(tokens(impostor)) == {"token of one"}


def test_near_their_end_others_are_asked_for(impostor: Impostor, helper: Helper) -> None:
    session = prove(None).session
    helper.give("two", 3600)
    later = prove(session, now=time.time() + 3600 - FULL_LIFE_S + 10)
    assert (helper.count, tokens(impostor)[-1]) == (2, "token of two")
    assert login_from(later.session) != login_from(session)


def test_an_outage_of_the_login_costs_nothing_before_their_end(impostor: Impostor, helper: Helper) -> None:
    session = prove(None).session
    helper.answer.write_text("no JSON")
    almost = prove(session, now=time.time() + 3500)
    assert almost.session == session
    assert almost.ttl_s is not None
    assert almost.ttl_s <= 101
    with pytest.raises(KeyServiceError, match="no credentials"):
        prove(session, now=time.time() + 3601)


def test_a_slow_login_leaves_time_for_the_proof(impostor: Impostor, helper: Helper, tmp_path: Path) -> None:
    session = prove(None).session
    script = tmp_path / "helper"
    script.write_text("#!/bin/sh\nsleep 60\n")
    started = time.monotonic()
    grant = provider(KEY_ARN, lambda: time.time() + 3500).prove(KEYS, manifest(), session, True, 6.0)
    assert grant.session == session
    assert 2.5 < time.monotonic() - started < 6.0


def test_credentials_without_an_end_are_found_again_each_time(impostor: Impostor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = credentials_file(tmp_path / "credentials")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(path))
    kept: list[bytes] = []
    grant = prove(None, kept)
    assert (grant.session, grant.ttl_s, kept) == (None, None, [b""])
    credentials_file(path, "AKIAOTHER", "other")
    prove(grant.session)
    assert "AKIAOTHER" in impostor.requests[-1].headers["authorization"]


def test_what_the_service_calls_expired_is_dropped(impostor: Impostor, helper: Helper) -> None:
    """A host whose clock is behind would use them for ever."""
    session = prove(None).session
    kept: list[bytes] = []
    impostor.overrides["Decrypt"] = error("ExpiredTokenException")
    with pytest.raises(KeyServiceError, match="have ended"):
        prove(session, kept)
    assert kept[-1] == b""
    impostor.overrides.clear()
    prove(None)
    assert helper.count == 2


def test_a_revoked_session_is_a_denial_and_no_reason_to_log_in_anew(impostor: Impostor, helper: Helper) -> None:
    """Ending the sessions of a role is AccessDenied for those from before; a new login would undo it."""
    session = prove(None).session
    kept: list[bytes] = []
    impostor.overrides["Decrypt"] = error("AccessDeniedException", "with an explicit deny in an identity-based policy")
    with pytest.raises(KeyDeniedError):
        prove(session, kept)
    assert (kept, helper.count) == ([session], 1)


def test_what_is_too_long_is_not_kept() -> None:
    login = Login("ASIA", "s", "t" * MAX_SESSION_SIZE, time.time() + 60)
    assert login.to_bytes() is None
    short = Login("ASIA", "s", "t" * 1500, 1.5)
    assert login_from(short.to_bytes()) == short
    assert "sss" not in repr(Login("ASIA", "sss", "ttt", None))


# Roles, by the STS of moto.


@pytest.fixture
def role(moto: Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    config = tmp_path / "config"
    config.write_text("[default]\nrole_arn = arn:aws:iam::123456789012:role/modelfs-host\nsource_profile = source\n")
    credentials = tmp_path / "credentials"
    credentials.write_text(f"[source]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n")
    use(monkeypatch, {**environment(moto.address, credentials), "AWS_CONFIG_FILE": str(config), "AWS_ENDPOINT_URL_STS": moto.address})
    return credentials


def test_a_role_is_assumed_once(moto: Emulator, role: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = moto.key()
    keys = keys_file([provider(key).wrap_key(DEK, CONTEXT)])
    grant = provider(key).prove(keys, manifest(), None, True, 20)
    assert grant.dek == DEK
    assert grant.session is not None
    assert grant.ttl_s is not None
    assert 0 < grant.ttl_s <= 3600
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://127.0.0.1:1")
    assert provider(key).prove(keys, manifest(), grant.session, True, 20).dek == DEK
    with pytest.raises(KeyServiceError):
        provider(key).prove(keys, manifest(), None, True, 20)


def test_a_role_that_may_not_be_assumed_is_no_denial(role: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is the login that is refused, and not the key: what is held is used to its end."""
    refuses = _Refusing(None, b"")
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", refuses.address)
    try:
        with pytest.raises(KeyServiceError, match="AssumeRole was refused"):
            provider(KEY_ARN).prove(KEYS, manifest(), None, True, 20)
        assert len(refuses.requests) == 1, "a proof is one attempt"
    finally:
        refuses.close()


class _Refusing(Impostor):
    def what_of(self, _request: Request) -> str:
        return "AssumeRole"

    def usual(self, _request: Request) -> bytes:
        text = b"<ErrorResponse><Error><Type>Sender</Type><Code>AccessDenied</Code><Message>no</Message></Error></ErrorResponse>"
        return http(403, text, "text/xml", x_amzn_RequestId="1")


def test_credentials_are_not_fetched_over_plain_http_elsewhere(role: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_STS", "http://sts.example.com")
    with pytest.raises(KeyAccessError, match="plain http to another host"):
        provider(KEY_ARN).prove(KEYS, manifest(), None, True, 20)
