"""Forks: what they inherit, how they end, and that the parent learns it."""

import logging
import os
import signal
import time
from pathlib import Path

import pytest

from modelfs.control.process import close_others, die_with_parent, fork_child, is_running, kill_child, wait_child


def test_exit_code_and_exception() -> None:
    assert wait_child(fork_child(lambda: 7), 10) == 7
    assert wait_child(fork_child(lambda: 1 // 0), 10) == 70


def test_a_killed_child_and_one_that_takes_too_long() -> None:
    pid = fork_child(lambda: time.sleep(60) or 0)
    assert wait_child(pid, 0.05) is None
    assert is_running(pid)
    kill_child(pid)
    assert wait_child(pid, 10) == -signal.SIGKILL
    assert not is_running(pid)


def test_a_child_ends_with_its_parent() -> None:
    reading, writing = os.pipe()

    def parent() -> int:
        me = os.getpid()

        def child() -> int:
            die_with_parent(me)
            os.write(writing, str(os.getpid()).encode())
            time.sleep(60)
            return 0

        fork_child(child)
        time.sleep(60)
        return 0

    pid = fork_child(parent)
    grandchild = int(os.read(reading, 20))
    assert is_running(grandchild)
    kill_child(pid)
    wait_child(pid, 10)
    deadline = time.monotonic() + 10
    while is_running(grandchild):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_close_others_keeps_the_log(tmp_path: Path) -> None:
    """Else the next line of the log goes wherever its number has gone."""
    handler = logging.StreamHandler((tmp_path / "log").open("a"))
    logging.getLogger().addHandler(handler)
    try:

        def main() -> int:
            close_others(set())
            os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT)
            logging.getLogger().error("a line")
            return 0

        assert wait_child(fork_child(main), 5) == 0
    finally:
        logging.getLogger().removeHandler(handler)
        handler.stream.close()
    assert (tmp_path / "log").read_text() == "a line\n"
    assert (tmp_path / "other").read_text() == ""


def test_close_others_keeps_what_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # the log's descriptor would be kept: see above
    reading, writing = os.pipe()

    def child() -> int:
        close_others({writing})
        # The listing's own descriptor is in the list, and closed by then.
        left = [fd for fd in map(int, os.listdir("/proc/self/fd")) if fd > 2 and os.path.exists(f"/proc/self/fd/{fd}")]
        os.write(writing, b"1" if left == [writing] else b"0")
        return 0

    assert wait_child(fork_child(child), 10) == 0
    assert os.read(reading, 1) == b"1"
