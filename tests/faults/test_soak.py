"""scripts/soak runs, finds nothing, and would find something."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from modelfs.mount.mountinfo import read_mounts
from tests.conftest import fuse_mounts
from tests.helpers import REPOSITORY
from tests.mount.conftest import wait_until


def soak(tmp_path: Path, *options: object) -> "subprocess.Popen[str]":
    env = {**os.environ, "PYTHONPATH": f"{REPOSITORY / 'scripts'}{os.pathsep}{REPOSITORY}", "TMPDIR": str(tmp_path)}
    command = [sys.executable, REPOSITORY / "scripts" / "soak.py", "--json", tmp_path / "summary.json", *options]
    return subprocess.Popen(list(map(str, command)), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env)


def test_a_short_soak(tmp_path: Path) -> None:
    process = soak(tmp_path, "--minutes", 0.25, "--readers", 3)
    out, err = process.communicate(timeout=200)
    print(out)
    assert process.returncode == 0, out + err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert summary["passed"]
    assert (summary["wrong"], summary["unexpected"], summary["failures"]) == (0, 0, [])
    assert summary["reads"] > 100
    assert sum(summary["events"].values()) >= 3
    assert out.startswith(f"seed {summary['seed']}\n")
    assert out.endswith("soak passed\n")
    assert not fuse_mounts(tmp_path)


def test_it_sees_a_mount_that_disappears_from_its_readers(tmp_path: Path) -> None:
    """Errors where none is expected make it fail: somebody else takes the mount away again and again."""
    process = soak(tmp_path, "--minutes", 1, "--readers", 3)
    stop = threading.Event()

    def take_away() -> None:
        while not stop.wait(0.2):
            for mount in read_mounts():
                if mount.fs_type == "fuse.modelfs" and mount.mountpoint.startswith(os.fsencode(tmp_path)):
                    time.sleep(1)
                    subprocess.run(["umount", "-l", os.fsdecode(mount.mountpoint)], check=False, capture_output=True)

    thread = threading.Thread(target=take_away)
    thread.start()
    try:
        out, err = process.communicate(timeout=200)
    finally:
        stop.set()
        thread.join()
    assert process.returncode == 1
    assert out.endswith("soak FAILED\n"), out + err
    summary = json.loads((tmp_path / "summary.json").read_text())
    assert not summary["passed"]
    assert summary["failures"]
    wait_until(lambda: not fuse_mounts(tmp_path), 20, "the end of its mounts")


@pytest.mark.parametrize("options", [["--minutes", "soon"], ["--seed", "x"]])
def test_refusals(tmp_path: Path, options: list[str]) -> None:
    process = soak(tmp_path, *options)
    assert process.wait(60) == 2
    process.communicate()


@pytest.mark.parametrize("arguments", [("--minutes", 0), ("--minutes", -1), ("--minutes", "nan"), ("--json", "/nowhere/summary")])
def test_what_cannot_be_soaked_is_refused_at_once(tmp_path: Path, arguments: tuple[object, ...]) -> None:
    process = soak(tmp_path, *arguments)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 2, out + err
    assert "Traceback" not in err
    assert "passed" not in out
