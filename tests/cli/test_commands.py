"""What the commands print when all is well, in text and in JSON, and what they leave behind."""

import errno
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer

from modelfs.cli.app import EXIT_CODES, make_app
from modelfs.seal.retention import Removed
from tests.cli.conftest import Cli, Run
from tests.helpers import MODEL, REPOSITORY, KeySet, write_tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "src", {"config.json": b"{}", "d/weights": b"w" * 10_000}, {"d/link": "../config.json"})


def commands(group: Any = None, name: str = "") -> dict[str, object]:
    """Every command by its full name, for example `keygen kek`."""
    group = group or typer.main.get_command(make_app([]))
    found = {}
    for part, command in group.commands.items():
        full = f"{name} {part}".strip()
        found |= commands(command, full) if hasattr(command, "commands") else {full: command}
    return found


COMMANDS = commands()


def test_all_commands_are_there() -> None:
    assert {"seal", "verify", "inspect", "gc", "forget", "keygen signing", "keygen kek"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_an_example(run: Run, name: str) -> None:
    for flag in ("--help", "-h"):
        result = run(*name.split(), flag).succeeds()
        assert re.search(rf"Examples?:\s+modelfs\s+{name}", re.sub(r"\s+", " ", result.out))


def test_help_lists_the_exit_codes(run: Run) -> None:
    assert re.sub(r"\s+", " ", EXIT_CODES) in re.sub(r"\s+", " ", run("--help").succeeds().out)


def test_version(run: Run) -> None:
    assert re.fullmatch(r"modelfs \d+\.\d+\.\d+\n", run("--version").succeeds().out)


def test_seal_verify_inspect_gc(cli: Cli, source: Path, tmp_path: Path) -> None:
    sealed = tmp_path / "sealed"
    told = cli.seal(source, sealed).succeeds().out
    assert "sealed demo release 1: 2 files, 9.8 KiB (2 encrypted, 0 unchanged, 0 finished earlier)" in told
    assert "demo release 1 is whole: 3 blobs" in cli.verify(sealed).succeeds().out
    (source / "config.json").write_bytes(b"{1}")
    assert "(1 encrypted, 1 unchanged, 0 finished earlier)" in cli.seal(source, sealed, release=2, trust=True).succeeds().out
    text = cli.inspect(sealed).succeeds().out
    assert "demo release 2 (signed by " in text
    assert re.search(r"releases: +1, 2\n", text)
    assert re.search(r"file +10000  d/weights\n", text)
    assert re.search(r"symlink +->  d/link -> \.\./config\.json\n", text)
    assert "removed releases: 1; 2 blobs" in cli.run("gc", sealed, "--keep", 1).succeeds().out
    assert cli.verify(sealed).code == 0


def test_inspect_without_trust_says_so(cli: Cli, source: Path, tmp_path: Path) -> None:
    cli.seal(source, tmp_path / "sealed").succeeds()
    result = cli.run("inspect", tmp_path / "sealed").succeeds()
    assert "NOT VERIFIED" in result.out
    assert "weights" not in result.out
    assert cli.run("inspect", tmp_path / "sealed", "--json").json["verified"] is False


def test_seal_one_file(cli: Cli, source: Path, tmp_path: Path) -> None:
    cli.seal(source / "config.json", tmp_path / "sealed").succeeds()
    (_, entry) = cli.inspect(tmp_path / "sealed", "--json").json["entries"]
    assert (entry["path"], entry["size"]) == ("config.json", 2)


@pytest.mark.parametrize("digest", ["blake3", "sha256"])
@pytest.mark.parametrize(("text", "size"), [("4K", 4096), ("128KiB", 131072), ("1m", 1 << 20), ("4194304", 1 << 22)])
def test_seal_options(cli: Cli, source: Path, tmp_path: Path, digest: str, text: str, size: int) -> None:
    options = ("--digest", digest, "--block-size", text, "--expires", "2999-01-02")
    assert cli.seal(source, tmp_path / "sealed", *options, "--json").json["files"] == 2
    told = cli.inspect(tmp_path / "sealed", "--json").json
    assert (told["digest"], told["block_size"], told["expires"]) == (digest, size, "2999-01-02T00:00:00Z")
    assert cli.verify(tmp_path / "sealed").code == 0


def test_json_of_every_command(cli: Cli, source: Path, tmp_path: Path) -> None:
    signing = cli.run("keygen", "signing", tmp_path / "k.pem", "--json").succeeds().json
    assert (signing["public"], len(signing["keyid"])) == (str(tmp_path / "k.pem.pub"), 64)
    assert cli.run("keygen", "kek", tmp_path / "kek", "--json").succeeds().json["kek"].startswith("file:")

    sealed = tmp_path / "sealed"
    report = cli.seal(source, sealed, "--json").succeeds().json
    expected = {"model": MODEL, "release": 1, "files": 2, "bytes": 10_002, "encrypted": 2, "resumed": 0, "reused": 0}
    expected |= {"notes": [], "pending": False}
    assert report == expected | {"sealed": str(sealed)}

    verdict = cli.verify(sealed, "--json").succeeds().json
    assert (verdict["ok"], verdict["faults"], verdict["blobs"], verdict["model"]) == (True, [], 3, MODEL)
    assert len(verdict["signed_by"]) == 1

    told = cli.inspect(sealed, "--json").succeeds().json
    assert told["verified"] is True
    assert [entry["path"] for entry in told["entries"]] == ["", "config.json", "d", "d/link", "d/weights"]
    assert not [entry for entry in told["entries"] if "key" in entry], "inspect prints blob keys"

    removed = cli.run("gc", sealed, "--json").succeeds().json
    assert removed == vars(Removed([], 0, 0))


def test_verify_json_of_a_damaged_model(cli: Cli, source: Path, tmp_path: Path) -> None:
    sealed = tmp_path / "sealed"
    cli.seal(source, sealed).succeeds()
    blob = max((sealed / "blobs").iterdir(), key=lambda file: file.stat().st_size)
    data = bytearray(blob.read_bytes())
    data[5000] ^= 1
    blob.write_bytes(data)
    result = cli.verify(sealed, "--json")
    result.fails(4, "1 fault(s)")
    (fault,) = result.json["faults"]
    assert (result.json["ok"], fault["blob"], fault["block"], fault["what"]) == (False, blob.name, 1, "block")
    assert len(fault["expected"]) == len(fault["found"]) == 64
    assert f"FAULT {blob.name} block 1: block: expected {fault['expected']}" in cli.verify(sealed).out


def test_forget(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "demo.json").write_bytes(b"anything")
    assert "forgot demo" in cli.run("forget", MODEL, "--state-dir", tmp_path).succeeds().out
    cli.run("forget", MODEL, "--state-dir", tmp_path).fails(2, "remembers nothing of demo")


# -- keygen


@pytest.mark.parametrize("kind", ["signing", "kek"])
def test_keygen_makes_private_files_and_never_overwrites(run: Run, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "key"
    before = os.umask(0)
    try:
        run("keygen", kind, path).succeeds()
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    contents = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    run("keygen", kind, path).fails(2, "exists already and is not overwritten")
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == contents


@pytest.mark.parametrize("kind", ["signing", "kek"])
def test_keygen_leaves_nothing_that_is_no_key(run: Run, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a full disk, for one; it would be in the way of the next attempt."""

    def full(_fd: int) -> None:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    run("keygen", kind, tmp_path / "key").fails(2, "cannot write", "No space left on device")
    assert not list(tmp_path.iterdir())


def test_keygen_leaves_no_half_of_a_pair(run: Run, tmp_path: Path) -> None:
    run("keygen", "signing", tmp_path / ("k" * 253)).fails(2, "File name too long")
    assert not list(tmp_path.iterdir())


def test_keygen_prints_no_secret(run: Run, tmp_path: Path) -> None:
    out = run("keygen", "signing", tmp_path / "a").out + run("keygen", "kek", tmp_path / "b").out
    kek = (tmp_path / "b").read_bytes()
    assert kek.hex() not in out
    assert (tmp_path / "a").read_text().splitlines()[1] not in out


# -- progress


def seal_program(keys: KeySet, source: Path, sealed: Path) -> list[str]:
    return [
        sys.executable, "-m", "modelfs", "seal", str(source), str(sealed), "--model", MODEL, "--release", "1",
        "--kek", f"file:{keys.kek}", "--sign-key", str(keys.signing), "--json",
    ]  # fmt: skip


def test_progress_bar_on_a_terminal_only(keys_dir: KeySet, source: Path, tmp_path: Path) -> None:
    plain = subprocess.run(seal_program(keys_dir, source, tmp_path / "a"), cwd=REPOSITORY, capture_output=True, check=True)
    assert plain.stderr == b""

    master, slave = os.openpty()
    environment = {**os.environ, "TERM": "xterm-256color"}
    process = subprocess.Popen(
        seal_program(keys_dir, source, tmp_path / "b"), cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=slave, env=environment
    )
    os.close(slave)
    shown = b""
    try:
        while part := os.read(master, 4096):
            shown += part
    except OSError:
        pass  # the program has closed its end
    finally:
        os.close(master)
    out, _ = process.communicate()
    assert process.returncode == 0
    assert b"sealing" in shown
    assert b"\x1b[" in shown
    assert b"sealing" not in out
    assert b'"release": 1' in out


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_there_without_the_others(name: str) -> None:
    """Alone it looks as it does in the whole program, which is made when the first word is no command."""
    alone = commands(typer.main.get_command(make_app(name.split())))
    assert name in alone
    assert len(alone) < len(COMMANDS), f"{name} waits for the imports of all commands: add it to the table in cli/app.py"


def test_an_unknown_command_is_told_what_there_is(run: Run) -> None:
    result = run("moutn")
    assert result.code == 2
    assert "No such command 'moutn'" in result.err


@pytest.mark.parametrize("words", ["verify", "seal", "mount"])
def test_a_command_does_not_import_what_it_does_not_need(words: str) -> None:
    """What every start would wait for: models of configuration files, clients of key services, the event loop."""
    needless = {"hvac", "requests", "boto3", "securesystemslib", "rich", "modelfs.config.mount_file", "modelfs.keys.vault_settings"}
    program = f"""
import sys
from modelfs.cli.app import make_app
make_app([{words!r}])
if {words!r} == "mount":
    import modelfs.mount.start
else:
    import modelfs.seal.publish, modelfs.reader.verify, modelfs.crypto.signing
    assert "trio" not in sys.modules
import modelfs.keys.file
print(*sorted({needless!r} & set(sys.modules)))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "\n"
