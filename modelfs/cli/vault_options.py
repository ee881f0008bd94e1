"""The options that say where a Vault is and how to log in; shared by every command that takes a KEK or a signing key."""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelfs.errors import ConfigError

if TYPE_CHECKING:
    from modelfs.keys.vault_settings import VaultSettings

Address = Annotated[
    str, typer.Option("--vault-address", metavar="URL", help="The Vault, for vault: and hv: keys, https://HOST:PORT. [default: VAULT_ADDR]")
]
Auth = Annotated[
    str,
    typer.Option(
        "--vault-auth",
        metavar="METHOD:...",
        help="How to log in: token:FILE, or approle, kubernetes, jwt or cert with NAME=VALUE,... (docs/VAULT.md).",
    ),
]
Namespace = Annotated[str, typer.Option("--vault-namespace", metavar="NAME", help="Namespace of the Vault.")]
CaFile = Annotated[
    Path | None, typer.Option("--vault-ca-file", metavar="PEM", help="The only CAs the Vault may have. [default: the system's]")
]
InsecureHttp = Annotated[bool, typer.Option("--insecure-http", help="Allow plain http to a key service at a loopback address.")]
AllowBatch = Annotated[bool, typer.Option("--allow-batch-tokens", help="Allow logins that nobody can revoke.")]

_LOOKS_LIKE_TOKEN = re.compile(r"(hv[sbr]|[sbr])\.[A-Za-z0-9_-]{20,}")


def read_settings(
    address: str,
    auth: str,
    namespace: str = "",
    ca_file: Path | None = None,
    insecure_http: bool = False,
    allow_batch: bool = False,
    base: "VaultSettings | None" = None,
) -> "VaultSettings | None":
    """Settings from options, on top of those of a configuration file; None when neither names a login, nor allows plain http.

    Raises:
        ConfigError: An option is malformed.
    """
    if not auth and base is None and not insecure_http:
        return None
    from pydantic import ValidationError

    from modelfs.format.canonical import first_problem
    from modelfs.keys.vault_settings import VaultSettings  # only for who uses one: building these models takes a while

    if not auth and base is None:
        return VaultSettings(insecure_http=True)
    given: dict[str, Any] = {
        "address": address or None,
        "namespace": namespace or None,
        "ca_file": ca_file,
        "insecure_http": insecure_http or None,
        "allow_batch_tokens": allow_batch or None,
        "auth": _parse_auth(auth) if auth else None,
    }
    fields = base.model_dump() if base is not None else {}
    try:
        return VaultSettings.model_validate({**fields, **{name: value for name, value in given.items() if value is not None}})
    except ValidationError as exc:
        raise ConfigError(f"the Vault's options are malformed: {first_problem(exc)}") from None


def _parse_auth(text: str) -> dict[str, Any]:
    method, _colon, rest = text.partition(":")
    if method == "token" and "=" not in rest:
        if _LOOKS_LIKE_TOKEN.fullmatch(rest):
            raise ConfigError("--vault-auth token:FILE takes the path of a file that holds the token, never the token itself")
        rest = f"path={rest}"
    values: dict[str, Any] = {"method": method}
    for part in filter(None, rest.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            raise ConfigError("--vault-auth is METHOD:NAME=VALUE,... for example approle:role_id_file=PATH,secret_id_file=PATH")
        values[name] = {"true": True, "false": False}.get(value, value)
    return values
