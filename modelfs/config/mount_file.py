"""The configuration file of a mount: TOML, every option of `modelfs mount` under its own name, an unknown key is an error."""

import difflib
import os
import tomllib
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from modelfs.errors import ConfigError
from modelfs.format.canonical import StrictModel, first_problem
from modelfs.format.limits import MIB
from modelfs.keys.vault_settings import VaultSettings


class MountFile(StrictModel):
    """What a file may say; None: not said. Names are the options', with `_` for `-`."""

    sealed: str | None = None
    mountpoint: str | None = None
    model: str | None = None
    kek: str | None = None
    trust: list[str] | None = None
    threshold: int | None = None
    minimum_release: int | None = None
    workers: int | str | None = None
    allow_other: bool | None = None
    uid: int | None = None
    gid: int | None = None
    mode: str | None = None
    foreground: bool | None = None
    wait: bool | None = None
    state_dir: str | None = None
    log: str | None = None
    log_level: str | None = None
    audit: str | None = None
    audit_required: bool | None = None
    renew_every: float | None = Field(default=None, strict=False)
    ttl: float | None = Field(default=None, strict=False)
    proof_timeout: float | None = Field(default=None, strict=False)
    vault: VaultSettings | None = None
    """Where the Vault is and how to log in: a table, with the table `auth`."""


def read_mount_file(path: Path) -> MountFile:
    """Read a configuration file. Relative paths in it count from the file's own directory.

    Raises:
        ConfigError: Missing, writable by others, no TOML, an unknown key (with a suggestion), a value of the wrong kind.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_mode & 0o022:
                raise ConfigError(f"the configuration {path} can be written by group or others: chmod go-w it")
            data = file.read(MIB)
        fields = tomllib.loads(data.decode())
    except OSError as exc:
        raise ConfigError(f"cannot read the configuration {path}: {exc.strerror}") from exc
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"the configuration {path} is no TOML: {exc}") from None
    for key in fields:
        if key not in MountFile.model_fields:
            near = difflib.get_close_matches(key, MountFile.model_fields, 1)
            hint = f": did you mean {near[0]!r}?" if near else f": known are {', '.join(MountFile.model_fields)}"
            raise ConfigError(f"the configuration {path} has an unknown key {key!r}{hint}")
    try:
        return MountFile.model_validate(_resolve(fields, path.absolute().parent))
    except ValidationError as exc:
        raise ConfigError(f"the configuration {path} is wrong: {first_problem(exc)}") from None


_PATHS = ("sealed", "mountpoint", "state_dir", "log", "audit")


def _resolve(fields: dict[str, Any], base: Path) -> dict[str, Any]:
    """Make relative paths absolute, so that a service's working directory does not matter."""
    resolved = dict(fields)
    for key in _PATHS:
        if isinstance(fields.get(key), str):
            resolved[key] = str(base / fields[key])
    if isinstance(fields.get("trust"), list):
        resolved["trust"] = [str(base / each) if isinstance(each, str) else each for each in fields["trust"]]
    kek = fields.get("kek")
    if isinstance(kek, str) and kek.startswith("file:"):
        resolved["kek"] = f"file:{base / kek.removeprefix('file:')}"
    return resolved
