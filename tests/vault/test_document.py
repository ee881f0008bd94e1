"""docs/VAULT.md sets up a Vault from nothing: all of its commands run, as one script, and do what the page says."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from modelfs.cli.vault_options import read_settings
from tests.helpers import REPOSITORY
from tests.vault.server import Server, dev_vault

TEXT = (REPOSITORY / "docs" / "VAULT.md").read_text()
BLOCKS = re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)


@pytest.fixture
def program(tmp_path: Path) -> Path:
    """A directory for PATH with `modelfs` and `vault`."""
    path = tmp_path / "bin"
    path.mkdir()
    (path / "modelfs").write_text(f'#!/bin/sh\nexec {sys.executable} -P -m modelfs "$@"\n')
    (path / "modelfs").chmod(0o755)
    (path / "vault").symlink_to(dev_vault.find_server())
    return path


def test_every_command_works(tmp_path: Path, program: Path) -> None:
    assert len(BLOCKS) >= 10, "the commands are gone"
    work = tmp_path / "work"
    work.mkdir()
    (work / "policies").symlink_to(REPOSITORY / "policies")
    (work / "llama").mkdir()
    (work / "llama" / "model.safetensors").write_bytes(os.urandom(300_000))
    ports = [str(dev_vault._free_port()) for _ in range(2)]
    commands = re.sub(r"\b820([01])\b", lambda found: ports[int(found[1])], "\n".join(BLOCKS))
    after = (
        'modelfs inspect sealed --trust release.pem.pub --kek vault:transit/models --vault-ca-file ca.pem --vault-auth "$HOST" && exit 9'
    )
    script = f"set -eux\ntrap 'kill $(jobs -p); wait' EXIT\n{commands}\n{after}\necho all done\n"
    env = {name: value for name, value in os.environ.items() if not name.startswith(("VAULT_", "BAO_"))}
    env |= {"PATH": f"{program}{os.pathsep}{env['PATH']}", "PYTHONPATH": str(REPOSITORY), "HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-c", script], cwd=work, env=env, capture_output=True, text=True, timeout=120, check=False)
    told = done.stdout + done.stderr
    assert done.returncode == 0, told + (work / "vault.log").read_text()[-3000:]
    assert done.stdout.endswith("all done\n")
    assert "sealed llama release 1: 1 files" in done.stdout
    assert "model.safetensors" in done.stdout
    assert "is wrapped anew by vault:transit/models, version 2" in done.stdout
    assert "the wrapped secret id in" in done.stderr, "the second use of a wrapped secret id was not refused"
    assert done.stdout.count("Success! Revoked token") == 1, "the host's login was not found and revoked"
    for name in ("publisher.secret-id", "host.secret-id", "operator.token", "ca.key"):
        assert (work / name).stat().st_mode & 0o077 == 0


def test_every_login_in_the_table_is_understood() -> None:
    table = TEXT[TEXT.index("## 7.") :]
    rows = re.findall(r"^\| .+? \| `([a-z]+:[^`]+)`(?:.*?`([a-z_]+=[A-Za-z]+)`)?", table, re.MULTILINE)
    assert [row[0].partition(":")[0] for row in rows] == ["token", "approle", "kubernetes", "jwt", "cert"]
    for auth, more in rows:
        for text in (auth, f"{auth},{more}" if more else auth, f"{auth},mount=some/where" if not auth.startswith("token") else auth):
            settings = read_settings("https://vault:8200", text)
            assert settings is not None
            assert settings.auth.method == auth.partition(":")[0]


def test_names_in_the_document_exist(program: Path) -> None:
    for link in re.findall(r"\]\((\.\./[^)]+)\)", TEXT):
        assert (REPOSITORY / "docs" / link).resolve().is_file(), link
    listed = {path.stem for path in (REPOSITORY / "policies").glob("*.hcl")}
    assert listed == {"publisher", "publisher-reuse", "host", "operator", "rewrapper"}
    assert all(f"/{name}.hcl" in TEXT for name in listed)
    help_text = "".join(
        subprocess.run(
            [program / "modelfs", *command.split(), "--help"],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "COLUMNS": "200", "PYTHONPATH": str(REPOSITORY)},
        ).stdout
        for command in ("seal", "inspect", "pubkey", "rewrap", "recipients add")
    )
    shown = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", TEXT))
    assert shown <= set(re.findall(r"--[a-z][a-z-]+", help_text)), "an option that modelfs does not have"


# The policies: what each may, and what not.

MAY = {
    ("publisher", "transit/encrypt/models"): True,
    ("publisher", "transit/decrypt/models"): True,  # with publisher-reuse, as dev-vault gives it
    ("publisher", "transit/sign/release"): True,
    ("publisher", "transit/encrypt/other"): False,
    ("publisher", "transit/keys/models/rotate"): False,
    ("host", "transit/decrypt/models"): True,
    ("host", "transit/encrypt/models"): False,
    ("host", "transit/sign/release"): False,
    ("host", "transit/rewrap/models"): False,
    ("host", "transit/decrypt/release"): False,
    ("host", "auth/token/revoke-accessor"): False,
    ("host", "auth/token/create"): False,
    ("rewrapper", "transit/rewrap/models"): True,
    ("rewrapper", "transit/decrypt/models"): False,
    ("rewrapper", "transit/encrypt/models"): False,
    ("rewrapper", "transit/keys/models/config"): False,
    ("publisher", "transit/rewrap/models"): False,
    ("operator", "transit/rewrap/models"): False,
    ("operator", "transit/decrypt/models"): False,
    ("operator", "transit/encrypt/models"): False,
    ("operator", "transit/sign/release"): False,
    ("operator", "transit/keys/models/rotate"): False,
    ("operator", "transit/keys/models/config"): True,
    ("operator", "auth/token/revoke-accessor"): True,
    ("operator", "auth/token/create"): False,
    ("operator", "auth/approle/role/modelfs-host/secret-id"): False,
    ("operator", "auth/approle/role/modelfs-host/secret-id-accessor/destroy"): True,
}


@pytest.mark.parametrize(("who", "path"), MAY)
def test_policies_allow_what_they_say_and_nothing_else(server: Server, who: str, path: str) -> None:
    token = (server.directory / f"{who}.token").read_text()
    capabilities = server.root.sys.get_capabilities(paths=[path], token=token)["data"][path]
    assert ("update" in capabilities) is MAY[who, path], capabilities
    assert not {"create", "root"} & set(capabilities)


def test_the_operator_changes_nothing_else_of_a_key(server: Server) -> None:
    operator = server.vault.client((server.directory / "operator.token").read_text())
    for option in ({"deletion_allowed": True}, {"exportable": True}, {"min_encryption_version": 1}):
        with pytest.raises(Exception, match="permission denied"):
            operator.secrets.transit.update_key_configuration("models", **option)
    operator.secrets.transit.update_key_configuration("models", min_decryption_version=1)


def test_publisher_alone_cannot_read(server: Server) -> None:
    answer = server.root.auth.token.create(policies=["modelfs-publisher"], no_default_policy=True)
    capabilities = server.root.sys.get_capabilities(paths=["transit/decrypt/models"], token=answer["auth"]["client_token"])
    assert capabilities["data"]["transit/decrypt/models"] == ["deny"]
