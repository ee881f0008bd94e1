"""The option --config: what a mount's configuration file says becomes the defaults of a command's options."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelfs.keys import Kek, list_keks

if TYPE_CHECKING:
    from modelfs.config.mount_file import MountFile
    from modelfs.keys.vault_settings import VaultSettings


def _read(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        from modelfs.config.mount_file import read_mount_file  # only for who has a file

        found = read_mount_file(path)
        fields = {name: value for name, value in found if value is not None and name != "vault"}
        if "kek" in fields:
            fields["kek"] = [uri for uri, _ in found.keks]
        if "workers" in fields:
            fields["workers"] = str(fields["workers"])
        context.default_map = fields
        context.obj = found
    return path


Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", callback=_read, is_eager=True, help="Options from a TOML file; the command line wins."),
]


def keks_of(context: typer.Context, uris: Sequence[str], settings: "VaultSettings | None") -> tuple[Kek, ...]:
    """The KEKs that a command is to use, in order of preference.

    Args:
        context: The command's, with its options --kek and --config.
        uris: What --kek says, or the file.
        settings: Of the command line, on top of the file's table `vault`: for all but those that have a table of their own.

    Raises:
        ConfigError: None, too many, one twice, or a malformed one.
    """
    source = context.get_parameter_source("kek")
    is_from_file = source is not None and source.name == "DEFAULT_MAP"
    named = file_of(context).keks if is_from_file else [(uri, None) for uri in uris]
    return list_keks([(absolute_kek(uri), own or settings) for uri, own in named])


def absolute_kek(uri: str) -> str:
    """A KEK's URI that does not depend on the working directory, which a daemon changes."""
    scheme, colon, reference = uri.partition(":")
    return f"file:{os.path.abspath(reference)}" if scheme == "file" and colon and reference else uri


def file_of(context: typer.Context) -> "MountFile":
    """The file that --config named; one that says nothing if there is none."""
    from modelfs.config.mount_file import MountFile

    found = context.obj
    return found if isinstance(found, MountFile) else MountFile()


def vault_of(context: typer.Context) -> "VaultSettings | None":
    """The Vault of the file that --config named."""
    return file_of(context).vault if context.obj is not None else None
