"""Ctrl-C while `modelfs mount` waits for its daemon: it says that it is mounted, and is, or it is not."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from modelfs.mount.mountinfo import top_mount
from tests.conftest import SealedBuilder
from tests.helpers import REPOSITORY
from tests.mount.conftest import modelfs, mount_command, wait_until


def test_at_any_moment(sealed: SealedBuilder, tmp_path: Path) -> None:
    model, place = sealed({"f": b"x" * 5000}), tmp_path / "mnt"
    place.mkdir()
    seed = int.from_bytes(os.urandom(4))
    print(f"seed {seed}")
    chance = random.Random(seed)
    command = [sys.executable, "-m", "modelfs", *map(str, mount_command(model, place, tmp_path / "state"))]
    begun = time.monotonic()
    assert subprocess.run(command, check=False, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}).returncode == 0
    takes_s = time.monotonic() - begun
    assert modelfs("unmount", place).returncode == 0
    interrupted, attempts = 0, 0
    while attempts < 16 or (interrupted < 3 and attempts < 60):  # the machine is faster and slower from one moment to the next
        attempts += 1
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        )  # fmt: skip
        time.sleep(takes_s * chance.uniform(0.2, 1.0))
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGINT)
        out, err = process.communicate(timeout=30)
        if process.returncode == 0:
            assert out.startswith("mounted ")
            assert modelfs("unmount", place).returncode == 0
        else:
            interrupted += 1
            assert (process.returncode, out, err) in ((1, "", "modelfs: interrupted\n"), (-signal.SIGINT, "", ""))
            wait_until(lambda: top_mount(os.fsencode(place)) is None, 10, "the end of what had come to life")
    assert interrupted >= 3, "no attempt was interrupted, and the test shows nothing"
