"""A warden that dies leaves the unmount to control, which has a child do it: control answers meanwhile, and neither's end stops it."""

import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from modelfs.cli.mounted import ANSWER_SECONDS
from modelfs.control.process import is_running
from tests.faults.conftest import assert_dark, assert_gone, children, status
from tests.helpers import Sealed
from tests.mount.conftest import Mounted, Program, modelfs, wait_until


@pytest.fixture
def orphan(model: Sealed, mount: Callable[..., Mounted], program: Callable[..., Program]) -> tuple[Mounted, Program, int]:
    """A mount whose warden was killed, someone who maps it, and the pid of control's child, which is stopped in the middle."""
    for _ in range(5):  # the child takes some dozen milliseconds: it may be over before it is seen
        mounted = mount(model)
        holder = program("hold", mounted.path / "model.bin")
        holder.line()
        control = mounted.facts["control"]
        known = set(children(control))
        os.kill(mounted.facts["warden"], signal.SIGKILL)
        while is_running(control):
            with suppress(ProcessLookupError):
                for child in set(children(control)) - known:
                    os.kill(child, signal.SIGSTOP)
                    if is_running(child):
                        return mounted, holder, child
        assert_dark(holder.finish())
    pytest.fail("control's child was never seen")


def test_control_answers_meanwhile(orphan: tuple[Mounted, Program, int]) -> None:
    """An unmount that takes a busy control for one that hangs would end the only process that can still revoke."""
    mounted, holder, child = orphan
    pids = mounted.pids()
    with ThreadPoolExecutor(1) as pool:
        unmounting = pool.submit(modelfs, "unmount", mounted.path, "--json")
        try:
            time.sleep(ANSWER_SECONDS + 1)
            said = status(mounted)
            assert (said["state"], said["ending"]) == ("revoked", "the warden died")
            assert not unmounting.done()
        finally:
            os.kill(child, signal.SIGCONT)
        done = unmounting.result()
    assert done.returncode == 8, done.stderr
    assert json.loads(done.stdout)["resident_bytes"] == 0
    assert_gone(mounted, pids)
    assert_dark(holder.finish())


def test_a_child_that_dies(orphan: tuple[Mounted, Program, int]) -> None:
    """Control does it itself."""
    mounted, holder, child = orphan
    pids = mounted.pids()
    os.kill(child, signal.SIGKILL)
    assert_gone(mounted, pids)
    assert_dark(holder.finish())
    assert "done here instead" in mounted.log


@pytest.fixture
def no_more_processes() -> Iterator[Callable[[int], None]]:
    """Puts a process into a control group that has room for it alone."""
    v1 = Path("/sys/fs/cgroup/pids")
    place = (v1 if v1.is_dir() else Path("/sys/fs/cgroup")) / f"modelfs-test-{os.getpid()}-{time.monotonic_ns()}"
    place.mkdir()

    def restrict(pid: int) -> None:
        (place / "cgroup.procs").write_text(str(pid))
        (place / "pids.max").write_text("1")

    yield restrict
    wait_until(lambda: not (place / "cgroup.procs").read_text(), 10, "the end of its processes")
    place.rmdir()


def test_no_process_can_be_had(
    model: Sealed, mount: Callable[..., Mounted], program: Callable[..., Program], no_more_processes: Callable[[int], None]
) -> None:
    """When memory or process numbers run out, a warden may die of it: control does what needs no process, and owns up to the rest."""
    mounted = mount(model)
    holder = program("hold", mounted.path / "model.bin")
    holder.line()
    pids = mounted.pids()
    no_more_processes(mounted.facts["control"])
    os.kill(mounted.facts["warden"], signal.SIGKILL)
    assert_gone(mounted, pids)
    assert "no child can be had" in mounted.log
    assert "done here instead" in mounted.log
    assert "'detached': True" in mounted.log
    assert "'evicted': False" in mounted.log, "evicting may block, so it is never done without a process of its own"
    holder.finish()


def test_a_control_that_dies_too(orphan: tuple[Mounted, Program, int]) -> None:
    """The child goes on."""
    mounted, holder, child = orphan
    pids = [*mounted.pids(), child]
    os.kill(mounted.facts["control"], signal.SIGKILL)
    os.kill(child, signal.SIGCONT)
    assert_gone(mounted, pids)
    assert_dark(holder.finish())
