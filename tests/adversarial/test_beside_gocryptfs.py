"""The same five things done to the storage of a modelfs mount and of a gocryptfs mount; docs/RELIABILITY.md says what came of it."""

import errno
import os
import random
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from modelfs.mount.mountinfo import top_mount
from tests.conftest import SealedBuilder
from tests.helpers import REPOSITORY, seal
from tests.mount.conftest import modelfs, mount_command, wait_until

SIZE = 256 * 1024
FLIP, SWAP_A, SWAP_B, CUT, OLD, ZERO = FILES = ("flipped", "swapped-a", "swapped-b", "truncated", "rolled-back", "zeroed")
ROWS = {
    "one bit flipped": [FLIP],
    "two files of one size swapped": [SWAP_A, SWAP_B],
    "truncated at a block boundary": [CUT],
    "rolled back to an older version of the file": [OLD],
    "a block of zeros": [ZERO],
}
READ, REFUSED = "wrong content, read without an error", "refused (EIO)"

MODELFS = (0, 4096 + 16)
"""Bytes before the first block, and of a block, in the storage; here with blocks of 4 KiB, as gocryptfs has."""
GOCRYPTFS = (18, 4096 + 32)


def damage(stored: dict[str, Path], older: Path, layout: tuple[int, int]) -> None:
    """Do it, to each file what its name says."""
    head, block = layout
    with open(stored[FLIP], "r+b") as file:
        file.seek(head + 5 * block + 100)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))
    first, second = stored[SWAP_A].read_bytes(), stored[SWAP_B].read_bytes()
    stored[SWAP_A].write_bytes(second)
    stored[SWAP_B].write_bytes(first)
    os.truncate(stored[CUT], head + 32 * block)
    shutil.copyfile(older, stored[OLD])
    with open(stored[ZERO], "r+b") as file:
        file.seek(head + 5 * block)
        file.write(bytes(block))


def outcomes(place: Path, plain: dict[str, bytes]) -> dict[str, str]:
    """What a reader of each row's files is given."""
    found = {}
    for row, names in ROWS.items():
        seen = set()
        for name in names:
            try:
                got = (place / name).read_bytes()
            except OSError as exc:
                seen.add(REFUSED if exc.errno == errno.EIO else str(exc))
            else:
                seen.add("not damaged" if got == plain[name] else READ)
        (found[row],) = seen
    return found


@pytest.fixture
def plain() -> tuple[dict[str, bytes], dict[str, bytes]]:
    """Content of every file, and before the last change; where both can be mounted."""
    if (os.geteuid() != 0 or not os.path.exists("/dev/fuse")) and not os.environ.get("CI"):
        pytest.skip("needs root and /dev/fuse")  # in CI it runs, and fails
    chance = random.Random(9)
    now = {name: chance.randbytes(SIZE) for name in FILES}
    return now, {**now, OLD: chance.randbytes(SIZE)}


def of_modelfs(sealed: SealedBuilder, plain: tuple[dict[str, bytes], dict[str, bytes]], base: Path) -> dict[str, str]:
    now, before = plain
    model = sealed(before, block_size=4096)
    shutil.copyfile(model.blob_path(OLD), base / "older")
    (model.source / OLD).write_bytes(now[OLD])
    seal(model.keys, model.source, model.path, release=2, block_size=4096)
    damage({name: model.blob_path(name) for name in FILES}, base / "older", MODELFS)
    place = base / "modelfs"
    place.mkdir()
    done = modelfs(*mount_command(model, place, base / "state"))
    assert done.returncode == 0, done.stderr
    try:
        return outcomes(place, now)
    finally:
        assert modelfs("unmount", place).returncode == 0


@contextmanager
def gocryptfs(store: Path, place: Path, password: Path) -> Iterator[None]:
    subprocess.run(["gocryptfs", "-q", "-passfile", password, store, place], check=True)
    try:
        yield
    finally:
        subprocess.run(["fusermount3", "-u", place], check=True)
        wait_until(lambda: top_mount(os.fsencode(place)) is None)


def of_gocryptfs(plain: tuple[dict[str, bytes], dict[str, bytes]], base: Path) -> dict[str, str]:
    now, before = plain
    store, place, password = base / "store", base / "gocryptfs", base / "password"
    store.mkdir()
    place.mkdir()
    password.write_text("correct horse\n")
    subprocess.run(["gocryptfs", "-init", "-q", "-scryptn", "10", "-passfile", password, store], check=True)
    stored: dict[str, Path] = {}
    with gocryptfs(store, place, password):
        for name in FILES:
            known = set(store.iterdir())
            (place / name).write_bytes(before[name])
            (stored[name],) = set(store.iterdir()) - known
    shutil.copyfile(stored[OLD], base / "older-gocryptfs")
    with gocryptfs(store, place, password):
        (place / OLD).write_bytes(now[OLD])
    damage(stored, base / "older-gocryptfs", GOCRYPTFS)
    with gocryptfs(store, place, password):
        return outcomes(place, now)


@pytest.mark.fuse
def test_both_columns_are_as_the_document_has_them(
    sealed: SealedBuilder, plain: tuple[dict[str, bytes], dict[str, bytes]], tmp_path: Path
) -> None:
    ours, theirs = of_modelfs(sealed, plain, tmp_path), of_gocryptfs(plain, tmp_path)
    assert set(ours.values()) == {REFUSED}
    text = (REPOSITORY / "docs" / "RELIABILITY.md").read_text()
    for row in ROWS:
        assert f"| {row} | {ours[row]} | {theirs[row]} |" in text, (row, ours[row], theirs[row])
