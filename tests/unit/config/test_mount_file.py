"""The configuration file: every option has its key, an unknown one is an error with a suggestion, secrets are only paths."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import typer

from modelfs.cli.app import main, make_app
from modelfs.config.mount_file import MountFile, read_mount_file
from modelfs.control.lease import LeasePolicy
from modelfs.crypto.signing import generate_signing_key
from modelfs.errors import ConfigError
from modelfs.format.limits import KIB
from modelfs.keys import Kek, list_keks
from modelfs.keys.vault_settings import AppRole, TokenFile, VaultSettings
from modelfs.mount.start import MountRequest
from modelfs.mount.view import Appearance

GOOD = """
sealed = "sealed"
mountpoint = "/models/llama"
model = "llama"
kek = "vault:transit/models"
trust = ["release.pem.pub", "/etc/other.pub"]
workers = 2
ttl = 600
[vault]
address = "https://vault.example:8200"
[vault.auth]
method = "approle"
role_id_file = "/etc/modelfs/role-id"
secret_id_file = "/etc/modelfs/secret-id"
"""


def write(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o644)
    return path


def test_a_good_file(tmp_path: Path) -> None:
    found = read_mount_file(write(tmp_path / "llama.toml", GOOD))
    assert found.sealed == str(tmp_path / "sealed"), "relative to the file"
    assert found.mountpoint == "/models/llama"
    assert found.trust == [str(tmp_path / "release.pem.pub"), "/etc/other.pub"]
    assert (found.workers, found.ttl, found.threshold) == (2, 600, None)
    assert found.vault is not None
    assert isinstance(found.vault.auth, AppRole)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('mountpiont = "x"', "did you mean 'mountpoint'"),
        ('zzz = "x"', "known are sealed"),
        ("model = 3", "model: "),
        ("threshold = true", "threshold: "),
        ('trust = "release.pem.pub"', "trust: "),
        ("model =", "is no TOML"),
        ('model = "a"\nmodel = "b"', "is no TOML"),
        ('[vault.auth]\nmethod = "approle"\nrole_id_file = "a"\nsecret_id_file = "b"\nsecret_id = "s3cret"', "vault"),
        ('[vault]\naddress = "https://x"', "vault.auth"),
        ('[vault]\nadress = "https://x"', "did you mean 'vault.address'"),
        ('[vault.auth]\nmethod = "approle"\nrole_id = "s3cret"', "did you mean 'vault.auth.role_id_file'"),
        ('[vault.auth]\nmethod = "token"\ntoken = "s3cret"', "known are method, path"),
        ('vault = "s3cret"', "vault: "),
        ('[vault]\nauth = "s3cret"', "vault.auth: "),
        ("[vault.auth]\nmethod = []", "vault.auth: "),
        ('[vault.auth]\nmethod = "token"\npath = ""', "not the path of a file"),
        ('audit = ""', "audit: "),
        ("a = " + 5000 * "[" + 5000 * "]", "nested too deeply"),
        ("#" * (16 * KIB + 1), "is longer than"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_mount_file(write(tmp_path / "llama.toml", text))
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "s3cret" not in str(caught.value)


def test_a_file_that_others_may_write_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "llama.toml", GOOD)
    path.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod"):
        read_mount_file(path)


def test_paths_of_the_login_count_from_the_file_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    text = '[vault]\nca_file = "ca.pem"\n[vault.auth]\nmethod = "approle"\nrole_id_file = "role-id"\nsecret_id_file = "/etc/secret-id"'
    found = read_mount_file(write(tmp_path / "llama.toml", text)).vault
    assert found is not None
    assert found.ca_file == tmp_path / "ca.pem"
    assert found.auth == AppRole(role_id_file=tmp_path / "role-id", secret_id_file=Path("/etc/secret-id"))


def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "llama.toml")
    with pytest.raises(ConfigError, match="not a regular file"):
        read_mount_file(tmp_path / "llama.toml")


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_mount_file(tmp_path / "none.toml")


IN_VAULT = {
    "--vault-address": "address",
    "--vault-auth": "auth",
    "--vault-namespace": "namespace",
    "--vault-ca-file": "ca_file",
    "--insecure-http": "insecure_http",
    "--allow-batch-tokens": "allow_batch_tokens",
}
NOT_IN_A_FILE = {"--config", "--json", "--help", "-h"}
"""Where the file is, and how this one command prints."""


def flags_and_arguments() -> dict[str, set[str]]:
    """The parameters of `modelfs mount` as its parser has them: name -> what is typed (of an argument its own name)."""
    command = typer.main.get_command(make_app([])).commands["mount"]
    parameters = command.get_params(typer.Context(command))
    assert len(parameters) > 25, "the options are gone"
    return {each.name: {*each.opts, *each.secondary_opts} for each in parameters}


def test_every_flag_has_its_key_and_every_key_its_flag() -> None:
    keys = set()
    for name, typed in flags_and_arguments().items():
        if typed <= NOT_IN_A_FILE:
            continue
        (word,) = typed
        if word in IN_VAULT:
            keys.add(f"vault.{IN_VAULT[word]}")
            continue
        assert word.removeprefix("--").replace("-", "_") == name, "the key is the flag's own name"
        keys.add(name)
    assert keys == (set(MountFile.model_fields) - {"vault"}) | {f"vault.{name}" for name in VaultSettings.model_fields}


def test_every_key_reaches_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """A value that no default has, for every key, is what `modelfs mount` asks for; and what the command line says comes first."""
    for name in ("key", "key2"):
        generate_signing_key(tmp_path / name)
    said = {
        "sealed": "/s", "mountpoint": "/m", "model": "llama", "kek": "file:/k", "trust": [f"{tmp_path}/key.pub", f"{tmp_path}/key2.pub"],
        "threshold": 2, "minimum_release": 7, "workers": 3, "allow_other": True, "uid": 11, "gid": 12, "mode": "410", "foreground": True,
        "state_dir": "/st", "log": str(tmp_path / "log"), "log_level": "error", "audit": "/a", "audit_required": True, "renew_every": 5,
        "ttl": 50, "proof_timeout": 2, "wait": True,
    }  # fmt: skip
    assert set(said) == set(MountFile.model_fields) - {"vault"}
    lines = [f"{name} = {json.dumps(value)}" for name, value in said.items()]
    vault = ['address = "https://a"', 'namespace = "n"', 'ca_file = "/ca"', "insecure_http = true", "allow_batch_tokens = true"]
    config = write(tmp_path / "all.toml", "\n".join([*lines, "[vault]", *vault, "[vault.auth]", 'method = "token"', 'path = "/t"']))
    asked: list[MountRequest] = []
    monkeypatch.setattr(
        "modelfs.mount.start.run_mount", lambda order, _announce, _notifier: asked.append(order) or (_ for _ in ()).throw(SystemExit(0))
    )
    for more in ([], ["--minimum-release", "9", "--vault-address", "https://b", "--vault-auth", "token:/u"]):
        monkeypatch.setattr(sys, "argv", ["modelfs", "mount", "--config", str(config), *more])
        with pytest.raises(SystemExit) as caught:
            main()
        assert caught.value.code == 0, capfd.readouterr().err
    first, second = asked
    login = TokenFile(path=Path("/t"))
    settings = {"address": "https://a", "namespace": "n", "ca_file": Path("/ca"), "insecure_http": True, "allow_batch_tokens": True}
    assert first == MountRequest(
        sealed=Path("/s"), mountpoint=Path("/m"), model="llama", keks=list_keks([("file:/k", VaultSettings(auth=login, **settings))]),
        trusted=first.trusted, minimum_release=7, workers=3,
        allow_other=True, appearance=Appearance(11, 12, 0o410), state_dir=Path("/st"), audit=Path("/a"), audit_required=True,
        lease=LeasePolicy(5, 50, 2),
    )  # fmt: skip
    assert (len(first.trusted.keys), first.trusted.threshold, (tmp_path / "log").exists()) == (2, 2, True)
    settings["address"] = "https://b"
    vault_now = VaultSettings(auth=TokenFile(path=Path("/u")), **settings)
    assert second == replace(first, minimum_release=9, keks=list_keks([("file:/k", vault_now)]), trusted=second.trusted), (
        "the command line wins, key by key"
    )


def test_a_time_is_a_number_and_no_truth_value(tmp_path: Path) -> None:
    path = tmp_path / "mount.toml"
    path.write_text("ttl = 60\nrenew_every = 1.5\n")
    path.chmod(0o600)
    assert (read_mount_file(path).ttl, read_mount_file(path).renew_every) == (60.0, 1.5)
    path.write_text("ttl = true\n")
    with pytest.raises(ConfigError, match="ttl"):
        read_mount_file(path)


SEVERAL = """
kek = ["vault:transit/models", "file:kek"]
[vault]
address = "https://vault.example:8200"
[vault.auth]
method = "token"
path = "token"
"""
TWO_VAULTS = """
[[kek]]
uri = "vault:transit/models"
[kek.vault]
address = "https://eu.example:8200"
ca_file = "eu.pem"
[kek.vault.auth]
method = "token"
path = "eu.token"

[[kek]]
uri = "vault:transit/models"
[kek.vault]
address = "https://us.example:8200"
[kek.vault.auth]
method = "token"
path = "/us.token"

[[kek]]
uri = "file:kek"
"""


def keks_asked_for(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], config: Path, *more: str) -> tuple[Kek, ...]:
    asked: list[MountRequest] = []
    monkeypatch.setattr(
        "modelfs.mount.start.run_mount", lambda order, _announce, _notifier: asked.append(order) or (_ for _ in ()).throw(SystemExit(0))
    )
    generate_signing_key(config.with_suffix(".key"))
    what = ["/s", "/m", "--model", "demo", "--trust", f"{config.with_suffix('.key')}.pub", "--foreground"]
    monkeypatch.setattr(sys, "argv", ["modelfs", "mount", *what, "--config", str(config), *more])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 0, capfd.readouterr().err
    return asked[0].keks


def test_several_keks_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    keks = keks_asked_for(monkeypatch, capfd, write(tmp_path / "demo.toml", SEVERAL))
    vault = VaultSettings(address="https://vault.example:8200", auth=TokenFile(path=tmp_path / "token"))
    assert keks == (Kek("vault:transit/models", vault, "vault:transit/models"), Kek(f"file:{tmp_path}/kek", vault, f"file:{tmp_path}/kek"))


def test_two_vaults_have_tables_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    keks = keks_asked_for(monkeypatch, capfd, write(tmp_path / "demo.toml", TWO_VAULTS))
    eu = VaultSettings(address="https://eu.example:8200", ca_file=tmp_path / "eu.pem", auth=TokenFile(path=tmp_path / "eu.token"))
    us = VaultSettings(address="https://us.example:8200", auth=TokenFile(path=Path("/us.token")))
    assert keks == (
        Kek("vault:transit/models", eu, "vault:transit/models at https://eu.example:8200"),
        Kek("vault:transit/models", us, "vault:transit/models at https://us.example:8200"),
        Kek(f"file:{tmp_path}/kek", None, f"file:{tmp_path}/kek"),
    )


def test_the_command_line_s_keks_replace_the_file_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    given = ["--kek", "file:/b", "--kek", "vault:t/a", "--vault-address", "https://c", "--vault-auth", "token:/t"]
    keks = keks_asked_for(monkeypatch, capfd, write(tmp_path / "demo.toml", TWO_VAULTS), *given)
    vault = VaultSettings(address="https://c", auth=TokenFile(path=Path("/t")))
    assert keks == (Kek("file:/b", vault, "file:/b"), Kek("vault:t/a", vault, "vault:t/a"))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('[[kek]]\nurl = "file:a"', "did you mean 'kek.uri'"),
        ('[[kek]]\nuri = "vault:a/b"\n[kek.vault]\nadress = "x"', "did you mean 'kek.vault.address'"),
        ('[[kek]]\nuri = "vault:a/b"\n[kek.vault.auth]\nmethod = "token"\ntoken = "s3cret"', "known are method, path"),
        ("[[kek]]\nuri = 3", "kek"),
        ('[[kek]]\nvault = "s3cret"', "kek"),
        ("kek = 3", "kek"),
        ("kek = [3]", "kek"),
    ],
)
def test_what_is_wrong_with_a_kek_is_named(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_mount_file(write(tmp_path / "demo.toml", text))
    assert says in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "line", ['mountpoint = "no\\u0000mnt"', 'kek = "file:k\\u0000ek"', 'kek = [{uri = "file:\\u0000"}]', 'trust = ["a", "\\u0000"]']
)
def test_a_nul_is_named(tmp_path: Path, line: str) -> None:
    path = tmp_path / "x.toml"
    path.write_text(line + "\n")
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=r"has a NUL character in '(mountpoint|kek|kek\.uri|trust)'"):
        read_mount_file(path)
