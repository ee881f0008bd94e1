"""`modelfs pubkey`: the public half of a signing key that stays in a service or device."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelfs.cli.output import print_json
from modelfs.cli.signing import SERVICE_KEYS, PinFile
from modelfs.cli.vault_options import with_vault

if TYPE_CHECKING:
    from modelfs.keys.vault_settings import VaultSettings


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog="Example: modelfs pubkey hv:release/1 --out release.pem.pub --vault-address https://vault:8200 --vault-auth token:FILE"
    )(pubkey)


@with_vault
def pubkey(
    uri: Annotated[str, typer.Argument(metavar="KEY", help=f"A signing key: {SERVICE_KEYS}.")],
    out: Annotated[Path, typer.Option("--out", metavar="PUB", help="Where the public key goes (PEM, for --trust).")],
    pin_file: PinFile = None,
    vault: "VaultSettings | None" = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Write the public key of a signing key in a service or device, for hosts and auditors to trust."""
    from modelfs.crypto.keyfiles import create_private
    from modelfs.keys import export_public_key

    create_private(out, export_public_key(uri, vault, pin_file), mode=0o644)
    if json:
        print_json({"key": uri, "public": str(out)})
    else:
        typer.echo(f"public key of {uri}: {out} (give it to --trust)")
