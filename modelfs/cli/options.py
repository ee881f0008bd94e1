"""Options and arguments that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
# parser=Path: typer's own way with a path is to stat it, which asks the mount; its store may hang.
Mountpoint = Annotated[Path, typer.Argument(metavar="MOUNTPOINT", parser=Path, help="An empty directory, or where a model is mounted.")]
Trust = Annotated[
    list[Path],
    typer.Option(
        "--trust", metavar="PUB", default_factory=list, show_default=False, help="A publisher's public key (PEM); may be repeated."
    ),
]
Threshold = Annotated[int, typer.Option("--threshold", help="How many distinct trusted keys must have signed.")]
