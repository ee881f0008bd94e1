"""Workers killed in mid-read: replaced, no reader sees an error, no byte is wrong."""

import os
import random
import signal
import time
from collections.abc import Callable

import pytest

from tests.conftest import SealedBuilder
from tests.mount.conftest import Mounted, Program

SIZE = 32 << 20
KILLS = 12


@pytest.mark.parametrize("workers", [1, 3])
def test_killed_workers_are_replaced_unseen(
    sealed: SealedBuilder, mount: Callable[..., Mounted], program: Callable[..., Program], workers: int
) -> None:
    model = sealed({"model.bin": random.Random(1).randbytes(SIZE)}, block_size=128 * 1024)
    mounted = mount(model, "--workers", workers)
    plain = model.source / "model.bin"
    readers = [program("loop", mode, mounted.path / "model.bin", plain) for mode in ("buffered", "direct", "mmap")]
    for reader in readers:
        reader.line()
    for _ in range(KILLS):
        time.sleep(random.uniform(0.02, 0.25))
        os.kill(random.choice(mounted.status()["workers"]), signal.SIGKILL)
    time.sleep(0.5)
    results = [reader.finish() for reader in readers]
    status = mounted.status()
    assert status["worker_deaths"] == KILLS
    assert len(status["workers"]) == workers
    assert status["state"] == "serving"
    for result in results:
        assert result["reads"] > 50, results
        assert result["wrong"] == 0, results
        assert result["errors"] == [], results
    assert (mounted.path / "model.bin").read_bytes() == plain.read_bytes()
