"""What a command does when nobody takes its answer, or somebody is in a hurry: a program of its own, as a shell starts it."""

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from modelfs.cli.output import print_proof
from modelfs.errors import MountError
from tests.helpers import REPOSITORY, KeySet, seal, write_tree

ENVIRONMENT = {**os.environ, "PYTHONPATH": str(REPOSITORY)}


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "modelfs", *map(str, words)]


def into_full_disk(*words: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    with open("/dev/full", "w") as full:
        return subprocess.run(
            command(*words), stdout=full, stderr=subprocess.PIPE, text=True, check=False, timeout=60, env={**ENVIRONMENT, **variables}
        )


@pytest.fixture(scope="module")
def words(keys_dir: KeySet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[object]]:
    """Commands that print."""
    base = tmp_path_factory.mktemp("talking")
    sealed = base / "sealed"
    seal(keys_dir, write_tree(base / "source", {"f": b"x" * 5000}), sealed)
    return {
        "keygen": ["keygen", "kek", base / "kek"],
        "verify": ["verify", sealed, "--trust", keys_dir.public],
        "json": ["inspect", sealed, "--json"],
        "version": ["--version"],
        "help": ["--help"],
    }


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("what", ["keygen", "verify", "json", "version", "help"])
def test_a_stdout_that_is_full_is_no_bug(words: dict[str, list[object]], what: str, unbuffered: str) -> None:
    if what == "keygen":
        Path(str(words[what][-1])).unlink(missing_ok=True)
    done = into_full_disk(*words[what], PYTHONUNBUFFERED=unbuffered)
    assert done.stderr == "modelfs: cannot write to stdout: No space left on device; its answer is lost\n"
    assert done.returncode == 6


def test_a_forced_unmount_is_told_although_its_proof_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_text: str) -> int:
        raise OSError(errno.ENOSPC, "full")

    proof = {"evicted": True, "detached": True, "resident_bytes": 4096}
    monkeypatch.setattr(sys.stdout, "write", full)
    with pytest.raises(MountError, match="forced"):
        print_proof(proof, json=True)
    with pytest.raises(OSError, match="full"):
        print_proof({**proof, "resident_bytes": 0}, json=True)


def test_an_error_counts_before_it(words: dict[str, list[object]], tmp_path: Path) -> None:
    done = into_full_disk("keygen", "kek", tmp_path)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "exists already" in done.stderr


def test_a_directory_that_has_been_removed(words: dict[str, list[object]], tmp_path: Path) -> None:
    """Relative paths mean nothing there; absolute ones do."""
    shell = 'mkdir gone && cd gone && rmdir ../gone && exec "$0" "$@"'
    gone = "modelfs: the current directory has been removed: change to another one\n"
    for arguments, ended in ((["status", "mnt"], (2, gone)), (words["verify"], (0, ""))):
        done = subprocess.run(
            ["sh", "-c", shell, *command(*arguments)], capture_output=True, text=True, check=False, env=ENVIRONMENT, cwd=tmp_path
        )
        assert (done.returncode, done.stderr) == ended


def test_a_log_that_cannot_be_is_told_once(words: dict[str, list[object]], keys_dir: KeySet, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    sealed, trust = words["verify"][1], keys_dir.public
    names = ["--model", "demo", "--trust", trust, "--kek", f"file:{keys_dir.kek}", "--state-dir", tmp_path / "state", "--log", tmp_path]
    done = subprocess.run(
        command("mount", sealed, tmp_path / "mnt", *names), capture_output=True, text=True, check=False, env=ENVIRONMENT, timeout=60
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
    assert done.stderr.startswith("modelfs: cannot write the log ")


def test_an_interrupt_is_one_word(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("s.token")
    (tmp_path / "token").chmod(0o600)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        where = f"http://127.0.0.1:{silent.getsockname()[1]}"
        login = ["--vault-address", where, "--insecure-http", "--vault-auth", f"token:{tmp_path / 'token'}"]
        process = subprocess.Popen(
            command("pubkey", "hv:release/1", "--out", tmp_path / "pub", *login), stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        try:
            silent.settimeout(30)
            with silent.accept()[0]:  # it waits for an answer
                process.send_signal(signal.SIGINT)
                _out, err = process.communicate(timeout=30)
        finally:
            process.kill()
            process.wait()
    assert (process.returncode, err) == (1, "modelfs: interrupted\n")
    assert not (tmp_path / "pub").exists()
