"""`modelfs keygen`: signing keys and KEK files, never overwritten."""

from pathlib import Path
from typing import Annotated

import typer

from modelfs.cli.output import print_json

_keygen = typer.Typer(no_args_is_help=True, help="Make keys. Nothing is ever overwritten.", rich_markup_mode=None)


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.add_typer(_keygen, name="keygen")


@_keygen.command("signing", epilog="Example: modelfs keygen signing release.pem")
def signing(
    path: Annotated[Path, typer.Argument(help="Where the private key goes (0600); the public key goes to PATH.pub.")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make an Ed25519 signing key for publishing: PATH (PEM, private) and PATH.pub."""
    from modelfs.crypto.signing import generate_signing_key

    keyid = generate_signing_key(path)
    if json:
        print_json({"private": str(path), "public": f"{path}.pub", "keyid": keyid})
    else:
        typer.echo(f"private key {path} (keep it secret)\npublic key  {path}.pub (give it to --trust)\nkeyid       {keyid}")


@_keygen.command("kek", epilog="Example: modelfs keygen kek /etc/modelfs/kek")
def kek(
    path: Annotated[Path, typer.Argument(help="Where the 32 random bytes go (0600).")],
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Make a key encryption key for --kek file:PATH."""
    from modelfs.keys.file import generate_kek

    name = generate_kek(path)
    if json:
        print_json({"path": str(path), "kek": name})
    else:
        typer.echo(f"KEK {path} (keep it secret; use it as --kek file:{path}); sealed models call it {name}")
