"""The commands of docs/OPERATIONS.md are run, its tables name what there is."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from modelfs.errors import ModelfsError
from tests.docs.test_readme import exit_codes
from tests.helpers import MODEL, REPOSITORY, KeySet, seal, write_tree

TEXT = (REPOSITORY / "docs" / "OPERATIONS.md").read_text()


@pytest.mark.fuse
def test_every_shown_command_works(keys_dir: KeySet, tmp_path: Path) -> None:
    """All `sh` blocks in order, on a mount at /models/llama of a mount namespace of its own."""
    commands = "\n".join(re.findall(r"^```sh\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL))
    assert commands.count("modelfs ") == 5
    seal(keys_dir, write_tree(tmp_path / "source", {"model.bin": b"weights"}), tmp_path / "sealed")
    mountpoint = tmp_path / "models" / "llama"
    mountpoint.mkdir(parents=True)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "modelfs"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -P -m modelfs "$@"\n')
    program.chmod(0o755)
    mount = f"modelfs mount {tmp_path}/sealed {mountpoint} --model {MODEL} --kek file:{keys_dir.kek} --trust {keys_dir.public}"
    private = "mount -t tmpfs none /var/lib; mount -t tmpfs none /run"
    script = f"set -eux\n{private}\n{mount}\n{commands.replace('/models/llama', str(mountpoint))}\necho all done\n"
    env = {**os.environ, "PATH": os.pathsep.join([str(tmp_path / "bin"), os.environ["PATH"]]), "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(["unshare", "--mount", "bash", "-c", script], capture_output=True, text=True, check=False, timeout=200, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.endswith("all done\n")
    assert '"resident_bytes": 0' in done.stdout


def test_log_lines_are_the_program_s() -> None:
    source = "\n".join(path.read_text() for path in (REPOSITORY / "modelfs").rglob("*.py"))
    rows = TEXT[TEXT.index("| log line |") :].partition("\n\n")[0].splitlines()[2:]
    assert len(rows) > 8
    for row in rows:
        for line in re.findall(r"`([^`]+)`", row.split("|")[1]):
            words = [re.escape(part.strip()) for part in re.split(r"\.\.\.|\b[A-Z]+\b|[()]", line) if len(part.strip()) > 3]
            assert words, line
            for word in words:
                assert re.search(word, source), f"{line!r}: nothing logs {word!r}"


def test_alerts_watch_what_status_says() -> None:
    source = (REPOSITORY / "modelfs" / "control" / "loop.py").read_text()
    rows = TEXT[TEXT.index("| `modelfs status --json` |") : TEXT.index("| the audit log |")]
    named = set(re.findall(r"`([a-z_]+)`", rows)) - {"unreachable", "serving", "status"}
    assert named == {"lease", "lease_left_s", "state", "worker_deaths", "audit_error"}
    assert all(f'"{name}"' in source for name in named)


def test_exit_codes_that_are_no_reason_to_start_again() -> None:
    said = re.search(r"for services ([\d, and]+) mean that starting again does not help", TEXT)
    assert said
    unit = (REPOSITORY / "systemd" / "modelfs@.service").read_text()
    prevented = re.search(r"^RestartPreventExitStatus=(.*)$", unit, re.MULTILINE)
    assert prevented
    codes = [code for code in prevented[1].split() if int(code) < 200]  # above, systemd has its own
    assert re.findall(r"\d+", said[1]) == codes
    assert set(map(int, codes)) <= set(exit_codes(ModelfsError))
