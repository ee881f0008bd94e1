"""The options that say where a Vault is and how to log in; shared by every command that takes a KEK or a signing key."""

import functools
import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelfs.cli.config_option import vault_of
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

_OPTIONS: dict[str, tuple[Any, Any]] = {
    "vault_address": (Address, ""),
    "vault_auth": (Auth, ""),
    "vault_namespace": (Namespace, ""),
    "vault_ca_file": (CaFile, None),
    "insecure_http": (InsecureHttp, False),
    "allow_batch_tokens": (AllowBatch, False),
}
"""Parameter -> type and default."""
_LOOKS_LIKE_TOKEN = re.compile(r"(hv[sbr]|[sbr])\.[A-Za-z0-9_-]{20,}")


def with_vault(command: Callable[..., None]) -> Callable[..., None]:
    """The command with all these options in place of its parameter `vault`.

    It is given what they come to, on top of the table of the file that --config names, if it has a `context`; see `read_settings`.
    """

    def run(**values: Any) -> None:
        options = {name: values.pop(name) for name in _OPTIONS}
        context = values.get("context")
        command(**values, vault=read_settings(**options, base=None if context is None else vault_of(context)))

    signature = inspect.signature(command)
    parameters: list[inspect.Parameter] = []
    for parameter in signature.parameters.values():
        if parameter.name == "vault":
            parameters += [parameter.replace(name=name, annotation=kind, default=default) for name, (kind, default) in _OPTIONS.items()]
        else:
            parameters.append(parameter)
    made: Any = functools.wraps(command)(run)
    made.__signature__ = signature.replace(parameters=parameters)
    made.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    wrapped: Callable[..., None] = made
    return wrapped


def read_settings(
    vault_address: str = "",
    vault_auth: str = "",
    vault_namespace: str = "",
    vault_ca_file: Path | None = None,
    insecure_http: bool = False,
    allow_batch_tokens: bool = False,
    base: "VaultSettings | None" = None,
) -> "VaultSettings | None":
    """Settings from options, on top of those of a configuration file; None when neither names a login, nor allows plain http.

    Raises:
        ConfigError: An option is malformed.
    """
    if not vault_auth and base is None and not insecure_http:
        return None
    from pydantic import ValidationError

    from modelfs.format.canonical import first_problem
    from modelfs.keys.vault_settings import VaultSettings  # only for who uses one: building these models takes a while

    if not vault_auth and base is None:
        return VaultSettings(insecure_http=True)
    given: dict[str, Any] = {
        "address": vault_address or None,
        "namespace": vault_namespace or None,
        "ca_file": vault_ca_file,
        "insecure_http": insecure_http or None,
        "allow_batch_tokens": allow_batch_tokens or None,
        "auth": _parse_auth(vault_auth) if vault_auth else None,
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
