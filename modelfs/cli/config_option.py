"""The option --config: what a mount's configuration file says becomes the defaults of a command's options."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from modelfs.config.mount_file import MountFile
    from modelfs.keys.vault_settings import VaultSettings


def _read(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
        from modelfs.config.mount_file import read_mount_file  # only for who has a file

        found = read_mount_file(path)
        fields = {name: value for name, value in found if value is not None and name != "vault"}
        if "workers" in fields:
            fields["workers"] = str(fields["workers"])
        context.default_map = fields
        context.obj = found
    return path


Config = Annotated[
    Path | None,
    typer.Option("--config", metavar="FILE", callback=_read, is_eager=True, help="Options from a TOML file; the command line wins."),
]


def file_of(context: typer.Context) -> "MountFile":
    """The file that --config named; one that says nothing if there is none."""
    from modelfs.config.mount_file import MountFile

    found = context.obj
    return found if isinstance(found, MountFile) else MountFile()


def vault_of(context: typer.Context) -> "VaultSettings | None":
    """The Vault of the file that --config named."""
    return file_of(context).vault if context.obj is not None else None
