"""The configuration file of a mount: TOML, every option of `modelfs mount` under its own name, an unknown key is an error."""

import difflib
import os
import stat
import tomllib
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError

from modelfs.errors import ConfigError
from modelfs.format.canonical import StrictModel, first_problem
from modelfs.format.limits import KIB
from modelfs.keys.vault_settings import AUTH_METHODS, VaultSettings

MAX_SIZE = 16 * KIB
"""Many times what every option takes. tomllib takes time that grows with the square of a dotted key's length: a second for this much."""

PathText = Annotated[str, Field(min_length=1)]


class KekTable(StrictModel):
    """A KEK with a Vault of its own, for a host whose KEKs are at several."""

    uri: PathText
    vault: VaultSettings | None = None
    """None: the file's table `vault`."""


class MountFile(StrictModel):
    """What a file may say; None: not said. Names are the options', with `_` for `-`."""

    sealed: PathText | None = None
    mountpoint: PathText | None = None
    model: str | None = None
    kek: str | list[str | KekTable] | None = None
    """One URI, or several in order of preference, each as a URI or as a table `[[kek]]`."""
    trust: list[PathText] | None = None
    threshold: int | None = None
    minimum_release: int | None = None
    workers: int | str | None = None
    allow_other: bool | None = None
    uid: int | None = None
    gid: int | None = None
    mode: str | None = None
    foreground: bool | None = None
    wait: bool | None = None
    state_dir: PathText | None = None
    log: PathText | None = None
    log_level: str | None = None
    audit: PathText | None = None
    audit_required: bool | None = None
    renew_every: float | None = None
    ttl: float | None = None
    proof_timeout: float | None = None
    vault: VaultSettings | None = None
    """Where the Vault is and how to log in: a table, with the table `auth`."""

    @property
    def keks(self) -> list[tuple[str, VaultSettings | None]]:
        """Each KEK's URI, and the settings of its own table, in order; none if the file names no KEK."""
        named = [self.kek] if isinstance(self.kek, str) else self.kek or []
        return [(each, None) if isinstance(each, str) else (each.uri, each.vault) for each in named]


def read_mount_file(path: Path) -> MountFile:
    """Read a configuration file. Relative paths in it count from the file's own directory.

    Raises:
        ConfigError: Missing, writable by others, no TOML, an unknown key (with a suggestion), a value of the wrong kind.
    """
    try:
        # Not blocking: a pipe that nobody writes would hold up the command for ever.
        with open(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb") as file:
            info = os.fstat(file.fileno())
            if not stat.S_ISREG(info.st_mode):
                raise ConfigError(f"the configuration {path} is not a regular file")
            if info.st_mode & 0o022:
                raise ConfigError(f"the configuration {path} can be written by group or others: chmod go-w it")
            data = file.read(MAX_SIZE + 1)
        if len(data) > MAX_SIZE:
            raise ConfigError(f"the configuration {path} is longer than {MAX_SIZE} bytes: it is another kind of file")
        fields = tomllib.loads(data.decode())
    except OSError as exc:
        raise ConfigError(f"cannot read the configuration {path}: {exc.strerror}") from exc
    except RecursionError:
        raise ConfigError(f"the configuration {path} is nested too deeply: it is another kind of file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        raise ConfigError(f"the configuration {path} is no TOML: {exc}") from None
    _check_text(path, fields, "")
    _check_keys(path, fields, "", list(MountFile.model_fields))
    _check_vault(path, _table(fields, "vault"), "vault.")
    for table in _kek_tables(fields):
        _check_keys(path, table, "kek.", list(KekTable.model_fields))
        _check_vault(path, _table(table, "vault"), "kek.vault.")
    try:
        return MountFile.model_validate(_resolve(fields, path.absolute().parent))
    except ValidationError as exc:
        raise ConfigError(f"the configuration {path} is wrong: {first_problem(exc)}") from None


def _check_text(path: Path, value: Any, key: str) -> None:
    """TOML may write NUL; no path, name or URI has one, and the system's calls take none."""
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(f"the configuration {path} has a NUL character in {key!r}: take it out")
    if isinstance(value, list):
        for each in value:
            _check_text(path, each, key)
    if isinstance(value, dict):
        for name, each in value.items():
            _check_text(path, each, f"{key}.{name}".lstrip("."))


def _table(fields: dict[str, Any], key: str) -> dict[str, Any]:
    """A table inside a table, as far as it is one."""
    found = fields.get(key)
    return found if isinstance(found, dict) else {}


def _kek_tables(fields: dict[str, Any]) -> list[dict[str, Any]]:
    named = fields.get("kek")
    return [each for each in named if isinstance(each, dict)] if isinstance(named, list) else []


def _check_vault(path: Path, vault: dict[str, Any], where: str) -> None:
    _check_keys(path, vault, where, list(VaultSettings.model_fields))
    auth = _table(vault, "auth")
    method = auth.get("method")
    model = AUTH_METHODS.get(method) if isinstance(method, str) else None
    if model is not None:
        _check_keys(path, auth, f"{where}auth.", list(model.model_fields))


def _check_keys(path: Path, fields: dict[str, Any], where: str, known: list[str]) -> None:
    for key in fields:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f": did you mean {where + near[0]!r}?" if near else f": known are {', '.join(known)}"
            raise ConfigError(f"the configuration {path} has an unknown key {where + key!r}{hint}")


_PATHS = ("sealed", "mountpoint", "state_dir", "log", "audit", "trust")


def _resolve(fields: dict[str, Any], base: Path) -> dict[str, Any]:
    """Make relative paths absolute, so that a service's working directory does not matter. What is no path stays, to be refused."""

    def absolute(value: Any) -> Any:
        if isinstance(value, list):
            return [absolute(each) for each in value]
        return str(base / value) if isinstance(value, str) and value else value

    def resolve_kek(kek: Any) -> Any:
        if isinstance(kek, list):
            return [resolve_kek(each) for each in kek]
        if isinstance(kek, dict):
            return {**kek, "uri": resolve_kek(kek.get("uri")), **({"vault": resolve_vault(kek["vault"])} if "vault" in kek else {})}
        if isinstance(kek, str) and kek.startswith("file:") and kek != "file:":
            return f"file:{base / kek.removeprefix('file:')}"
        return kek

    def resolve_vault(vault: Any) -> Any:
        if not isinstance(vault, dict):
            return vault
        found = {key: absolute(value) if key == "ca_file" else value for key, value in vault.items()}
        if isinstance(auth := vault.get("auth"), dict):
            found["auth"] = {key: absolute(value) if key == "path" or key.endswith("_file") else value for key, value in auth.items()}
        return found

    resolved = {key: absolute(value) if key in _PATHS else value for key, value in fields.items()}
    for key, resolve in (("kek", resolve_kek), ("vault", resolve_vault)):
        if key in fields:
            resolved[key] = resolve(fields[key])
    return resolved
