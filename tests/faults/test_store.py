"""The storage fails under a mount that serves: reads are right or EIO with a line in the log, and right again when it is mended."""

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults.conftest import BadStore, Crowd, status
from tests.helpers import Sealed
from tests.mount.conftest import Mounted, modelfs, wait_until

BLOCK = 128 * 1024
STEP = BLOCK + 16


def uncached(path: Path) -> bytes | int:
    """A file's content as the workers give it now, or the errno."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        got = b""
        while part := os.read(fd, 1 << 20):
            got += part
        return got
    except OSError as exc:
        return exc.errno or 0
    finally:
        os.close(fd)


def other_bytes(blob: Path) -> None:
    """Not in its place: by a new file, as every careful writer does it."""
    fresh = blob.with_name("fresh")
    fresh.write_bytes(os.urandom(blob.stat().st_size))
    fresh.replace(blob)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "deleted": lambda blob: blob.unlink(),
    "truncated": lambda blob: os.truncate(blob, 3 * STEP),
    "replaced": other_bytes,
    "overwritten": lambda blob: blob.write_bytes(os.urandom(blob.stat().st_size)),
    "permission lost": lambda blob: (os.chown(blob, 1234, 1234), blob.chmod(0)),
    "became a pipe": lambda blob: (blob.unlink(), os.mkfifo(blob)),
}


def test_blobs_go_wrong_one_after_the_other(
    model: Sealed, mount: Callable[..., Mounted], crowd: Callable[..., Crowd], tmp_path: Path
) -> None:
    """Workers that have the blob open, and after their end workers that open it anew."""
    blob = model.blob_path("model.bin")
    shutil.copy2(blob, tmp_path / "good")
    mounted = mount(model, "--workers", 1)
    readers = crowd(mounted, 3)
    for name, damage in DAMAGE.items():
        damage(blob)
        before = uncached(mounted.path / "model.bin")
        assert before in (errno.EIO, model.plain["model.bin"]), name
        (worker,) = status(mounted)["workers"]
        os.kill(worker, 9)
        assert uncached(mounted.path / "model.bin") == errno.EIO, f"{name}: nobody has the blob open any more"
        assert uncached(mounted.path / "config.json") == model.plain["config.json"], "the rest stays readable"
        blob.unlink(missing_ok=True)
        shutil.copy2(tmp_path / "good", blob)
        assert uncached(mounted.path / "model.bin") == model.plain["model.bin"], f"{name}: mended is readable again"
    assert readers.finish() <= {"EIO", "SIGBUS"}
    assert status(mounted)["state"] == "serving"
    lines = [line for line in mounted.log.splitlines() if " ERROR " in line and "more bad blocks" not in line]
    assert all(model.entry("model.bin").blob in line for line in lines)
    for text in ("Permission denied", "instead of the signed", "is missing from", "the blob is truncated", "is not a regular file"):
        assert any(text in line for line in lines), (text, lines)
    assert "Traceback" not in mounted.log


@pytest.mark.parametrize(
    "number", [errno.EIO, errno.EDOM, *(pytest.param(number, marks=pytest.mark.slow) for number in (errno.ESTALE, errno.ENOMEM))]
)
def test_a_store_that_answers_with_errors(
    model: Sealed, bad_store: Callable[[Path], BadStore], mount: Callable[..., Mounted], number: int
) -> None:
    """Also with one that no file system gives: whatever pread says, readers are told EIO."""
    store = bad_store(model.path)
    mounted = mount(replace(model, path=store.mountpoint), "--workers", 2)
    store.goes(errno=number)
    assert uncached(mounted.path / "model.bin") == errno.EIO
    assert os.strerror(number) in mounted.log
    store.goes()
    assert uncached(mounted.path / "model.bin") == model.plain["model.bin"]
    assert status(mounted)["worker_deaths"] == 0


def test_ciphertext_that_changes_from_one_read_to_the_next(
    model: Sealed, bad_store: Callable[[Path], BadStore], mount: Callable[..., Mounted], crowd: Callable[..., Crowd]
) -> None:
    """One pread in three has a wrong bit. What is verified is what is decrypted: a private copy, read once."""
    store = bad_store(model.path)
    mounted = mount(replace(model, path=store.mountpoint), "--workers", 2)
    store.goes(flip=1 / 3)
    readers = crowd(mounted, 3)
    time.sleep(1.5)
    assert readers.finish() | {"SIGBUS"} == {"EIO", "SIGBUS"}, "none of them would mean that nothing was wrong"
    store.goes()
    assert uncached(mounted.path / "model.bin") == model.plain["model.bin"]


@pytest.fixture
def loop_disk(tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    """An ext4 file system in a file, on a loop device: (where it is mounted, the file)."""
    image, place = tmp_path / "image", tmp_path / "loop"
    with open(image, "wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-E", "lazy_itable_init=0,lazy_journal_init=0", image], check=True)
    place.mkdir()
    done = subprocess.run(["mount", "-o", "loop", image, place], capture_output=True, text=True, check=False)
    if done.returncode != 0 and not os.environ.get("CI"):
        pytest.skip(f"no loop device can be had here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    yield place, image
    subprocess.run(["umount", "-l", place], check=True)


def test_a_disk_that_loses_its_sectors(model: Sealed, loop_disk: tuple[Path, Path], mount: Callable[..., Mounted]) -> None:
    """The file below a loop device is cut short: the block layer itself says EIO."""
    place, image = loop_disk
    shutil.copytree(model.path, place / "sealed")
    subprocess.run(["sync", "-f", place], check=True)
    mounted = mount(replace(model, path=place / "sealed"), "--workers", 1)
    assert uncached(mounted.path / "config.json") == b"{}\n"
    for blob in (place / "sealed" / "blobs").iterdir():
        with open(blob, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    size = image.stat().st_size
    os.truncate(image, 1 << 20)
    assert uncached(mounted.path / "model.bin") == errno.EIO
    assert "Input/output error" in mounted.log
    assert status(mounted)["state"] == "serving"
    proof = mounted.unmount()
    assert (proof["resident_bytes"], proof["detached"]) == (0, True)
    os.truncate(image, size)


def test_a_store_that_is_mounted_again(model: Sealed, mount: Callable[..., Mounted], disk: Callable[..., Path], tmp_path: Path) -> None:
    """The mount keeps the directory that it verified: unmounted by force or covered by another, it is the same one to it."""
    place = disk("64m")
    shutil.copytree(model.path, place / "sealed")
    mounted = mount(replace(model, path=place / "sealed"), "--workers", 1)
    assert uncached(mounted.path / "model.bin") == model.plain["model.bin"]
    subprocess.run(["mount", "-o", "remount,ro", place], check=True)
    assert uncached(mounted.path / "model.bin") == model.plain["model.bin"]
    subprocess.run(["umount", "-l", place], check=True)
    subprocess.run(["mount", "-t", "tmpfs", "none", place], check=True)
    (place / "sealed" / "blobs").mkdir(parents=True)
    (worker,) = status(mounted)["workers"]
    os.kill(worker, 9)
    assert uncached(mounted.path / "model.bin") == model.plain["model.bin"], "a new worker, on the old directory"
    done = modelfs("renew", mounted.path)
    assert done.returncode == 0, done.stderr
    mounted.unmount()


def test_a_full_disk_under_the_log(
    model: Sealed, disk: Callable[..., Path], mount: Callable[..., Mounted], crowd: Callable[..., Crowd]
) -> None:
    """Nothing that serves, darkens or ends a mount waits for a line that cannot be written, or fails of it."""
    place = disk("64k")
    mounted = mount(model, "--workers", 2, "--log", place / "log")
    readers = crowd(mounted, 3)
    for file in (place / "filler", place / "log"):  # the log's own last page too
        with open(file, "ab", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
            while filler.write(b"\n" * 100) == 100:
                pass
            filler.write(b"\n")
    os.kill(status(mounted)["workers"][0], 9)
    wait_until(lambda: status(mounted)["worker_deaths"] == 1)
    wait_until(lambda: len(status(mounted)["workers"]) == 2)
    assert uncached(mounted.path / "model.bin") == model.plain["model.bin"]
    assert readers.finish() == set()
    assert modelfs("lock", mounted.path).returncode == 0
    assert modelfs("unlock", mounted.path).returncode == 0
    assert uncached(mounted.path / "model.bin") == model.plain["model.bin"]
    proof = mounted.unmount()
    assert (proof["resident_bytes"], proof["evicted"], proof["detached"]) == (0, True, True)
