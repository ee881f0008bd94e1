"""What happens around a mountpoint: taken away, covered, removed, left by the dead, bound elsewhere."""

import errno
import mmap
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs.control.process import is_running
from modelfs.control.socket import socket_path
from modelfs.mount.mountinfo import top_mount
from modelfs.mount.session import detach_dead
from tests.faults.conftest import REVOKED, Crowd, assert_dark, assert_gone, status
from tests.helpers import REPOSITORY, Sealed
from tests.mount.conftest import Mounted, Program, modelfs, mount_command, wait_until


def in_another_namespace(command: str) -> Callable[[Path], object]:
    """In a copy of the mount table, where the directory is no mountpoint."""
    return lambda path: subprocess.run(["unshare", "-m", "sh", "-c", f'umount -l "$1" && {command}', "sh", path], check=True)


TAKEN_AWAY: dict[str, Callable[[Path], object]] = {
    "fusermount3 -u -z": lambda path: subprocess.run(["fusermount3", "-u", "-z", path], check=True),
    "removed": in_another_namespace('rmdir "$1"'),
    "renamed over": in_another_namespace('mkdir "$1.new" && mv -T "$1.new" "$1"'),
}
"""A directory that is no mountpoint elsewhere may be removed there, and takes what is mounted on it along (Linux >= 3.18)."""


@pytest.mark.parametrize("way", ["fusermount3 -u -z", "removed", pytest.param("renamed over", marks=pytest.mark.slow)])
def test_taken_away_is_revoked(
    model: Sealed, mount: Callable[..., Mounted], program: Callable[..., Program], crowd: Callable[..., Crowd], way: str
) -> None:
    mounted = mount(model, "--workers", 2)
    holder = program("hold", mounted.path / "config.json")
    holder.line()
    readers = crowd(mounted, 3)
    pids = mounted.pids()
    time.sleep(0.3)
    TAKEN_AWAY[way](mounted.path)
    assert_gone(mounted, pids)
    assert readers.finish() <= REVOKED | {"SIGBUS"}
    assert_dark(holder.finish())
    assert "the mount was detached" in mounted.log


def test_fusermount_of_a_mount_in_use_is_refused_and_changes_nothing(model: Sealed, mount: Callable[..., Mounted]) -> None:
    mounted = mount(model)
    with open(mounted.path / "model.bin", "rb") as file:
        assert subprocess.run(["fusermount3", "-q", "-u", mounted.path], check=False, capture_output=True).returncode != 0
        assert file.read() == model.plain["model.bin"]
    assert status(mounted)["state"] == "serving"


def remove_what_is_left(mounted: Mounted) -> None:
    if mounted.is_attached():
        subprocess.run(["umount", "-l", mounted.path], check=True)


def test_every_process_killed_at_once_and_mounted_again(
    model: Sealed, mount: Callable[..., Mounted], crowd: Callable[..., Crowd], tmp_path: Path
) -> None:
    """A reboot in the middle, but for the kernel: socket, lock and a dead mount are left, and none is in the way."""
    mounted = mount(model, "--workers", 2, "--audit", tmp_path / "audit")
    readers = crowd(mounted, 3)
    pids = mounted.pids()
    time.sleep(0.3)
    try:
        for pid in pids:  # none may act on the death of another
            os.kill(pid, signal.SIGSTOP)
        for pid in reversed(pids):
            os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not any(map(is_running, pids)), 10, "their end")
        assert readers.finish() <= {"ENOTCONN", "ECONNABORTED", "SIGBUS"}
        assert mounted.is_attached(), "or the test shows nothing"
        with pytest.raises(OSError) as caught:
            os.listdir(mounted.path)
        assert caught.value.errno == errno.ENOTCONN
        assert socket_path(os.path.realpath(mounted.path)).exists()
        assert modelfs("status").stdout.count(str(mounted.path)) == 0
        assert modelfs("unmount", mounted.path).returncode == 7
        done = modelfs(*mount_command(model, mounted.path, mounted.state_dir, "--audit", tmp_path / "audit"))
        assert done.returncode == 0, done.stderr
        assert (mounted.path / "model.bin").read_bytes() == model.plain["model.bin"]
        assert "a dead mount was left at" in mounted.log
        mounted.unmount()
        assert not mounted.is_attached(), "the dead one is not below the new one"
    finally:
        remove_what_is_left(mounted)


def is_gone_or_dead(place: Path) -> bool:
    if top_mount(os.fsencode(place)) is None:
        return True
    try:
        os.listdir(place)
    except OSError as exc:
        return exc.errno == errno.ENOTCONN
    return False


def test_control_killed_before_its_warden_is_there(model: Sealed, tmp_path: Path) -> None:
    """At every moment of the start: the next mount at that place is made, whatever is left there."""
    place = tmp_path / "mnt"
    place.mkdir()
    command = [sys.executable, "-m", "modelfs", *map(str, mount_command(model, place, tmp_path / "state", "--foreground"))]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    left_dead = 0
    for delay in (0.1, 0.01, 0.003, 0):
        assert top_mount(os.fsencode(place)) is None
        process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_until(lambda: top_mount(os.fsencode(place)) is not None, 30, "the mount")
            time.sleep(delay)
        finally:
            process.kill()
            process.wait()
        # Either its warden was there and takes the mount away by itself, or it is dead, and stays.
        wait_until(lambda: is_gone_or_dead(place), 20, "its end")
        if delay:
            left_dead += detach_dead(str(place))
    print(f"{left_dead + (top_mount(os.fsencode(place)) is not None)} of 4 mounts were left dead")
    done = modelfs(*mount_command(model, place, tmp_path / "state"))
    assert done.returncode == 0, done.stderr
    assert (place / "config.json").read_bytes() == b"{}\n"
    assert modelfs("unmount", place).returncode == 0
    assert top_mount(os.fsencode(place)) is None, "nothing dead is below it"


def test_only_a_dead_mount_is_taken_away(model: Sealed, mount: Callable[..., Mounted]) -> None:
    mounted = mount(model, "--workers", 1)
    assert not detach_dead(str(mounted.path)), "it lives"
    assert not detach_dead(str(mounted.path.parent)), "no mount at all"
    (worker,) = status(mounted)["workers"]
    os.kill(mounted.facts["warden"], signal.SIGSTOP)  # or it would end the worker
    os.kill(worker, signal.SIGSTOP)
    start = time.monotonic()
    assert not detach_dead(str(mounted.path)), "it hangs, which is not the same"
    assert time.monotonic() - start < 6
    assert mounted.is_attached()
    os.kill(mounted.facts["warden"], signal.SIGCONT)
    assert (mounted.path / "config.json").read_bytes() == b"{}\n"


CONTAINER = """
set -e
mount --rbind "$1" "$2"
echo ready
read line
cat "$2/mnt/config.json" 2>&1 || true
echo
exec sleep 60
"""


def test_a_container(model: Sealed, tmp_path: Path, program: Callable[..., Program]) -> None:
    """A mount namespace of its own, with the parent directory bound as a slave: revocation darkens it, and the next mount appears there."""
    models, inside, state = tmp_path / "models", tmp_path / "inside", tmp_path / "state"
    (models / "mnt").mkdir(parents=True)
    inside.mkdir()
    subprocess.run(["mount", "--bind", models, models], check=True)
    subprocess.run(["mount", "--make-shared", models], check=True)
    container = None
    try:
        assert modelfs(*mount_command(model, models / "mnt", state)).returncode == 0
        container = subprocess.Popen(
            ["unshare", "-m", "--propagation", "slave", "sh", "-c", CONTAINER, "sh", models, inside],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert container.stdout is not None
        assert container.stdin is not None
        assert container.stdout.readline() == "ready\n"
        within = f"/proc/{container.pid}/root{inside}/mnt"
        fd = os.open(f"{within}/model.bin", os.O_RDONLY)
        assert os.pread(fd, 1 << 20, 0) == model.plain["model.bin"][: 1 << 20]
        mapped = mmap.mmap(fd, 1 << 20, prot=mmap.PROT_READ)
        assert mapped[:4096] == model.plain["model.bin"][:4096]
        holder = program("hold", f"{within}/config.json")
        assert holder.line()["resident"] == 4096
        done = modelfs("unmount", models / "mnt")
        assert (done.returncode, "plaintext left in the page cache: 0 bytes" in done.stdout) == (0, True), done
        assert_dark(holder.finish())
        with pytest.raises(OSError):
            os.pread(fd, 4096, 0)
        os.close(fd)
        assert modelfs(*mount_command(model, models / "mnt", state)).returncode == 0
        container.stdin.write("go\n")
        container.stdin.flush()
        assert container.stdout.readline() == "{}\n", "the new mount is there by itself"
        assert modelfs("unmount", models / "mnt").returncode == 0
        assert top_mount(os.fsencode(models / "mnt")) is None
    finally:
        if container is not None:
            container.kill()
            container.communicate()
        modelfs("unmount", models / "mnt")
        subprocess.run(["umount", "-l", models], check=True)


def test_a_container_that_has_bound_the_mount_itself(model: Sealed, mount: Callable[..., Mounted], tmp_path: Path) -> None:
    """A private bind of the mountpoint stays when the mount is gone: it is dark, and stays dark when the model is mounted again."""
    inside = tmp_path / "inside"
    inside.mkdir()
    mounted = mount(model)
    script = 'mount --make-rprivate / && mount --bind "$1" "$2" && echo ready && exec sleep 60'
    container = subprocess.Popen(["unshare", "-m", "sh", "-c", script, "sh", mounted.path, inside], stdout=subprocess.PIPE, text=True)
    try:
        assert container.stdout is not None
        assert container.stdout.readline() == "ready\n"
        within = f"/proc/{container.pid}/root{inside}/model.bin"
        with open(within, "rb", buffering=0) as file:
            assert file.read(4096) == model.plain["model.bin"][:4096]
            proof = mounted.unmount()
            assert (proof["resident_bytes"], proof["detached"]) == (0, True), "nothing is resident, or in the host's table"
            with pytest.raises(OSError):
                file.read(4096)
        assert modelfs(*mount_command(model, mounted.path, mounted.state_dir)).returncode == 0
        with pytest.raises(OSError) as caught:
            os.stat(within)
        assert caught.value.errno == errno.ENOTCONN
    finally:
        container.kill()
        container.communicate()


def test_4096_open_descriptors(model: Sealed, mount: Callable[..., Mounted]) -> None:
    """They cost the mount nothing, outlive a worker, and all go dark."""
    mounted = mount(model, "--workers", 1)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096 + 512)), hard))
    fds: list[int] = []
    try:
        fds += [os.open(mounted.path / "model.bin", os.O_RDONLY | os.O_DIRECT) for _ in range(4096)]
        (worker,) = status(mounted)["workers"]
        assert len(os.listdir(f"/proc/{worker}/fd")) < 64
        os.kill(worker, signal.SIGKILL)
        buffer = mmap.mmap(-1, 4096)
        for number, fd in enumerate(fds):
            offset = number * 4096 % (len(model.plain["model.bin"]) - 4096)
            assert os.preadv(fd, [buffer], offset) == 4096
            assert buffer[:] == model.plain["model.bin"][offset : offset + 4096]
        assert mounted.unmount()["resident_bytes"] == 0
        for fd in fds:
            with pytest.raises(OSError):
                os.preadv(fd, [buffer], 0)
    finally:
        for fd in fds:
            os.close(fd)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
