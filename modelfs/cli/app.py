"""The `modelfs` program: its commands and its exit codes."""

import os
import sys
from typing import Annotated

import typer

import modelfs
from modelfs.cli import after_stop, doctor, keygen, model, mount, mounted, pubkey, recipients, rotate, service, signing
from modelfs.cli.output import fail
from modelfs.errors import ModelfsError

EXIT_CODES = """Exit codes: 0 done, 1 a bug or an interrupt, 2 usage or configuration, 3 malformed sealed model, 4 verification failed,
5 key not available, 6 storage or source failed, 7 mount failed, 8 a process of the mount died."""

app = typer.Typer(
    name="modelfs",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Seal AI models (encrypt and sign) and mount them as read-only plaintext that can be revoked at once.",
    epilog=EXIT_CODES,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(keygen.app, name="keygen")
model.register(app)
recipients.register(app)
rotate.register(app)
signing.register(app)
mount.register(app)
mounted.register(app)
pubkey.register(app)
doctor.register(app)
service.register(app)
after_stop.register(app)


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"modelfs {modelfs.__version__}\n")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")] = False,
) -> None:
    pass


def main() -> None:
    """Run the program: errors become one sentence and an exit code, never a traceback."""
    for fd, name in enumerate(("stdin", "stdout", "stderr")):  # a closed one would let a secret file take its number
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(fd, "w" if fd else "r"))
    try:
        app()
    except ModelfsError as exc:
        try:
            fail(exc)
        except typer.Exit as done:
            sys.exit(done.exit_code)
