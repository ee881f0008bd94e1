"""What a hostile or clumsy host does around a mount: names, renames, mounts on top, stopped processes, closed descriptors."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs.control.process import is_running
from modelfs.mount.mountinfo import mountpoints_of, top_mount
from tests.conftest import SealedBuilder
from tests.helpers import REPOSITORY, Sealed, seal
from tests.mount.conftest import Mounted, Program, modelfs, mount_command, wait_until

PLAIN = os.urandom(500_000)


@pytest.fixture
def model(sealed: SealedBuilder) -> Sealed:
    return sealed({"model.bin": PLAIN}, block_size=131072)


def test_a_mount_of_somebody_else_with_a_carriage_return_in_its_name(model: Sealed, mount: Callable[..., Mounted], tmp_path: Path) -> None:
    odd = tmp_path / "cr\rdir"
    odd.mkdir()
    mounted = mount(model)
    subprocess.run(["mount", "-t", "tmpfs", "none", odd], check=True)
    try:
        assert (mounted.path / "model.bin").read_bytes() == PLAIN
        assert mounted.status()["state"] == "serving"
        second = mount(model)
        assert second.unmount()["detached"]
        assert mounted.unmount()["detached"]
    finally:
        subprocess.run(["umount", odd], check=True)


@pytest.mark.parametrize("name", [b"cr\rx", b"new\nline", b"sp ace\ttab", b"\xff\xfe not utf-8", "名前".encode(), b"back\\040slash"])
def test_mountpoints_of_any_name(model: Sealed, tmp_path: Path, name: bytes) -> None:
    mountpoint = Path(os.fsdecode(os.path.join(os.fsencode(tmp_path), name)))
    mountpoint.mkdir()
    command = [os.fsencode(str(part)) for part in mount_command(model, mountpoint, tmp_path / "state")]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "PYTHONIOENCODING": "utf-8:strict"}
    base = [os.fsencode(sys.executable), b"-m", b"modelfs"]
    done = subprocess.run([*base, *command], check=False, capture_output=True, env=env)
    assert done.returncode == 0, done.stderr
    assert (mountpoint / "model.bin").read_bytes() == PLAIN
    done = subprocess.run([*base, b"unmount", os.fsencode(mountpoint)], check=False, capture_output=True, env=env)
    assert done.returncode == 0, done.stderr
    assert top_mount(os.fsencode(mountpoint)) is None


def test_a_mount_over_the_mountpoint_is_left_alone_and_said(model: Sealed, mount: Callable[..., Mounted]) -> None:
    mounted = mount(model)
    device = mounted.status()["device"]
    subprocess.run(["mount", "-t", "tmpfs", "none", mounted.path], check=True)
    done = modelfs("unmount", mounted.path)
    assert done.returncode == 7
    assert "forced" in done.stderr
    top = top_mount(os.fsencode(mounted.path))
    assert top is not None
    assert top.fs_type == "tmpfs", "what somebody else mounted on top is not ours to take away"
    subprocess.run(["umount", mounted.path], check=True)
    subprocess.run(["umount", "-l", mounted.path], check=True)
    assert mountpoints_of(device) == []


def test_a_renamed_parent(model: Sealed, tmp_path: Path) -> None:
    mountpoint = tmp_path / "before" / "mnt"
    mountpoint.mkdir(parents=True)
    assert modelfs(*mount_command(model, mountpoint, tmp_path / "state")).returncode == 0
    (tmp_path / "before").rename(tmp_path / "after")
    assert (tmp_path / "after/mnt/model.bin").read_bytes() == PLAIN
    done = modelfs("unmount", tmp_path / "after/mnt")
    assert done.returncode == 0, done.stderr
    assert top_mount(os.fsencode(tmp_path / "after/mnt")) is None


def test_a_stopped_control_process_is_ended_and_the_mount_with_it(
    model: Sealed, mount: Callable[..., Mounted], program: Callable[..., Program]
) -> None:
    mounted = mount(model)
    reader = program("hold", mounted.path / "model.bin")
    reader.line()
    pids = mounted.pids()
    os.kill(mounted.facts["control"], signal.SIGSTOP)
    assert f"{mounted.facts['control']} does not answer" in modelfs("status").stderr
    started = time.monotonic()
    done = modelfs("unmount", mounted.path)
    assert time.monotonic() - started < 15
    assert done.returncode == 8, done.stderr
    assert not mounted.is_attached()
    after = reader.finish()
    assert (after["resident"], after["touch"]) == (0, "SIGBUS")
    wait_until(lambda: not any(map(is_running, pids)), 10, "the end of every process")


def test_a_store_that_is_moved_away_goes_on_serving(model: Sealed, mount: Callable[..., Mounted]) -> None:
    mounted = mount(model, "--workers", 1)
    model.path.rename(model.path.with_name("moved"))
    os.kill(mounted.status()["workers"][0], signal.SIGKILL)
    assert (mounted.path / "model.bin").read_bytes() == PLAIN


def test_a_blob_mended_by_a_new_file_is_readable_again(model: Sealed, mount: Callable[..., Mounted]) -> None:
    blob = model.blob_path("model.bin")
    good = blob.read_bytes()
    blob.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    mounted = mount(model, "--workers", 1)
    with pytest.raises(OSError):
        (mounted.path / "model.bin").read_bytes()
    fresh = blob.with_name("fresh")
    fresh.write_bytes(good)
    fresh.rename(blob)
    assert (mounted.path / "model.bin").read_bytes() == PLAIN


def test_the_daemon_keeps_no_descriptor_of_its_caller(model: Sealed, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    lock = tmp_path / "lock"
    command = [sys.executable, "-m", "modelfs", *map(str, mount_command(model, tmp_path / "mnt", tmp_path / "state"))]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    assert subprocess.run(["flock", lock, *command], check=False, env=env, capture_output=True).returncode == 0
    try:
        assert subprocess.run(["flock", "-n", lock, "true"], check=False).returncode == 0, "a process of the mount holds the lock"
    finally:
        assert modelfs("unmount", tmp_path / "mnt").returncode == 0


def test_closed_standard_streams(model: Sealed, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    command = [sys.executable, "-m", "modelfs", *map(str, mount_command(model, tmp_path / "mnt", tmp_path / "state"))]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(["bash", "-c", '"$@" <&- >&- 2>&-', "bash", *command], check=False, env=env, cwd="/")
    assert done.returncode == 0
    assert (tmp_path / "mnt" / "model.bin").read_bytes() == PLAIN
    assert modelfs("unmount", tmp_path / "mnt").returncode == 0


def test_two_mounts_at_one_place_at_once(model: Sealed, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    command = [sys.executable, "-m", "modelfs", *map(str, mount_command(model, tmp_path / "mnt", tmp_path / "state"))]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    racing = [subprocess.Popen(command, env=env, stderr=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(4)]
    codes = sorted(process.wait(60) for process in racing)
    for process in racing:
        process.communicate()
    assert codes == [0, 7, 7, 7]
    assert modelfs("unmount", tmp_path / "mnt").returncode == 0
    assert top_mount(os.fsencode(tmp_path / "mnt")) is None


def test_an_older_release_recorded_late_is_refused(model: Sealed, mount: Callable[..., Mounted], tmp_path: Path) -> None:
    """Two mounts overlap: the older one passed its check before the newer one was recorded."""
    from modelfs.errors import RollbackError
    from modelfs.trust.host_state import HostState

    old = model.copy(tmp_path / "old")
    seal(model.keys, model.source, model.path, release=2)
    state = HostState(tmp_path / "memory")
    state.check(old.release())
    state.record(model.release())
    with pytest.raises(RollbackError):
        state.record(old.release())
    seen = state.seen("demo")
    assert seen is not None
    assert seen.release == 2


@pytest.mark.parametrize("value", ["-5", "99999999999"])
def test_ids_that_no_user_has(model: Sealed, tmp_path: Path, value: str) -> None:
    (tmp_path / "mnt").mkdir()
    done = modelfs(*mount_command(model, tmp_path / "mnt", tmp_path / "state", f"--uid={value}"))
    assert done.returncode == 2
    assert "no user or group id" in done.stderr
