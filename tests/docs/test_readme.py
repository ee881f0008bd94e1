"""What the documents say is run, counted or looked up: commands, options, exit codes, links, names of tests."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfs.cli.app import EXIT_CODES
from modelfs.errors import ModelfsError
from tests.helpers import REPOSITORY

README = (REPOSITORY / "README.md").read_text()
DOCUMENTS = sorted([*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")])

COMMANDS = [
    "keygen signing",
    "keygen kek",
    "seal",
    "verify",
    "inspect",
    "gc",
    "forget",
    "mount",
    "status",
    "unmount",
    "recipients add",
    "rewrap",
]
OTHER_PROGRAMS = {"--safetensors-load-strategy", "--runtimes", "--slow", "--quick", "--minutes"}
"""Options in the documents that are not modelfs's own."""


def blocks(language: str) -> list[str]:
    """Fenced blocks of one language, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def run(*command: object, **options: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, timeout=200, **options)


@pytest.mark.fuse
def test_every_shown_command_works(tmp_path: Path) -> None:
    """All `sh` blocks, as one script, as a person would type them; the host's memory of releases is a private one."""
    commands = "\n".join(blocks("sh"))
    for command in COMMANDS:
        assert f"modelfs {command} " in commands or f"modelfs {command}\n" in commands, f"the README does not show {command}"
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "modelfs"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m modelfs "$@"\n')
    program.chmod(0o755)
    (tmp_path / "llama").mkdir()
    (tmp_path / "llama" / "model.safetensors").write_bytes(os.urandom(3_000_000))
    (tmp_path / "llama" / "config.json").write_text("{}")
    cache = tmp_path / "hub" / "models--org--llama"
    for name in ("blobs", "snapshots/main"):
        (cache / name).mkdir(parents=True)
    (cache / "blobs" / "aa").write_bytes(b"weights")
    (cache / "snapshots" / "main" / "model.safetensors").symlink_to("../../blobs/aa")
    private = "mount -t tmpfs none /var/lib; mount -t tmpfs none /run"
    log = "cat /var/lib/modelfs/*.log >&2 || true"
    script = f"set -eux\n{private}\ntrap '{log}' EXIT\n{commands}\necho all done\n"
    path = os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]])
    done = run("unshare", "--mount", "bash", "-c", script, cwd=tmp_path, env={**os.environ, "PATH": path, "PYTHONPATH": str(REPOSITORY)})
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all done\n")
    assert done.stdout.count("plaintext left in the page cache: 0 bytes") == 1
    assert done.stdout.count('"resident_bytes": 0') == 1
    assert "mounted llama release 2" in done.stdout


def test_text_blocks_name_scripts_that_exist() -> None:
    named = [line.split()[0] for block in blocks("text") for line in block.splitlines()]
    assert named == ["scripts/demo", "scripts/test"]
    for name in [*named, "scripts/setup", ".ci/run"]:
        assert os.access(REPOSITORY / name, os.X_OK), name
    assert {*re.findall(r"^```(\w*)$", README, re.MULTILINE)} == {"sh", "text", ""}, "a block of another kind would not be checked"


def exit_codes(error: type[ModelfsError] = ModelfsError) -> Iterator[int]:
    yield error.exit_code
    for each in error.__subclasses__():
        yield from exit_codes(each)


def test_exit_codes_are_those_of_the_program() -> None:
    rows = re.findall(r"^\| (\d+) \| (.+?) \|", README, re.MULTILINE)
    codes = [int(code) for code, _meaning in rows]
    assert codes == sorted({0, 1, *exit_codes()})
    assert [int(code) for code in re.findall(r"(\d) [a-z]", EXIT_CODES)] == codes
    assert all(meaning.strip() for _code, meaning in rows)


def test_options_in_the_documents_exist() -> None:
    known = set(OTHER_PROGRAMS)
    for command in [*COMMANDS, "rotate"]:
        done = run(sys.executable, "-m", "modelfs", *command.split(), "--help", cwd=REPOSITORY, env={**os.environ, "COLUMNS": "200"})
        assert done.returncode == 0, done.stderr
        known |= set(re.findall(r"--[a-z][a-z-]+", done.stdout))
    for document in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "docs/THREAT_MODEL.md"):
        text = (REPOSITORY / document).read_text()
        assert set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)) <= known, document


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(document: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", document.read_text()):
        if not re.match(r"[a-z]+:", target):
            path, _, _anchor = target.partition("#")
            assert (document.parent / path).exists() if path else True, target


def test_paths_in_the_readme_exist() -> None:
    named = set(re.findall(r"`((?:modelfs|scripts|tests|docs)/[\w./-]*)`", README))
    assert len(named) > 8
    for name in named:
        assert (REPOSITORY / name).exists(), name


@pytest.mark.parametrize("document", ["THREAT_MODEL.md", "RELIABILITY.md"])
def test_the_tests_that_documents_name_exist(document: str) -> None:
    text = (REPOSITORY / "docs" / document).read_text()
    references = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", text)
    assert len(references) > 20
    for path, name in references:
        assert name, f"{path} alone shows nothing: name a test"
        found = re.search(rf"((?:^[@ )].*\n)*)^(?:async )?def {name}\(", (REPOSITORY / path).read_text(), re.MULTILINE)
        assert found, f"{path}::{name}"
        assert not re.search("xfail|skip", found[1]), f"{path}::{name} is expected to fail, or is skipped: it shows nothing"


def test_the_threat_model_names_modules_that_exist() -> None:
    text = (REPOSITORY / "docs" / "THREAT_MODEL.md").read_text()
    modules = re.findall(r"`([a-z]+/[a-z_]+)`", text)
    assert len(modules) > 8
    for name in modules:
        assert (REPOSITORY / "modelfs" / f"{name}.py").is_file(), name


def test_the_licence_is_whole() -> None:
    text = (REPOSITORY / "LICENSE").read_text()
    assert "Apache License" in text
    assert "Version 2.0, January 2004" in text
    assert "END OF TERMS AND CONDITIONS" in text
    assert shutil.which("unshare"), "util-linux is needed to run the README"
