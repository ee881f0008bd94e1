"""The audit trail of a mount, and a mount that must not serve without one."""

import json
import subprocess
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest

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
            assert mounted.status()["lease"] == ("paused" if required else mounted.status()["lease"])
        finally:
            model.keys.kek.with_name("away").rename(model.keys.kek)
        if not required:
            time.sleep(1.5)
            assert (mounted.path / "model.bin").read_bytes() == b"weights"
        mounted.unmount()
    finally:
        subprocess.run(["umount", "-l", disk], check=True)
