"""Running programs, and having the ones that are compared: as root they are installed, otherwise what is missing is said."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from modelfs.control.process import libc

REPOSITORY = Path(__file__).resolve().parents[2]
MIB = 1 << 20
_PR_SET_PDEATHSIG = 1

PACKAGES = {
    "gocryptfs": "gocryptfs",
    "securefs": "securefs",
    "rclone": "rclone",
    "encfs": "encfs",
    "cryfs": "cryfs",
    "fio": "fio",
    "gcc": "gcc",
    "fusermount3": "fuse3",
}
"""Program and the Debian package that has it."""


class BenchError(Exception):
    """Something cannot be measured; one sentence."""


def environment() -> dict[str, str]:
    """For every Python process that is started: this benchmark and this modelfs."""
    return {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'scripts'}{os.pathsep}{REPOSITORY}"}


def run(*command: object, input: str | None = None, timeout: float = 1800, **variables: str) -> str:
    """Run a command to its end; what it printed.

    Raises:
        BenchError: It is missing or failed; with the end of what it said.
    """
    words = [str(word) for word in command]
    env = {**environment(), **variables}
    try:
        done = subprocess.run(words, input=input or "", capture_output=True, text=True, timeout=timeout, check=False, env=env)
    except FileNotFoundError:
        raise BenchError(f"{words[0]} is missing") from None
    except subprocess.TimeoutExpired:
        raise BenchError(f"{words[0]} did not end within {timeout:g} s") from None
    if done.returncode != 0:
        raise BenchError(f"{' '.join(words[:4])} failed: {last_words(done.stderr or done.stdout)}")
    return done.stdout


def last_words(text: str) -> str:
    """The end of an output as one line."""
    return " ".join(text.split())[-300:] or "it said nothing"


def python(module: str, *arguments: object) -> list[str]:
    """The command that runs a module with this interpreter."""
    return [sys.executable, "-m", module, *map(str, arguments)]


def start(command: Iterable[object], log: Path, **options: Any) -> "subprocess.Popen[str]":
    """Start a program that stays; it ends with this process at the latest. What it says goes to `log`."""

    def end_with_us() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)

    with log.open("ab") as file:
        return subprocess.Popen(
            [str(word) for word in command],
            stdin=options.pop("stdin", subprocess.DEVNULL),
            stdout=options.pop("stdout", file),
            stderr=file,
            text=True,
            start_new_session=True,  # Ctrl-C is for the benchmark, which then unmounts in order
            preexec_fn=end_with_us,  # noqa: PLW1509  only the child can ask to end with us; there is one thread
            env={**environment(), **options.pop("env", {})},
            **options,
        )


def install(programs: Iterable[str]) -> list[str]:
    """Install what is missing, if this is Debian and root; the programs that are missing still."""
    missing = [name for name in programs if shutil.which(name) is None]
    if missing and os.geteuid() == 0 and shutil.which("apt-get"):
        packages = sorted({PACKAGES[name] for name in missing})
        print(f"bench: installing {' '.join(packages)}", file=sys.stderr)
        for words in (["update"], ["install", "--no-install-recommends", "-y", *packages]):
            subprocess.run(
                ["apt-get", "-qq", *words], check=False, stdout=subprocess.DEVNULL, env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
            )
        missing = [name for name in missing if shutil.which(name) is None]
    return missing
