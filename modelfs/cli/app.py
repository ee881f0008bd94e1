"""The `modelfs` program: its commands and its exit codes."""

import atexit
import gc
import os
import signal
import sys
from importlib import import_module
from typing import Annotated, NoReturn, TextIO, cast

import typer

import modelfs
from modelfs.cli.output import Stdout, note
from modelfs.errors import ConfigError, ModelfsError, StoreError

EXIT_CODES = """Exit codes: 0 done, 1 a bug or an interrupt, 2 usage or configuration, 3 malformed sealed model, 4 verification failed,
5 key not available, 6 storage or source failed, 7 mount failed, 8 a process of the mount died."""

_COMMANDS = {
    "keygen": "keygen",
    "seal": "model",
    "verify": "model",
    "inspect": "model",
    "gc": "model",
    "recipients": "recipients",
    "rewrap": "recipients",
    "rotate": "rotate",
    "sign": "signing",
    "forget": "model",
    "mount": "mount",
    "status": "mounted",
    "lock": "mounted",
    "unlock": "mounted",
    "renew": "mounted",
    "unmount": "mounted",
    "pubkey": "pubkey",
    "doctor": "doctor",
    "install-service": "service",
    "after-stop": "after_stop",
}
"""In which module each command is: a command does not wait for the imports of the others."""


def make_app(words: list[str]) -> typer.Typer:
    """The program for a command line: with all its commands, or, if the first word is a command, with those of its module."""
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
    app.callback()(_root)
    wanted = _COMMANDS.get(words[0]) if words else None
    for name in [wanted] if wanted else dict.fromkeys(_COMMANDS.values()):
        import_module(f"modelfs.cli.{name}").register(app)
    return app


def _version(wanted: bool) -> None:
    if wanted:
        sys.stdout.write(f"modelfs {modelfs.__version__}\n")
        raise typer.Exit


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
    atexit.register(gc.freeze)  # the interpreter's last collections would walk over all that the system takes back at once
    gc.disable()  # imports make much that lives on: no collection while they do
    app = make_app(sys.argv[1:])
    gc.enable()
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, _interrupt)
    try:
        code = _run(app)
    finally:
        if signal.getsignal(signal.SIGINT) is _interrupt:  # else the command has decided
            signal.signal(signal.SIGINT, before)
    sys.exit(code)


def _run(app: typer.Typer) -> int | str | None:
    """The exit code of a command."""
    before, stdout = sys.stdout, Stdout(sys.stdout)
    sys.stdout = cast(TextIO, stdout)
    code: int | str | None = 0
    try:
        app()
    except SystemExit as done:
        code = done.code
    except ModelfsError as exc:
        note(str(exc))
        code = exc.exit_code
    except OSError as exc:
        if not _has_directory():
            note("the current directory has been removed: change to another one")
            code = ConfigError.exit_code
        elif exc is not stdout.error:
            raise
    finally:
        sys.stdout = before
    error = stdout.finish()
    if error is not None and not code:
        note(f"cannot write to stdout: {os.strerror(error.errno or 0)}; its answer is lost")
        code = StoreError.exit_code
    return code


def _has_directory() -> bool:
    try:
        os.getcwd()
    except FileNotFoundError:
        return False
    return True


def _interrupt(_number: int, _frame: object) -> NoReturn:
    """As an exception, so that whatever is open is cleared away."""
    note("interrupted")
    raise SystemExit(1)
