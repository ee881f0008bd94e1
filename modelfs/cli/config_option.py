"""The option --config: what a mount's configuration file says becomes the defaults of a command's options."""

from pathlib import Path
from typing import Annotated

import typer

from modelfs.config.mount_file import MountFile, read_mount_file


def _read(context: typer.Context, path: Path | None) -> Path | None:
    if path is not None:
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


def file_of(context: typer.Context) -> MountFile:
    """The file that --config named; one that says nothing if there is none."""
    found = context.obj
    return found if isinstance(found, MountFile) else MountFile()
