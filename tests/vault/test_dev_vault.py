"""scripts/dev-vault leaves no server behind and exits 0, whenever and however it is told to stop."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelfs.control.process import is_running
from tests.helpers import REPOSITORY
from tests.mount.conftest import wait_until

Start = Callable[..., "subprocess.Popen[str]"]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def servers(pid: int) -> list[int]:
    """Its children that are a server already, and no longer a fork of Python that is about to become one."""
    return [child for child in children(pid) if b"server" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    started: list[subprocess.Popen[str]] = []

    def do(*arguments: str, ignore_interrupts: bool = False) -> "subprocess.Popen[str]":
        command = [sys.executable, str(REPOSITORY / "scripts" / "dev_vault.py"), *arguments]
        if ignore_interrupts:  # as a shell does for what it starts in the background
            command = ["env", "--ignore-signal=INT", *command]
        environment = {**os.environ, "TMPDIR": str(tmp_path)}
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
        )
        started.append(process)
        return process

    yield do
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


def end(process: "subprocess.Popen[str]", server: list[int], base: Path) -> None:
    assert process.wait(30) == 0, process.stderr.read() if process.stderr else ""
    assert process.stderr is not None
    assert process.stderr.read() == ""
    assert not any(map(is_running, server))
    assert list(base.iterdir()) == []


@pytest.mark.parametrize("to_group", [False, True], ids=["process", "group, as Ctrl-C"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_it_stops_when_told(start: Start, tmp_path: Path, number: signal.Signals, to_group: bool) -> None:
    process = start(ignore_interrupts=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("export VAULT_ADDR=https://")
    server = servers(process.pid)
    assert len(server) == 1
    assert is_running(server[0])
    for _ in range(3):  # somebody impatient
        if to_group:
            os.killpg(process.pid, number)
        elif process.poll() is None:
            process.send_signal(number)
    end(process, server, tmp_path)


def test_it_stops_while_it_starts(start: Start, tmp_path: Path) -> None:
    process = start()
    wait_until(lambda: bool(servers(process.pid)), 20, "the server's process")
    server = servers(process.pid)
    process.send_signal(signal.SIGTERM)
    end(process, server, tmp_path)


def test_it_stops_while_it_runs_a_command(start: Start, tmp_path: Path) -> None:
    process = start("--run", "sh", "-c", "echo begun; exec sleep 100")
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    both = children(process.pid)
    assert len(both) == 2
    process.send_signal(signal.SIGTERM)
    end(process, both, tmp_path)
