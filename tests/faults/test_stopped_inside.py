"""A warden that is stopped (SIGSTOP) in the middle of a darkening or an unmount: mappings read on until control ends it."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from modelfs.cli.mounted import _describe
from modelfs.control.process import is_running
from modelfs.control.socket import request, socket_path
from modelfs.control.warden_link import SILENCE_SECONDS
from tests.faults.conftest import assert_dark, assert_gone, children, status
from tests.helpers import REPOSITORY, Sealed
from tests.mount.conftest import Mounted, Program, modelfs, mount_command, wait_until

OWN_SECONDS = 3.0
"""What control needs for the unmount sequence, and a program to start, on a machine that does other work too."""
BOUND_SECONDS = SILENCE_SECONDS + OWN_SECONDS


class Stopper:
    """Stops a warden as soon as it has a child more: the first worker without keys, which is the sequence's first step after the fence."""

    def __init__(self, said: dict[str, Any], at_child: int = 1) -> None:
        """Take what the mount says of itself."""
        self._warden, self._workers = said["warden"], set(said["workers"])
        self._at_child = at_child
        self.stopped_at: float | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._spin)
        self._thread.start()

    def _spin(self) -> None:
        seen: set[int] = set()
        while not self._ended.is_set() and is_running(self._warden):
            seen |= set(children(self._warden)) - self._workers
            if len(seen) >= self._at_child:
                with suppress(ProcessLookupError):
                    os.kill(self._warden, signal.SIGSTOP)
                    self.stopped_at = time.monotonic()
                return

    def finish(self) -> float:
        """When it was stopped, by time.monotonic."""
        self._ended.set()
        self._thread.join()
        assert self.stopped_at is not None, "the warden was not stopped inside, and the test shows nothing"
        return self.stopped_at


def dead_at(reader: Program, seconds: float) -> float:
    """When a reader that touches its mapping without end got SIGBUS, by time.monotonic."""
    code = reader.process.wait(seconds)
    assert code == -signal.SIGBUS
    return time.monotonic()


Readers = Callable[..., tuple[Mounted, Program, Program]]


@pytest.fixture
def readers(model: Sealed, mount: Callable[..., Mounted], program: Callable[..., Program]) -> Readers:
    """A mount with one who touches every page of a mapping in a loop, and one who holds another."""

    def make(*options: object) -> tuple[Mounted, Program, Program]:
        mounted = mount(model, "--workers", 2, *options)
        toucher = program("touch", mounted.path / "model.bin")
        toucher.line()
        holder = program("hold", mounted.path / "model.bin")
        assert holder.line()["resident"] == len(model.plain["model.bin"])
        return mounted, toucher, holder

    return make


@pytest.mark.parametrize("at_child", [1, 2])
def test_unmount(readers: Readers, at_child: int) -> None:
    mounted, toucher, holder = readers()
    pids = mounted.pids()
    stopper = Stopper(status(mounted), at_child)
    done = modelfs("unmount", mounted.path, "--json")
    returned_at = time.monotonic()
    stopped_at = stopper.finish()
    died_at = dead_at(toucher, 1)
    print(
        f"unmount: mapped plaintext gone {died_at - stopped_at:.2f} s after the stop at the latest, answer {returned_at - stopped_at:.2f} s"
    )
    assert died_at - stopped_at < BOUND_SECONDS
    assert returned_at - stopped_at < BOUND_SECONDS
    assert done.returncode == 8, done.stderr
    assert "control took the mount down" in done.stderr
    assert done.stderr.count("\n") == 1
    proof = json.loads(done.stdout)
    assert (proof["resident_bytes"], proof["evicted"], proof["detached"]) == (0, True, True)
    assert not mounted.is_attached()
    assert_gone(mounted, pids)
    assert_dark(holder.finish())


def test_what_is_said_meanwhile(readers: Readers) -> None:
    """A lease that has time left is not what counts any more; a second unmount gets the same answer."""
    mounted, toucher, holder = readers()
    stopper = Stopper(status(mounted))
    socket = socket_path(os.path.realpath(mounted.path))
    answers: list[dict[str, Any]] = []
    clients = [threading.Thread(target=lambda: answers.append(request(socket, {"do": "unmount"}, 30))) for _ in range(2)]
    clients[0].start()
    wait_until(lambda: stopper.stopped_at is not None, 10, "the stop")
    clients[1].start()
    said = status(mounted)
    assert (said["state"], said["lease"], said["lease_left_s"], said["ending"]) == ("revoked", "revoked", 0, "unmount")
    lines = list(_describe(said))
    assert "lease revoked for good" in lines[0]
    assert "  ending: unmount" in lines
    for client in clients:
        client.join()
    assert dead_at(toucher, 1) - stopper.finish() < BOUND_SECONDS
    assert answers[0] == answers[1]
    assert (answers[0]["warden_lost"], answers[0]["proof"]["resident_bytes"]) == (True, 0)
    assert answers[0]["proof"]["reason"] == "unmount; the warden died"
    assert_dark(holder.finish())


def test_lock(readers: Readers) -> None:
    mounted, toucher, holder = readers()
    pids = mounted.pids()
    stopper = Stopper(status(mounted))
    done = modelfs("lock", mounted.path)
    stopped_at = stopper.finish()
    assert dead_at(toucher, BOUND_SECONDS) - stopped_at < BOUND_SECONDS
    assert done.returncode == 7
    assert "not locked, but taken down (the warden does not answer)" in done.stderr
    assert_gone(mounted, pids)
    assert_dark(holder.finish())


@pytest.mark.parametrize("how", ["away", "denied"])
def test_the_lease_s_end_and_a_denial(readers: Readers, how: str) -> None:
    mounted, toucher, holder = readers("--renew-every", 0.5, "--ttl", 2)
    pids = mounted.pids()
    kek = mounted.sealed.keys.kek
    kept = kek.with_name("kept")
    stopper = Stopper(status(mounted))
    kek.rename(kept)
    try:
        if how == "denied":
            kek.with_name("other").write_bytes(os.urandom(32))
            kek.with_name("other").chmod(0o600)
            kek.with_name("other").rename(kek)
        died_at = dead_at(toucher, 3 + BOUND_SECONDS)
        print(f"{how}: mapped plaintext ended {died_at - stopper.finish():.2f} s after the stop")
        assert died_at - stopper.finish() < BOUND_SECONDS
        assert_gone(mounted, pids)
    finally:
        kept.rename(kek)
    assert_dark(holder.finish())


@pytest.mark.parametrize("listens", [True, False], ids=["", "and its stdout is gone"])
def test_a_denial_is_no_reason_to_mount_again(model: Sealed, tmp_path: Path, listens: bool) -> None:
    """Exit code 5, and not another one, after which the service manager would start it again."""
    place, audit = tmp_path / "mnt", tmp_path / "audit"
    place.mkdir()
    options = ["--foreground", "--renew-every", 0.5, "--ttl", 60, "--workers", 2, "--audit", audit]
    command = [sys.executable, "-m", "modelfs", *map(str, mount_command(model, place, tmp_path / "state", *options))]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    kek = model.keys.kek
    kept = kek.with_name("kept")
    try:
        assert process.stdout is not None
        process.stdout.readline()  # it is mounted
        if not listens:
            process.stdout.close()
            process.stdout = None
        stopper = Stopper(request(socket_path(os.path.realpath(place)), {"do": "status"}, 10))
        kek.rename(kept)
        kek.write_bytes(os.urandom(32))
        kek.chmod(0o600)
        out, err = process.communicate(timeout=20)
    finally:
        process.kill()
        process.wait()
        if kept.exists():
            kept.rename(kek)
    stopper.finish()
    assert process.returncode == 5, err
    assert "because access to the key has been revoked" in err.splitlines()[-1]
    assert "; the warden died" in err.splitlines()[-1]
    assert not listens or "0 bytes" in out
    assert [json.loads(line)["event"] for line in audit.read_text().splitlines()] == ["mount", "denied", "revoked"]
