"""The audit trail of a mount, and a mount that must not serve without one."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import pytest

from modelfs.control.process import is_running
from modelfs.mount.mountinfo import top_mount
from tests.conftest import SealedBuilder
from tests.mount.conftest import Mounted, modelfs, mount_command, wait_until


def events(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_event_with_its_facts(sealed: SealedBuilder, mount: Callable[..., Mounted], tmp_path: Path) -> None:
    model = sealed({"model.bin": b"weights"})
    audit = tmp_path / "audit.jsonl"
    mounted = mount(model, "--audit", audit)
    assert modelfs("lock", mounted.path).returncode == 0
    assert modelfs("unlock", mounted.path).returncode == 0
    mounted.unmount()
    found = events(audit)
    assert [event["event"] for event in found] == ["mount", "locked", "unlock", "unmount"]
    for event in found:
        assert (event["model"], event["release"]) == ("demo", 1)
        assert str(event["kek"]).startswith("file:")
        assert datetime.fromisoformat(str(event["time"])).tzinfo is not None
        assert event["reason"]
    proof = found[-1]["proof"]
    assert isinstance(proof, dict)
    assert proof["resident_bytes"] == 0
    assert audit.stat().st_mode & 0o777 == 0o600


def test_an_audit_log_that_cannot_be_written_refuses_the_mount(sealed: SealedBuilder, tmp_path: Path) -> None:
    model = sealed({"model.bin": b"weights"})
    (tmp_path / "mnt").mkdir()
    done = modelfs(*mount_command(model, tmp_path / "mnt", tmp_path / "state", "--audit", tmp_path / "missing" / "audit"))
    assert done.returncode == 2
    assert "audit log" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_audit_log_below_the_mountpoint_is_refused(sealed: SealedBuilder, tmp_path: Path) -> None:
    """The mount would hide it, and whoever looks for it there asks the mount itself."""
    model = sealed({"model.bin": b"weights"})
    (tmp_path / "mnt").mkdir()
    done = modelfs(*mount_command(model, tmp_path / "mnt", tmp_path / "state", "--audit", tmp_path / "mnt" / "audit"))
    assert (done.returncode, "lies where the model is to be mounted" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize(("option", "inside"), [("--log", "x.log"), ("--state-dir", "state")])
def test_nothing_else_is_written_below_the_mountpoint_either(sealed: SealedBuilder, tmp_path: Path, option: str, inside: str) -> None:
    model, mountpoint = sealed({"model.bin": b"weights"}), tmp_path / "mnt"
    mountpoint.mkdir()
    done = modelfs(*mount_command(model, mountpoint, tmp_path / "state", option, mountpoint / inside))
    assert (done.returncode, f"name another place with {option}" in done.stderr) == (2, True), done.stderr
    assert list(mountpoint.iterdir()) == [], "the next try would be told that it is not empty"
    assert os.listdir(tmp_path / "mnt") == []


def test_a_pipe_is_no_audit_log(sealed: SealedBuilder, tmp_path: Path) -> None:
    model = sealed({"model.bin": b"weights"})
    (tmp_path / "mnt").mkdir()
    for path, make in ((tmp_path / "pipe", os.mkfifo), (tmp_path / "directory", os.mkdir)):
        make(path)
        done = modelfs(*mount_command(model, tmp_path / "mnt", tmp_path / "state", "--audit", path), timeout=20)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    with open(os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)) as reader:
        done = modelfs(*mount_command(model, tmp_path / "mnt", tmp_path / "state", "--audit", tmp_path / "pipe"), timeout=20)
        assert done.returncode == 2
        assert "is no regular file" in done.stderr
        assert reader.read() == ""


def test_an_audit_log_that_is_required_must_be_named(sealed: SealedBuilder, tmp_path: Path) -> None:
    model = sealed({"model.bin": b"weights"})
    done = modelfs(*mount_command(model, tmp_path, tmp_path / "state", "--audit-required"))
    assert done.returncode == 2
    assert "name the file" in done.stderr


def test_a_lock_after_an_outage_is_recorded_too(sealed: SealedBuilder, mount: Callable[..., Mounted], tmp_path: Path) -> None:
    """Both make the mount dark, but only one of them ends by itself."""
    model = sealed({"model.bin": b"weights"})
    audit = tmp_path / "audit.jsonl"
    mounted = mount(model, "--audit", audit, "--renew-every", 0.5, "--ttl", 2)
    away = model.keys.kek.rename(model.keys.kek.with_name("away"))
    try:
        wait_until(lambda: mounted.status()["lease"] == "locked", 10, "the lease's end")
        assert modelfs("lock", mounted.path).returncode == 0
        assert modelfs("lock", mounted.path).returncode == 0
    finally:
        away.rename(model.keys.kek)
    found = events(audit)
    kinds = [event["event"] for event in found]
    assert kinds[:2] == ["mount", "renewal failed"]
    locked = [event["reason"] for event in found if event["event"] == "locked"]
    assert locked == ["the lease ran out", "an operator locked the mount"]
    assert modelfs("unlock", mounted.path).returncode == 0
    assert events(audit)[-1]["event"] == "unlock"


def test_a_rotated_audit_log_goes_on_under_its_name(sealed: SealedBuilder, mount: Callable[..., Mounted], tmp_path: Path) -> None:
    model = sealed({"model.bin": b"weights"})
    (tmp_path / "log").mkdir()
    audit = tmp_path / "log" / "audit.jsonl"
    mounted = mount(model, "--audit", audit, "--audit-required")
    old = audit.rename(tmp_path / "old.jsonl")
    assert modelfs("lock", mounted.path).returncode == 0
    assert [event["event"] for event in events(old)] == ["mount"]
    assert [event["event"] for event in events(audit)] == ["locked"]
    assert audit.stat().st_mode & 0o777 == 0o600
    audit.unlink()
    (tmp_path / "log").rmdir()
    done = modelfs("unlock", mounted.path)
    assert (done.returncode, "nothing is served unaudited: cannot write the audit log" in done.stderr) == (7, True), done
    (tmp_path / "log").mkdir()
    assert modelfs("unlock", mounted.path).returncode == 0
    assert [event["event"] for event in events(audit)] == ["unlock"]
    audit.unlink()
    warden = mounted.status()["warden"]
    os.kill(mounted.status()["control"], signal.SIGKILL)
    wait_until(lambda: not is_running(warden), 20, "the warden's end")
    assert [event["event"] for event in events(audit)] == ["revoked"], "the warden looks, too"


def test_the_warden_records_the_end_of_a_mount_whose_control_process_was_killed(
    sealed: SealedBuilder, mount: Callable[..., Mounted], tmp_path: Path
) -> None:
    model = sealed({"model.bin": b"weights"})
    audit = tmp_path / "audit.jsonl"
    mounted = mount(model, "--audit", audit)
    assert (mounted.path / "model.bin").read_bytes() == b"weights"
    warden = mounted.status()["warden"]
    os.kill(mounted.status()["control"], signal.SIGKILL)
    wait_until(lambda: not is_running(warden), 20, "the warden's end")
    last = events(audit)[-1]
    assert (last["event"], last["reason"], last["model"], last["release"]) == ("revoked", "control died", "demo", 1)
    assert isinstance(last["proof"], dict)
    assert last["proof"]["resident_bytes"] == 0


def test_the_end_of_a_mount_whose_warden_was_killed(sealed: SealedBuilder, mount: Callable[..., Mounted], tmp_path: Path) -> None:
    model = sealed({"model.bin": b"weights"})
    audit = tmp_path / "audit.jsonl"
    mounted = mount(model, "--audit", audit)
    status = mounted.status()
    os.kill(status["warden"], signal.SIGKILL)
    wait_until(lambda: not is_running(status["control"]), 20, "control's end")
    assert [event["event"] for event in events(audit)] == ["mount", "revoked"]
    last = events(audit)[-1]
    assert (last["reason"], isinstance(last["proof"], dict)) == ("the warden died", True)


@pytest.fixture
def full_disk(tmp_path: Path) -> Iterator[Path]:
    """A file on a disk without room, to which nothing can be appended."""
    disk = tmp_path / "full"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "none", disk], check=True)
    try:
        (disk / "audit").write_bytes(b"\n" * 4096)
        yield disk / "audit"
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


def test_a_mount_that_cannot_record_its_beginning_says_so(sealed: SealedBuilder, mount: Callable[..., Mounted], full_disk: Path) -> None:
    model = sealed({"model.bin": b"weights"})
    mounted = mount(model, "--audit", full_disk)
    assert "No space left" in mounted.status()["audit_error"]
    assert "not audited: cannot write the audit log" in modelfs("status", mounted.path).stdout
    assert (mounted.path / "model.bin").read_bytes() == b"weights"
    mounted.unmount()
    done = modelfs(*mount_command(model, mounted.path, mounted.state_dir, "--audit", full_disk))
    try:
        assert done.returncode == 0
        assert "mounted, and not audited: cannot write the audit log" in done.stderr
    finally:
        modelfs("unmount", mounted.path)


def test_a_mount_that_cannot_record_its_beginning_and_must_is_refused(sealed: SealedBuilder, full_disk: Path, tmp_path: Path) -> None:
    model = sealed({"model.bin": b"weights"})
    (tmp_path / "mnt").mkdir()
    done = modelfs(*mount_command(model, tmp_path / "mnt", tmp_path / "state", "--audit", full_disk, "--audit-required"))
    assert done.returncode == 2
    assert "nothing is served without it" in done.stderr
    assert top_mount(os.fsencode(tmp_path / "mnt")) is None


@pytest.mark.parametrize("required", [True, False])
def test_a_full_disk_under_the_audit_log(sealed: SealedBuilder, mount: Callable[..., Mounted], tmp_path: Path, required: bool) -> None:
    model = sealed({"model.bin": b"weights"})
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", disk], check=True)
    try:
        options = ["--audit", disk / "audit", "--renew-every", 1, "--ttl", 4]
        mounted = mount(model, *options, *(["--audit-required"] if required else []))
        with open(disk / "filler", "wb", buffering=0) as filler:
            try:
                while filler.write(b"x" * 4096):
                    pass
            except OSError:
                pass
        padding = disk / "audit"
        with open(padding, "ab", buffering=0) as file:  # fill the log's own last page too
            try:
                while file.write(b"\n"):
                    pass
            except OSError:
                pass
        model.keys.kek.rename(model.keys.kek.with_name("away"))
        try:
            wait_until(lambda: mounted.status()["audit_error"] is not None, 10, "the audit error in status")
            assert "disk" in str(mounted.status()["audit_error"]) or "space" in str(mounted.status()["audit_error"])
            if required:
                assert mounted.status()["lease"] == "paused"
        finally:
            model.keys.kek.with_name("away").rename(model.keys.kek)
        if required:
            done = modelfs("unlock", mounted.path)
            assert (done.returncode, "still locked: nothing is served unaudited: " in done.stderr) == (7, True), done
            (disk / "filler").unlink()
            assert modelfs("unlock", mounted.path).returncode == 0
            assert mounted.status()["audit_error"] is None
        else:
            time.sleep(1.5)
        assert (mounted.path / "model.bin").read_bytes() == b"weights"
        mounted.unmount()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
