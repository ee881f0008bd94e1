"""`modelfs doctor`: what is wrong on this host, and with its access to keys."""

from dataclasses import asdict, replace
from pathlib import Path
from typing import Annotated

import typer

from modelfs.cli import vault_options
from modelfs.cli.config_option import Config, file_of, keks_of
from modelfs.cli.output import print_json, printable
from modelfs.cli.values import check_values, default_state_dir
from modelfs.config.mount_file import KekTable
from modelfs.doctor.check import Check, has_errors
from modelfs.errors import ConfigError, KeyAccessError
from modelfs.keys import Kek, open_kek


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog="Examples: modelfs doctor --config /etc/modelfs/llama.toml | "
        "modelfs doctor --kek vault:transit/models --vault-address https://vault:8200 --vault-auth token:/run/modelfs/token"
    )(doctor)


def doctor(
    context: typer.Context,
    kek: Annotated[
        list[str],
        typer.Option(
            "--kek", metavar="URI", default_factory=list, show_default=False, help="KEK of this host: also check that it can be used."
        ),
    ],
    state_dir: Annotated[Path | None, typer.Option("--state-dir", help="Where the host remembers releases.")] = None,
    vault_address: vault_options.Address = "",
    vault_auth: vault_options.Auth = "",
    vault_namespace: vault_options.Namespace = "",
    vault_ca_file: vault_options.CaFile = None,
    insecure_http: vault_options.InsecureHttp = False,
    allow_batch_tokens: vault_options.AllowBatch = False,
    config: Config = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Check this host and, with --kek, its access to the key; with --config all that a mount's file names.

    Exit code 2: the host or the file must be mended; 5: the key cannot be had.
    """
    from modelfs.doctor.host import Host, check_host

    file, state = file_of(context), (state_dir or default_state_dir()).absolute()
    settings = vault_options.read_settings(
        vault_address, vault_auth, vault_namespace, vault_ca_file, insecure_http, allow_batch_tokens, file.vault
    )
    if not kek and (vault_auth or vault_address):
        raise ConfigError("the Vault's options say nothing without a key: add --kek, for example --kek vault:transit/models")
    lease_ttl_s = check_values(file).ttl_s
    keks = keks_of(context, kek, settings) if kek else ()
    keys = [
        replace(check, found=f"{each.name}: {check.found}") if len(keks) > 1 else check
        for each in keks
        for check in _check_key(each, lease_ttl_s, file.model)
    ]
    host = check_host(Host(state))
    if config is not None:
        from modelfs.doctor.configured import Configured, check_configured

        named = [KekTable(uri=each.uri, vault=each.vault) for each in keks]
        host += check_configured(Configured(file.model_copy(update={"kek": named or None, "vault": settings}), state))
    checks = [*host, *keys]
    if json:
        print_json({"checks": [asdict(check) for check in checks]})
    else:
        for check in checks:
            advice = f" -> {check.advice}" if check.advice else ""
            typer.echo(f"{check.level:<8}{check.name}: {printable(check.found + advice)}")
    if has_errors(host):
        raise typer.Exit(ConfigError.exit_code)
    if has_errors(keys):
        raise typer.Exit(KeyAccessError.exit_code)


def _check_key(kek: Kek, lease_ttl_s: float, model: str | None) -> list[Check]:
    scheme = kek.uri.partition(":")[0]
    if scheme not in ("vault", "awskms", "gcpkms"):
        return [_check_file(kek.uri)]
    kek.open()  # a missing package or a malformed option is an error of its own
    match scheme:
        case "vault":
            from modelfs.doctor.vault import check_vault

            return check_vault(kek.uri, kek.vault, lease_ttl_s=lease_ttl_s)
        case "awskms":
            from modelfs.doctor.aws import check_aws

            return check_aws(kek.uri, kek.vault is not None and kek.vault.insecure_http, model)
        case _:
            from modelfs.doctor.gcp import check_gcp

            return check_gcp(kek.uri)


def _check_file(uri: str) -> Check:
    try:
        open_kek(uri)
    except KeyAccessError as exc:
        return Check("kek", "error", str(exc), "mend the file, or name another with --kek")
    return Check("kek", "ok", f"{uri} can be read")
