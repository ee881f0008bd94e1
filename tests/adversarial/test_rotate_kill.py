"""A rotation killed at any moment: the old or the new release is whole, never neither, and the next run goes on from what was finished."""

import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.adversarial.test_seal_kill import (
    PUBLISHING,
    Ledger,
    check_finished,
    contents,
    finish,
    no_leftovers,
    run_until,
    start,
)
from tests.helpers import BLOCK, MODEL, KeySet, seal, write_tree


def command(keys: KeySet, path: Path, release: int) -> list[str]:
    """Arguments of `modelfs rotate`."""
    return [
        "rotate", str(path), "--model", MODEL, "--release", str(release), "--kek", f"file:{keys.kek}",
        "--sign-key", str(keys.signing), "--trust", str(keys.public), "--json",
    ]  # fmt: skip


def check_rerun(ledger: Ledger, keys: KeySet, plain: dict[str, bytes], target: int, published: int) -> int:
    """Run it again after a kill; what was finished must stay as it is. The release that is there then."""
    path = ledger.path
    if published == target:  # it died after publishing: that is done, and a rerun says so
        again = finish(command(keys, path, target))
        assert again.returncode == 4, again.stderr
        assert "does not grow" in again.stderr
        return target
    before = ledger.finished
    done = finish(command(keys, path, target))
    assert done.returncode == 0, done.stderr
    assert ledger.check_release({target: plain}) == target
    ledger.look()
    check_finished(ledger, before, {**json.loads(done.stdout), "reused": 0}, path)
    no_leftovers(path)
    return target


def kill_at(process: "subprocess.Popen[bytes]", path: Path, old: set[str], total: int, dice: random.Random) -> bool:
    """SIGKILL at a random point of the work: a fraction of the `total` bytes to write, or some time after all are written.

    By bytes and not by the clock: how long it all takes is another thing on each run of a busy machine.
    """
    blobs = path / "blobs"

    def written() -> int:
        return sum(file.stat().st_size for file in blobs.iterdir() if file.name not in old)

    target = dice.uniform(0, 1.2)
    while process.poll() is None and written() < min(target, 0.99) * total:
        time.sleep(0.0005)
    if target > 1:
        time.sleep(dice.uniform(0, 0.2))
    process.send_signal(signal.SIGKILL)
    return process.wait() == -signal.SIGKILL


MOMENTS = [pytest.param(4, id="4 moments"), pytest.param(20, id="20 moments", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]


@pytest.mark.parametrize("moments", MOMENTS)
def test_rotate_killed_at_random_moments(keys_dir: KeySet, tmp_path: Path, moments: int) -> None:
    source = write_tree(
        tmp_path / "src", {f"d{n % 4}/f{n:02}": os.urandom(100_000 + n) for n in range(40)} | {"large": os.urandom(8_000_000)}
    )
    path, plain = tmp_path / "sealed", contents(source)
    seal(keys_dir, source, path, block_size=BLOCK)
    total = sum(file.stat().st_size for file in (path / "blobs").iterdir())
    ledger, killed, release = Ledger(path, keys_dir), 0, 1
    ledger.look()
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    for _ in range(moments):
        process = start(command(keys_dir, path, release + 1), path)
        killed += kill_at(process, path, set(ledger.contents), total, dice)
        ledger.look()
        published = ledger.check_release({release: plain, release + 1: plain})
        assert published in (release, release + 1)
        release = check_rerun(ledger, keys_dir, plain, release + 1, published)
    assert killed >= moments // 2, f"only {killed} of {moments} runs were still running when they were killed"


class Scene:
    """A sealed model that is about to be rotated."""

    def __init__(self, root: Path, keys: KeySet) -> None:
        self.source = write_tree(root / "src", {f"f{n:02}": os.urandom(3 * BLOCK + n) for n in range(8)})
        self.path = root / "sealed"
        self.plain = contents(self.source)
        seal(keys, self.source, self.path)
        self.arguments = command(keys, self.path, 2)


def check_kill(scene: Scene, keys: KeySet, phase: str, call: int) -> None:
    ledger = Ledger(scene.path, keys)
    ledger.look()
    killed = run_until(phase, call, scene.arguments)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    ledger.look()
    published = ledger.check_release({1: scene.plain, 2: scene.plain})
    assert published in (1, 2)
    check_rerun(ledger, keys, scene.plain, 2, published)


@pytest.mark.parametrize("call", [1, 5, 12, 30])
def test_rotate_killed_before_a_call(keys_dir: KeySet, tmp_path: Path, call: int) -> None:
    check_kill(Scene(tmp_path, keys_dir), keys_dir, "start", call)


def test_rotate_killed_after_a_journal_line(keys_dir: KeySet, tmp_path: Path) -> None:
    check_kill(Scene(tmp_path, keys_dir), keys_dir, "journal", 1)


SOME = (1, 8, 12, 14, 18, 21)
EVERY = [call if call in SOME else pytest.param(call, marks=pytest.mark.slow) for call in range(1, PUBLISHING + 1)]


@pytest.mark.parametrize("call", EVERY)
def test_rotate_killed_while_it_publishes(keys_dir: KeySet, tmp_path: Path, call: int) -> None:
    check_kill(Scene(tmp_path, keys_dir), keys_dir, "publish", call)


def test_publishing_has_the_calls_that_are_killed_above(keys_dir: KeySet, tmp_path: Path) -> None:
    done = run_until("publish", 0, Scene(tmp_path, keys_dir).arguments)
    assert done.returncode == 0, done.stderr
    assert int(done.stderr.splitlines()[-1]) == PUBLISHING
