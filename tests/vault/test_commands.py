"""`seal`, `inspect` and `pubkey` with a Vault, as a publisher types them; and scripts/dev-vault."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from modelfs.cli.vault_options import read_settings
from modelfs.errors import ConfigError
from modelfs.keys.vault_settings import AppRole, Kubernetes, VaultSettings
from tests.helpers import REPOSITORY, write_tree
from tests.vault.server import DEK, Server, manifest, write_secret

ENV = {name: value for name, value in os.environ.items() if not name.startswith("VAULT_")} | {"PYTHONPATH": str(REPOSITORY)}


def modelfs(*args: object, env: dict[str, str] | None = None) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "modelfs", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env={**ENV, **(env or {})})


def options(server: Server, who: str) -> list[object]:
    return [
        "--vault-address",
        server.vault.address,
        "--vault-ca-file",
        server.vault.ca.path,
        "--vault-auth",
        f"token:{server.directory}/{who}.token",
    ]


def seal_command(source: Path, destination: Path, release: int = 1) -> list[object]:
    what = ["seal", source, destination, "--model", "demo", "--release", release]
    return [*what, "--kek", "vault:transit/models", "--sign-key", "hv:release/1"]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "src", {"model.bin": os.urandom(50_000), "config.json": b"{}"})


@pytest.fixture
def public(server: Server, tmp_path: Path) -> Path:
    path = tmp_path / "release.pem.pub"
    done = modelfs("pubkey", "hv:release/1", "--out", path, "--json", *options(server, "publisher"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"key": "hv:release/1", "public": str(path)}
    assert modelfs("pubkey", "hv:release/1", "--out", path, *options(server, "publisher")).returncode == 2, "it was overwritten"
    return path


def test_seal_inspect_and_reuse(server: Server, source: Path, public: Path, tmp_path: Path) -> None:
    sealed = tmp_path / "sealed"
    done = modelfs(*seal_command(source, sealed), *options(server, "publisher"))
    assert done.returncode == 0, done.stderr
    assert modelfs("verify", sealed, "--trust", public).returncode == 0
    shown = modelfs("inspect", sealed, "--trust", public, "--kek", "vault:transit/models", "--json", *options(server, "host"))
    assert shown.returncode == 0, shown.stderr
    answer = json.loads(shown.stdout)
    assert answer["keks"] == ["vault:transit/models"]
    assert {entry["path"] for entry in answer["entries"]} == {"", "config.json", "model.bin"}
    (source / "config.json").write_bytes(b"{ }")
    again = modelfs(*seal_command(source, sealed, 2), "--trust", public, "--json", *options(server, "publisher"))
    assert again.returncode == 0, again.stderr
    report = json.loads(again.stdout)
    assert (report["encrypted"], report["reused"]) == (1, 1)
    stored = b"".join(path.read_bytes() for path in sealed.rglob("*") if path.is_file())
    for secret in (server.vault.address, str(server.directory), (server.directory / "publisher.token").read_text()):
        assert secret.encode() not in stored


def test_a_publisher_who_may_not_decrypt_encrypts_anew(server: Server, source: Path, public: Path, tmp_path: Path) -> None:
    token = server.root.auth.token.create(policies=["modelfs-publisher"], ttl="1h", no_default_policy=True)["auth"]["client_token"]
    path = write_secret(server.directory / server.name("weak"), token)
    vault = [*options(server, "publisher")[:-1], f"token:{path}"]
    sealed = tmp_path / "sealed"
    assert modelfs(*seal_command(source, sealed), *vault).returncode == 0
    again = modelfs(*seal_command(source, sealed, 2), "--trust", public, "--json", *vault)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["encrypted"] == 2
    assert "no blob of release 1 is reused: the KEK does not open it" in again.stderr


def test_an_outage_does_not_cost_the_reuse(server: Server, source: Path, public: Path, tmp_path: Path, keys_dir: object) -> None:
    """The service is not there when the release before is opened: better to stop than to encrypt all anew."""
    from tests.helpers import KeySet

    assert isinstance(keys_dir, KeySet)
    sealed = tmp_path / "sealed"
    assert modelfs(*seal_command(source, sealed), *options(server, "publisher")).returncode == 0
    gone = ["--vault-address", "https://127.0.0.1:1", "--vault-auth", f"token:{server.directory}/publisher.token"]
    command = seal_command(source, sealed, 2)
    command[command.index("hv:release/1")] = keys_dir.signing
    done = modelfs(*command, "--trust", public, *gone)
    assert done.returncode == 5
    assert "Connection refused" in done.stderr


def test_missing_permission_and_wrong_options_are_one_sentence(server: Server, source: Path, tmp_path: Path) -> None:
    sealed = tmp_path / "sealed"
    host = modelfs(*seal_command(source, sealed), *options(server, "host"))
    assert (host.returncode, host.stderr.count("\n")) == (5, 1)
    assert "`read` on transit/keys/release" in host.stderr
    cases = {
        "--vault-auth": options(server, "publisher")[:-2],
        "VAULT_ADDR": ["--vault-auth", f"token:{server.directory}/publisher.token"],
        "path of a file": ["--vault-auth", "token:s.0123456789abcdefghijklmn"],
        "malformed": ["--vault-auth", "magic:x=y"],
        "plain http": ["--vault-address", "http://127.0.0.1:1", "--vault-auth", "token:x"],
        "does not name a key": None,
    }
    for text, given in cases.items():
        command = seal_command(source, sealed)
        if given is None:
            command[command.index("vault:transit/models")] = "vault:models"
        done = modelfs(*command, *(given or options(server, "publisher")))
        assert (done.returncode, text in done.stderr, done.stderr.count("\n")) == (2, True, 1), done.stderr
        assert "0123456789abcdefghijklmn" not in done.stderr


def test_the_address_comes_from_the_environment_if_not_given(server: Server, tmp_path: Path) -> None:
    given = ["pubkey", "hv:release/1", "--out", tmp_path / "pub", *options(server, "publisher")[2:]]
    assert modelfs(*given, env={"VAULT_ADDR": server.vault.address}).returncode == 0
    other = modelfs(
        "pubkey", "hv:release/1", "--out", tmp_path / "pub2", *options(server, "publisher"), env={"VAULT_ADDR": "https://127.0.0.1:1"}
    )
    assert other.returncode == 0, "the option must win"


def test_hvac_is_needed_only_for_a_vault() -> None:
    program = """
import sys
sys.modules["hvac"] = None
from modelfs.cli.app import make_app
from modelfs.cli.vault_options import read_settings
from modelfs.errors import ConfigError
from modelfs.keys import open_kek
make_app([])
try:
    open_kek("vault:transit/models", read_settings("https://x", "token:y"))
except ConfigError as exc:
    print(exc)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=ENV, check=True)
    assert done.stdout == "this kind of key needs the Python package hvac: install modelfs[vault]\n"


def test_a_proof_in_a_process_of_its_own_takes_milliseconds(server: Server) -> None:
    """As control will do it: the module is there before the fork, the login is made after it."""
    keys = server.wrapped()
    provider = server.provider(server.approle(server.role(server.policy())))
    reading, writing = os.pipe()
    began = time.monotonic()
    if (pid := os.fork()) == 0:
        try:
            grant = provider.prove(keys, manifest(), None, False, 1.0)
            os.write(writing, grant.dek)
        finally:
            os._exit(0)
    os.waitpid(pid, 0)
    assert time.monotonic() - began < 1.0
    assert os.read(reading, 100) == DEK
    assert provider.connection.session is None, "control has a session"
    os.close(reading)
    os.close(writing)


# Options and settings.


def test_options_become_settings(tmp_path: Path) -> None:
    given = read_settings(
        "https://v:1", "approle:role_id_file=a,secret_id_file=b,secret_id_wrapped=true,mount=x/y", "team", Path("ca"), True, True
    )
    assert given is not None
    auth = AppRole(role_id_file=Path("a"), secret_id_file=Path("b"), secret_id_wrapped=True, mount="x/y")
    assert given.auth == auth
    assert auth.role_id_file == Path.cwd() / "a", "a daemon changes its directory"
    assert (given.namespace, given.ca_file, given.insecure_http, given.allow_batch_tokens) == ("team", Path.cwd() / "ca", True, True)
    assert read_settings("https://v:1", "") is None
    assert VaultSettings(auth=Kubernetes(role="r")).auth.mount == "kubernetes"
    assert hash(given) == hash(given.model_copy())


@pytest.mark.parametrize(
    "auth",
    [
        "token:",
        "token",
        "approle:",
        "approle:role_id_file=a",
        "approle:role_id_file=a,secret_id_file=b,extra=c",
        "approle:role_id_file=a,secret_id_file=b,secret_id_wrapped=yes",
        "jwt:role=r,token_file=t,mount=../sys",
        "jwt:role=r,token_file=t,mount=/x",
        "jwt:role=a\nb,token_file=t",
        "cert:cert_file=a",
        "kubernetes:",
        "kubernetes:role",
        ":x",
    ],
)
def test_malformed_logins(auth: str) -> None:
    with pytest.raises(ConfigError):
        read_settings("https://v:1", auth)


def test_malformed_namespaces() -> None:
    for namespace in ("a b", "a\nX-Vault-Token: x", "é"):
        with pytest.raises(ConfigError):
            read_settings("https://v:1", "token:x", namespace)


# scripts/dev-vault.


def dev_vault_command(*args: str) -> list[str]:
    return [sys.executable, str(REPOSITORY / "scripts" / "dev_vault.py"), *args]


def test_dev_vault_runs_a_command_and_leaves_nothing(tmp_path: Path) -> None:
    status = 'VAULT_TOKEN=$(cat "$DEV_VAULT/root.token") "$DEV_VAULT/bin/vault" status'
    command = f'test -s "$DEV_VAULT/host.token" && {status} && exit 3'
    env = {**ENV, "TMPDIR": str(tmp_path)}
    done = subprocess.run(dev_vault_command("--run", "sh", "-c", command), capture_output=True, text=True, env=env, timeout=60, check=False)
    assert done.returncode == 3, done.stderr
    assert "Sealed          false" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_dev_vault_stops_when_told(tmp_path: Path, number: signal.Signals) -> None:
    process = subprocess.Popen(dev_vault_command(), stdout=subprocess.PIPE, text=True, env={**ENV, "TMPDIR": str(tmp_path)})
    assert process.stdout is not None
    lines = [process.stdout.readline() for _ in range(4)]
    assert [line.partition("=")[0] for line in lines[:3]] == ["export VAULT_ADDR", "export VAULT_CACERT", "export DEV_VAULT"]
    process.send_signal(number)
    rest = process.stdout.read()
    assert process.wait(20) == 0
    assert "hv:release/1" in rest
    assert list(tmp_path.iterdir()) == []
