"""rotate killed at random moments: the old or the new release mounts, never neither; and a mount of the old one goes on meanwhile."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from modelfs.seal.retention import collect_garbage
from modelfs.store.local import Store
from tests.adversarial.test_rotate_kill import kill_at
from tests.conftest import SealedBuilder
from tests.helpers import MODEL, REPOSITORY, KeySet, Sealed, rotate
from tests.mount.conftest import Mounted

pytestmark = pytest.mark.fuse

FILES = {f"f{n:02}": os.urandom(200_000 + n) for n in range(20)} | {"large": os.urandom(15_000_000)}
MOMENTS = [pytest.param(3, id="3 moments"), pytest.param(20, id="20 moments", marks=[pytest.mark.slow, pytest.mark.timeout(1800)])]


def begin(model: Sealed, release: int) -> "subprocess.Popen[bytes]":
    """Start `modelfs rotate`, and wait until it has a plan or has ended."""
    keys = model.keys
    arguments = ["rotate", model.path, "--model", MODEL, "--release", release, "--kek", f"file:{keys.kek}", "--sign-key", keys.signing]
    command = [sys.executable, "-m", "modelfs", *map(str, [*arguments, "--trust", keys.public])]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not list((model.path / "pending").glob("journal-*")):
        time.sleep(0.001)
    return process


def read(mounted: Mounted) -> dict[str, bytes]:
    return {name: (mounted.path / name).read_bytes() for name in os.listdir(mounted.path)}


@pytest.mark.parametrize("moments", MOMENTS)
def test_killed_at_random_moments_a_release_mounts(sealed: SealedBuilder, mount: Callable[..., Mounted], moments: int) -> None:
    model = sealed(FILES, block_size=131072)
    total = sum(file.stat().st_size for file in (model.path / "blobs").iterdir())
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    release, killed, outcomes = 1, 0, []
    for _ in range(moments):
        old = set(os.listdir(model.path / "blobs"))
        killed += kill_at(begin(model, release + 1), model.path, old, total, dice)
        mounted = mount(model)
        found = mounted.facts["release"]
        assert found in (release, release + 1)
        outcomes.append("new" if found > release else "old")
        assert read(mounted) == FILES
        mounted.unmount()
        if found == release:
            assert begin(model, release + 1).wait() == 0
        release += 1
        with Store(model.path) as store, store.writer_lock():
            collect_garbage(store, 1)
    mounted = mount(model)
    assert mounted.facts["release"] == release
    assert read(mounted) == FILES
    print(f"{killed} of {moments} killed while running; mounted afterwards: {outcomes}")
    assert killed >= moments // 2


def test_a_mount_of_the_old_release_goes_on(sealed: SealedBuilder, mount: Callable[..., Mounted], keys_dir: KeySet) -> None:
    model = sealed(FILES)
    old = mount(model)
    rotate(keys_dir, model.path, release=2)
    assert read(old) == FILES
    new = mount(model)
    assert new.facts["release"] == 2
    assert read(new) == FILES
