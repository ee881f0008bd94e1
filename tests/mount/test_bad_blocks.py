"""A bad block costs the reads that need it and one clear log line; the rest of the model stays readable."""

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import SealedBuilder
from tests.helpers import Sealed
from tests.mount.conftest import Mounted, modelfs, mount_command

BLOCK = 128 * 1024
STEP = BLOCK + 16
SIZE = 16 * BLOCK + 77
BAD = 5
PLAIN = random.Random(10).randbytes(SIZE)
OTHER = random.Random(11).randbytes(SIZE)


@pytest.fixture
def model(sealed: SealedBuilder) -> Sealed:
    return sealed({"model.bin": PLAIN, "other.bin": OTHER}, block_size=BLOCK)


def flip(path: Path, offset: int) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def swap_blocks(path: Path, first: int, second: int) -> None:
    data = bytearray(path.read_bytes())
    a, b = slice(first * STEP, (first + 1) * STEP), slice(second * STEP, (second + 1) * STEP)
    data[a], data[b] = data[b], data[a]
    path.write_bytes(data)


def zero_block(path: Path, block: int) -> None:
    with open(path, "r+b") as file:
        file.seek(block * STEP)
        file.write(bytes(STEP))


DAMAGE: dict[str, tuple[Callable[[Path, Path], object], set[int]]] = {
    "flipped byte": (lambda blob, other: flip(blob, BAD * STEP + 1000), {BAD}),
    "flipped tag": (lambda blob, other: flip(blob, BAD * STEP + BLOCK + 3), {BAD}),
    "swapped blocks": (lambda blob, other: swap_blocks(blob, BAD, BAD + 2), {BAD, BAD + 2}),
    "zeroed block": (lambda blob, other: zero_block(blob, BAD), {BAD}),
    "truncated at a block": (lambda blob, other: os.truncate(blob, 14 * STEP), {14, 15, 16}),
    "truncated in a block": (lambda blob, other: os.truncate(blob, 14 * STEP + 5), {14, 15, 16}),
    "another file's blob": (lambda blob, other: blob.write_bytes(other.read_bytes()), set(range(17))),
    "emptied": (lambda blob, other: os.truncate(blob, 0), set(range(17))),
    "deleted": (lambda blob, other: blob.unlink(), set(range(17))),
    "digests flipped": (lambda blob, other: flip(blob.with_name(blob.name + ".digests"), 32 + 40), set(range(17))),
    "digests deleted": (lambda blob, other: blob.with_name(blob.name + ".digests").unlink(), set(range(17))),
}


def read_blocks(path: Path, flags: int = 0) -> dict[int, bytes | int]:
    """Each block of a file by a pread of its own: its bytes, or the errno."""
    got: dict[int, bytes | int] = {}
    try:
        fd = os.open(path, os.O_RDONLY | flags)
    except OSError as exc:
        return dict.fromkeys(range(17), exc.errno or 0)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
    for block in range(17):
        try:
            got[block] = os.pread(fd, BLOCK, block * BLOCK)
        except OSError as exc:
            got[block] = exc.errno or 0
    os.close(fd)
    return got


@pytest.mark.parametrize("damage", DAMAGE)
def test_only_the_bad_blocks_fail(model: Sealed, mount: Callable[..., Mounted], damage: str) -> None:
    act, bad = DAMAGE[damage]
    act(model.blob_path("model.bin"), model.blob_path("other.bin"))
    mounted = mount(model)
    got = read_blocks(mounted.path / "model.bin")
    for block in range(17):
        want = errno.EIO if block in bad else PLAIN[block * BLOCK : (block + 1) * BLOCK]
        assert got[block] == want, f"block {block}"
    assert (mounted.path / "other.bin").read_bytes() == OTHER
    lines = [line for line in mounted.log.splitlines() if " ERROR " in line]
    assert lines
    assert all("model.bin" in line and "EIO" in line and model.entry("model.bin").blob in line for line in lines)
    assert "Traceback" not in mounted.log


def test_the_log_names_file_block_and_digests_once(model: Sealed, mount: Callable[..., Mounted]) -> None:
    flip(model.blob_path("model.bin"), BAD * STEP + 1000)
    mounted = mount(model, "--workers", 1)
    for _ in range(50):
        assert read_blocks(mounted.path / "model.bin")[BAD] == errno.EIO
    lines = [line for line in mounted.log.splitlines() if " ERROR " in line]
    assert len(lines) == 1, lines
    assert f"block {BAD}: digest " in lines[0]
    assert "instead of the signed " in lines[0]


def test_a_plain_sequential_read_gets_all_up_to_the_bad_block(model: Sealed, mount: Callable[..., Mounted]) -> None:
    flip(model.blob_path("model.bin"), BAD * STEP + 1000)
    mounted = mount(model)
    got = b""
    with open(mounted.path / "model.bin", "rb", buffering=0) as file, pytest.raises(OSError) as caught:
        while part := file.read(4096):
            got += part
    assert caught.value.errno == errno.EIO
    assert got == PLAIN[: BAD * BLOCK]


def test_a_bad_block_that_only_the_kernel_reads_ahead_is_nobodys_error(sealed: SealedBuilder, mount: Callable[..., Mounted]) -> None:
    """Read-ahead asks for a MiB at a time: what it finds must not be told to a reader who never comes to the bad block."""
    plain, bad = random.Random(12).randbytes(8 << 20), 37
    model = sealed({"model.bin": plain}, block_size=BLOCK)
    flip(model.blob_path("model.bin"), bad * STEP + 9)
    mounted = mount(model)
    with open(mounted.path / "model.bin", "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        got = b"".join(file.read(BLOCK) for _ in range(bad))
        assert got == plain[: bad * BLOCK]
        with pytest.raises(OSError) as caught:
            file.read(BLOCK)
        assert caught.value.errno == errno.EIO
        file.seek((bad + 1) * BLOCK)
        rest = b""
        while part := file.read(1 << 20):
            rest += part
    assert rest == plain[(bad + 1) * BLOCK :]


def test_ciphertext_that_changes_while_mounted(model: Sealed, mount: Callable[..., Mounted]) -> None:
    mounted = mount(model)
    assert read_blocks(mounted.path / "other.bin")[0] == OTHER[:BLOCK]
    flip(model.blob_path("model.bin"), BAD * STEP)
    got = read_blocks(mounted.path / "model.bin")
    assert got[BAD] == errno.EIO
    flip(model.blob_path("model.bin"), BAD * STEP)
    assert read_blocks(mounted.path / "model.bin")[BAD] == PLAIN[BAD * BLOCK : (BAD + 1) * BLOCK], "mended is readable again"


def test_a_replaced_release_does_not_touch_a_mount(model: Sealed, mount: Callable[..., Mounted]) -> None:
    """The mount has pinned manifest, index and keys: even a new worker never takes them from the store again."""
    mounted = mount(model, "--workers", 1)
    for path in [model.path / "manifest.json", *(model.path / "keys").iterdir(), model.path / "blobs" / model.manifest.index]:
        path.write_bytes(b"replaced")
    os.kill(mounted.status()["workers"][0], 9)
    assert (mounted.path / "model.bin").read_bytes() == PLAIN


def test_damaged_index_refuses_the_mount(model: Sealed, tmp_path: Path) -> None:
    flip(model.path / "blobs" / model.manifest.index, 3)
    (tmp_path / "mnt").mkdir()
    done = modelfs(*mount_command(model, tmp_path / "mnt", tmp_path / "state"))
    assert done.returncode == 4
    assert "instead of the signed" in done.stderr
    assert done.stderr.count("\n") == 1
