"""`modelfs doctor` against a real server: good and bad logins, keys, policies and certificates; and nothing secret in what it prints."""

import json
import os
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfs.doctor.check import Check
from modelfs.doctor.vault import check_vault, judge_skew, judge_state, judge_tls, judge_ttl
from modelfs.errors import ConfigError
from modelfs.keys.vault_session import Session
from modelfs.keys.vault_settings import AuthMethod, TokenFile
from modelfs.keys.vault_wire import Endpoint
from tests.helpers import REPOSITORY
from tests.leases.impostor import server_context
from tests.vault.impostor import Impostor
from tests.vault.server import DEK, Server, dev_vault, running_server, write_secret

KEK = "vault:transit/models"
HOST_POLICY = "modelfs-host"
ASK = 'path "sys/capabilities-self" { capabilities = ["update"] }\n'


def ask(server: Server, auth: AuthMethod, kek: str = KEK, **options: Any) -> dict[str, Check]:
    checks = check_vault(kek, server.settings(auth, **options))
    found = {check.name: check for check in checks}
    assert len(found) == len(checks)
    return found


def levels(checks: dict[str, Check]) -> dict[str, str]:
    """What is not ok."""
    return {name: check.level for name, check in checks.items() if check.level != "ok"}


def token_with(server: Server, *policies: str, **options: Any) -> TokenFile:
    fields = {"ttl": "48h", "no_default_policy": True, **options}
    answer = server.root.auth.token.create(policies=list(policies), **fields)
    return TokenFile(path=write_secret(server.directory / server.name("token"), answer["auth"]["client_token"]))


def test_the_shipped_host_policy_is_right(server: Server) -> None:
    checks = ask(server, token_with(server, HOST_POLICY))
    # The test server's certificate is good for two days.
    assert levels(checks) == {"vault-tls": "warning"}
    assert "TLS 1.3" in checks["vault-tls"].found
    assert "renewable" in checks["vault-ttl"].found
    assert "vault-clock" in checks


def test_a_login_leaves_the_host_able_to_log_in(server: Server) -> None:
    auth = server.approle(server.role(HOST_POLICY))
    for _ in range(2):
        assert levels(ask(server, auth)) == {"vault-tls": "warning"}
    rules = (REPOSITORY / "policies" / "host.hcl").read_text() + 'path "auth/token/revoke-self" { capabilities = ["update"] }'
    mark = server.audit_mark()
    ask(server, server.approle(server.role(server.policy(rules=rules))))
    assert server.paths(mark)[-1] == "auth/token/revoke-self"


def test_a_token_file_is_not_revoked_nor_prolonged(server: Server) -> None:
    auth = token_with(server, HOST_POLICY, ttl="1h")
    mark = server.audit_mark()
    ask(server, auth)
    assert "auth/token/revoke-self" not in server.paths(mark)
    client = server.vault.client(auth.path.read_text())
    assert 3500 < client.auth.token.lookup_self()["data"]["ttl"] <= 3600


def test_a_publisher_token_is_warned_of(server: Server) -> None:
    ask_too = server.policy(rules=ASK)
    checks = ask(server, token_with(server, "modelfs-publisher", ask_too))
    assert {checks["vault-key"].level, checks["vault-decrypt"].level} == {"error"}
    assert "wrap (a publisher's right)" in checks["vault-excess"].found
    checks = ask(server, token_with(server, "modelfs-publisher", "modelfs-publisher-reuse", ask_too))
    assert levels(checks) == {"vault-tls": "warning", "vault-excess": "warning"}
    assert "wrap (a publisher's right) (`update` on transit/encrypt/models)" in checks["vault-excess"].found


EXCESS = {
    "encrypt": ('path "transit/encrypt/models" { capabilities = ["create"] }', "wrap"),
    "other keys": ('path "transit/decrypt/*" { capabilities = ["update"] }', "unwrap with other keys"),
    "reading the key": ('path "transit/keys/models" { capabilities = ["read"] }', "read or change the key"),
    "exporting": ('path "transit/export/*" { capabilities = ["read"] }', "export the key"),
    "backup": ('path "transit/backup/models" { capabilities = ["read"] }', "back the key up"),
    "config": ('path "transit/keys/models/config" { capabilities = ["update"] }', "configure the key"),
    "tokens": ('path "auth/token/create" { capabilities = ["update"] }', "make tokens"),
    "policies": ('path "sys/policies/*" { capabilities = ["read"] }', "policies"),
    "sudo": ('path "sys/mounts" { capabilities = ["read", "sudo"] }', "sudo"),
}


@pytest.mark.parametrize("case", EXCESS)
def test_more_than_needed_is_warned_of(server: Server, case: str) -> None:
    rules, text = EXCESS[case]
    check = ask(server, token_with(server, HOST_POLICY, server.policy(rules=rules + "\n")))["vault-excess"]
    assert (check.level, text in check.found) == ("warning", True), check


def test_more_than_update_on_the_key_itself(server: Server) -> None:
    rules = 'path "transit/decrypt/models" { capabilities = ["update", "create", "delete"] }\n'
    check = ask(server, token_with(server, server.policy(rules=rules + ASK)))["vault-decrypt"]
    assert (check.level, "`create`, `delete` besides" in check.found) == ("warning", True)


def test_a_root_token_is_warned_of(server: Server) -> None:
    checks = ask(server, TokenFile(path=write_secret(server.directory / server.name("token"), server.vault.root_token)))
    assert levels(checks) == dict.fromkeys(("vault-tls", "vault-ttl", "vault-root", "vault-decrypt", "vault-excess"), "warning")
    assert "never ends" in checks["vault-ttl"].found


def test_a_policy_that_may_not_ask(server: Server) -> None:
    checks = ask(server, token_with(server, server.policy(rules='path "transit/decrypt/models" { capabilities = ["update"] }\n')))
    assert checks["vault-key"].level == "ok"
    assert levels(checks) == {"vault-tls": "warning", "vault-excess": "unknown"}


def test_no_permission_to_unwrap(server: Server) -> None:
    checks = ask(server, token_with(server, server.policy(rules=ASK)))
    assert {checks["vault-key"].level, checks["vault-decrypt"].level} == {"error"}


def test_a_revoked_token(server: Server) -> None:
    auth = token_with(server, HOST_POLICY)
    server.root.auth.token.revoke(auth.path.read_text())
    checks = ask(server, auth)
    assert checks["vault-server"].level == "ok"
    assert checks["vault-login"].level == "error"
    assert "not valid (any more)" in checks["vault-login"].found


def test_a_batch_token(server: Server) -> None:
    auth = token_with(server, HOST_POLICY, type="batch")
    checks = ask(server, auth)
    assert (checks["vault-token"].level, checks["vault-ttl"].level) == ("error", "warning")
    assert ask(server, auth, allow_batch_tokens=True)["vault-token"].level == "warning"


def test_lives_of_tokens(server: Server) -> None:
    short = ask(server, token_with(server, HOST_POLICY, ttl="60s"))["vault-ttl"]
    assert (short.level, "an outage may last no longer" in short.found) == ("warning", True)
    fixed = ask(server, token_with(server, HOST_POLICY, renewable=False))["vault-ttl"]
    assert (fixed.level, "not renewable" in fixed.found) == ("warning", True)
    capped = ask(server, token_with(server, HOST_POLICY, ttl="1h", explicit_max_ttl="2h"))["vault-ttl"]
    assert (capped.level, "ends for good" in capped.found) == ("warning", True)
    periodic = ask(server, token_with(server, HOST_POLICY, period="1h"))["vault-ttl"]
    assert (periodic.level, "periodic" in periodic.found) == ("ok", True)


def test_a_limited_number_of_uses(server: Server) -> None:
    check = ask(server, token_with(server, HOST_POLICY, num_uses=20))["vault-login"]
    assert (check.level, "token_num_uses" in check.found) == ("error", True)


@pytest.mark.parametrize(("kek", "text"), [("transit/nothing", "does not exist"), ("elsewhere/models", "no such secrets engine")])
def test_a_key_that_is_not_there(server: Server, kek: str, text: str) -> None:
    rules = f'path "{kek.replace("/", "/decrypt/")}" {{ capabilities = ["update"] }}\n'
    check = ask(server, token_with(server, server.policy(rules=rules + ASK)), f"vault:{kek}")["vault-key"]
    assert (check.level, text in check.found) == ("error", True), check


def test_asking_makes_no_key(server: Server) -> None:
    before = server.root.secrets.transit.list_keys()["data"]["keys"]
    ask(server, TokenFile(path=write_secret(server.directory / server.name("token"), server.vault.root_token)), "vault:transit/nothing")
    assert server.root.secrets.transit.list_keys()["data"]["keys"] == before


def test_a_wrapped_secret_id_is_not_used_up(server: Server) -> None:
    role = server.role(HOST_POLICY)
    auth = server.approle(role, secret_id_wrapped=True)
    wrapped = server.root.auth.approle.generate_secret_id(role, wrap_ttl="60s")["wrap_info"]["token"]
    write_secret(auth.secret_id_file, wrapped)
    assert ask(server, auth)["vault-login"].level == "unknown"
    assert server.root.sys.unwrap(wrapped)["data"]["secret_id"]


def test_a_missing_token_file(server: Server, tmp_path: Path) -> None:
    assert ask(server, TokenFile(path=tmp_path / "none"))["vault-login"].level == "error"


def test_the_wrong_ca(server: Server, tmp_path: Path) -> None:
    checks = ask(server, token_with(server, HOST_POLICY), ca_file=dev_vault.Authority(tmp_path, "another CA").path)
    assert list(checks) == ["vault-server"]
    assert checks["vault-server"].level == "error"
    assert "certificate is not trusted" in checks["vault-server"].found


def test_nobody_answers(server: Server) -> None:
    checks = ask(server, token_with(server, HOST_POLICY), address="https://127.0.0.1:1")
    assert levels(checks) == {"vault-server": "error"}


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
def test_an_old_tls(server: Server, tmp_path: Path) -> None:
    context = server_context(*dev_vault.Authority(tmp_path).issue("old", is_server=True))
    context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    impostor = Impostor(context, DEK)
    try:
        checks = ask(server, token_with(server, HOST_POLICY), address=impostor.address, ca_file=tmp_path / "ca.pem")
    finally:
        impostor.close()
    assert levels(checks) == {"vault-server": "error"}
    assert "it must speak TLS 1.2 or later" in checks["vault-server"].found
    assert impostor.seen == []


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Server]:
    """A server that a test may seal."""
    with running_server(tmp_path) as found:
        yield found


def test_a_sealed_server(own: Server) -> None:
    auth = token_with(own, HOST_POLICY)
    assert ask(own, auth)["vault-server"].level == "ok"
    own.root.sys.seal()
    checks = ask(own, auth)
    assert checks["vault-server"].level == "error"
    assert "is sealed" in checks["vault-server"].found
    assert "vault-login" not in checks


def test_states_that_a_single_server_does_not_have() -> None:
    endpoint = Endpoint("vault.example.com", 8200, ssl.create_default_context())
    expected = {200: "ok", 429: "warning", 473: "warning", 472: "error", 501: "error", 503: "error", 299: "unknown"}
    assert {status: judge_state(endpoint, status).level for status in expected} == expected


def test_certificates_and_clocks() -> None:
    assert judge_tls("TLSv1.3", 90 * 86400).level == "ok"
    assert judge_tls("TLSv1.3", 86400).level == "warning"
    assert "TLS 1.2" in judge_tls("TLSv1.2", 90 * 86400).found
    assert [judge_skew(seconds).level for seconds in (0, 59, -59, 61, -61)] == ["ok", "ok", "ok", "warning", "warning"]
    now = time.monotonic()
    session = Session("t", "a", True, 3600, now, now + 3600, now + 30 * 86400)
    assert judge_ttl(session, is_file=True).level == "ok"


def test_malformed_settings_are_errors_of_configuration(server: Server, tmp_path: Path) -> None:
    with pytest.raises(ConfigError):
        ask(server, TokenFile(path=tmp_path / "none"), "vault:nokey")
    with pytest.raises(ConfigError):
        ask(server, TokenFile(path=tmp_path / "none"), address="http://vault.example.com")


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "modelfs", "doctor", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VAULT_")}
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60, cwd=REPOSITORY, env=environment)


def options(server: Server, auth: TokenFile, state: Path) -> list[object]:
    address = ["--vault-address", server.vault.address, "--vault-ca-file", server.vault.ca.path]
    return ["--state-dir", state, "--kek", KEK, "--vault-auth", f"token:{auth.path}", *address]


@pytest.mark.fuse
def test_the_command(server: Server, tmp_path: Path) -> None:
    auth = token_with(server, HOST_POLICY)
    token = auth.path.read_text()
    good = run(*options(server, auth, tmp_path))
    assert (good.returncode, good.stderr) == (0, "")
    assert "ok      vault-decrypt: `update` on transit/decrypt/models, and nothing else there\n" in good.stdout
    as_json = run(*options(server, auth, tmp_path), "--json")
    checks = json.loads(as_json.stdout)["checks"]
    assert {"name", "level", "found", "advice"} == set(checks[0])
    assert len(checks) == len(good.stdout.splitlines())
    server.root.auth.token.revoke(token)
    bad = run(*options(server, auth, tmp_path))
    assert bad.returncode == 5
    assert "error   vault-login: " in bad.stdout
    (tmp_path / "file").write_text("")
    assert run("--state-dir", tmp_path / "file").returncode == 2
    for done in (good, as_json, bad):
        assert token not in done.stdout + done.stderr


@pytest.mark.fuse
def test_the_command_with_a_configuration_file(server: Server, tmp_path: Path) -> None:
    auth = token_with(server, HOST_POLICY, ttl="400s")
    config = tmp_path / "demo.toml"
    config.write_text(
        f'kek = "{KEK}"\nstate_dir = "state"\nttl = 1000\n[vault]\naddress = "{server.vault.address}"\nca_file = "{server.vault.ca.path}"\n'
        f'[vault.auth]\nmethod = "token"\npath = "{auth.path}"\n'
    )
    good = run("--config", config)
    assert (good.returncode, good.stderr) == (0, "")
    assert "ok      secrets: " in good.stdout
    assert "ok      vault-decrypt: " in good.stdout
    assert "-> give the role a token_ttl of 1000 s or more" in good.stdout, "the file's ttl is what a login must last"
    assert str(tmp_path / "state") in good.stdout
    other = run("--config", config, "--vault-address", "https://127.0.0.1:1")
    assert (other.returncode, "error   vault-server: " in other.stdout) == (5, True), "the command line wins"
    auth.path.chmod(0o644)
    loose = run("--config", config)
    assert loose.returncode == 2
    assert "error   secrets: " in loose.stdout
    assert "error   vault-login: " in loose.stdout
    for done in (good, other, loose):
        assert auth.path.read_text() not in done.stdout + done.stderr


@pytest.mark.fuse
def test_the_command_without_a_vault(tmp_path: Path) -> None:
    assert run("--state-dir", tmp_path).returncode == 0
    assert run("--state-dir", tmp_path, "--kek", "file:/nowhere/kek").returncode == 5
    lost = run("--vault-auth", "token:/nowhere")
    assert (lost.returncode, "add --kek" in lost.stderr) == (2, True)
    assert run("--kek", "odd").returncode == 2
