"""The configuration file: every option has its key, an unknown one is an error with a suggestion, secrets are only paths."""

import inspect
from pathlib import Path

import pytest

from modelfs.cli import mount as cli
from modelfs.config.mount_file import MountFile, read_mount_file
from modelfs.errors import ConfigError
from modelfs.keys.vault_settings import AppRole

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


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_mount_file(tmp_path / "none.toml")


def test_every_option_has_its_key() -> None:
    options = set(inspect.signature(cli.mount).parameters) - {"context", "config", "json"}
    in_vault = {name for name in options if name.startswith("vault_") or name in ("insecure_http", "allow_batch_tokens")}
    assert in_vault, "the vault options are options of mount"
    assert options - in_vault | {"vault"} == set(MountFile.model_fields)
