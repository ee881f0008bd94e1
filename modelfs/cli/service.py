"""`modelfs install-service`: the systemd units, put in place and taken away."""

import contextlib
import hashlib
import importlib.resources
import os
import re
import shutil
import subprocess
import sys
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Annotated

import typer

from modelfs.cli.output import note
from modelfs.errors import ConfigError

_NAME = "modelfs"
UNIT, TARGET, CONF = f"{_NAME}@.service", f"{_NAME}.target", f"{_NAME}.conf"
PLACES = {
    UNIT: f"usr/local/lib/systemd/system/{UNIT}",
    TARGET: f"usr/local/lib/systemd/system/{TARGET}",
    f"{_NAME}.tmpfiles.conf": f"usr/local/lib/tmpfiles.d/{CONF}",
    f"{_NAME}.sysusers.conf": f"usr/local/lib/sysusers.d/{CONF}",
}
"""Below /usr/local, so that a distribution's own files and an operator's in /etc stay apart from these; /etc wins."""

PROGRAM = "/usr/bin/modelfs"
"""As the unit names it in the repository."""
SEAL = re.compile(r"# Installed by modelfs; sha256 of what follows: ([0-9a-f]{64})\n")


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(epilog="Example: modelfs install-service && systemctl enable --now modelfs@llama")(install_service)


def install_service(
    root: Annotated[Path, typer.Option("--root", metavar="DIR", help="Below DIR instead of /, for an image; nothing is started.")] = Path(
        "/"
    ),
    remove: Annotated[bool, typer.Option("--remove", help="Take everything away again; configuration and state stay.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace or remove also files that somebody has changed.")] = False,
) -> None:
    """Install the systemd unit modelfs@.service with its target, user and directories, or remove them."""
    if os.geteuid() != 0:
        raise ConfigError("installing a service needs root: run it with sudo")
    if not root.is_dir():
        raise ConfigError(f"--root {root} is not a directory: name the root of a system")
    changed = [str(path) for path in map(root.joinpath, PLACES.values()) if _is_changed(path)]
    if changed and not force:
        verb = "removed" if remove else "replaced"
        raise ConfigError(
            f"{' and '.join(changed)} was changed by somebody and is not {verb}: move the change to a drop-in, or use --force"
        )
    for path in changed:
        note(f"{path} was changed by somebody: {'removing' if remove else 'replacing'} it as --force says")
    if remove:
        _remove(root)
    else:
        _install(root)


def _install(root: Path) -> None:
    program = _program(root)
    units: Traversable = importlib.resources.files(__package__) / "units"
    for name, place in PLACES.items():
        text = (units / name).read_text().replace(PROGRAM, program)
        _write(root / place, f"# Installed by modelfs; sha256 of what follows: {_digest(text)}\n{text}")
        typer.echo(str(root / place))
    where = [] if root == Path("/") else [f"--root={root}"]
    _run("systemd-sysusers", *where, CONF)
    _run("systemd-tmpfiles", *where, "--create", CONF)
    _run("systemctl", *where, "enable", "--quiet", TARGET)
    _reload(root)


def _remove(root: Path) -> None:
    busy = _busy(root)
    if busy:
        raise ConfigError(f"still running or enabled: {' '.join(busy)}: first systemctl disable --now {' '.join(busy)}")
    if (root / PLACES[TARGET]).exists():
        where = [] if root == Path("/") else [f"--root={root}"]
        _run("systemctl", *where, "disable", "--quiet", *([] if where else ["--now"]), TARGET)
    for place in PLACES.values():
        with contextlib.suppress(FileNotFoundError):
            (root / place).unlink()
            typer.echo(f"removed {root / place}")
    _reload(root)


def _is_changed(path: Path) -> bool:
    """Whether a file is there that is not, byte for byte, what some version of this program has written."""
    try:
        text = path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return False
    except OSError as exc:
        raise ConfigError(f"cannot read {path}: {exc.strerror}") from exc
    seal = SEAL.match(text)
    return seal is None or _digest(text[seal.end() :]) != seal[1]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.with_name(f".{path.name}.new")
        new.write_text(text)
        new.chmod(0o644)
        new.replace(path)
    except OSError as exc:
        raise ConfigError(f"cannot write {path}: {exc.strerror}") from exc


def _program(root: Path) -> str:
    """The command that runs this installation, as the system below `root` will see it."""
    called = Path(os.path.abspath(sys.argv[0]))
    if called.is_relative_to(root.absolute()):
        called = Path("/") / called.relative_to(root.absolute())
    program = str(called) if called.name == "modelfs" else f"{sys.executable} -m modelfs"
    if not re.fullmatch(r"[\w@./+: -]+", program) or (" " in program.removesuffix(" -m modelfs")):
        raise ConfigError(f"systemd cannot start {program!r}: install modelfs where the path has letters, digits and @._+:- only")
    return program


def _busy(root: Path) -> list[str]:
    """Instances that are running, or are started at the next boot."""
    found = {path.name for path in (root / "etc/systemd/system").glob("*/modelfs@*.service")}
    if _is_running_system(root):
        command = [
            "systemctl",
            "list-units",
            "--plain",
            "--no-legend",
            "--state=active,activating,reloading,deactivating",
            "modelfs@*.service",
        ]
        listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        found |= {line.split()[0] for line in listed.splitlines()}
    return sorted(found)


def _is_running_system(root: Path) -> bool:
    return root == Path("/") and Path("/run/systemd/system").is_dir()


def _reload(root: Path) -> None:
    if _is_running_system(root):
        _run("systemctl", "daemon-reload")


def _run(*command: str) -> None:
    if shutil.which(command[0]) is None:
        note(f"{command[0]} is missing: run `{' '.join(command)}` where systemd is")
        return
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise ConfigError(f"`{' '.join(command)}` failed: {' '.join((done.stderr or done.stdout).split())[:300]}")
