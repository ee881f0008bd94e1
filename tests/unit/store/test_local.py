"""The store: only regular files below the opened directory, nothing that hangs, atomic writes, one writer."""

import contextlib
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs.errors import BlobNotFoundError, LimitExceededError, StoreError
from modelfs.store.local import Store, pread_exact, store_error
from tests.helpers import REPOSITORY

NAMES = [
    "manifest.json",
    "manifests/1.json",
    "keys/" + "a" * 64 + ".json",
    "blobs/" + "b" * 32,
    "blobs/" + "b" * 32 + ".digests",
    "pending/plan.json",
    "pending/keys.json",
    "pending/journal-" + "c" * 32,
]


def plant_symlink(path: Path) -> None:
    target = path.parent.parent / "outside"
    target.write_bytes(b"outside")
    path.symlink_to(target)


def plant_relative_symlink(path: Path) -> None:
    (path.parent / "inside").write_bytes(b"inside")
    path.symlink_to("inside")


def plant_socket(path: Path) -> None:
    before = os.getcwd()
    os.chdir(path.parent)  # a socket's path is at most 107 bytes
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)


def plant_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero: reading it would never end
    except PermissionError:
        pytest.skip("making a device needs CAP_MKNOD")


PLANTS: dict[str, Callable[[Path], None]] = {
    "symlink out": plant_symlink,
    "symlink to a neighbour": plant_relative_symlink,
    "symlink to nothing": lambda path: path.symlink_to("nothing"),
    "symlink to itself": lambda path: path.symlink_to(path.name),
    "FIFO": os.mkfifo,
    "socket": plant_socket,
    "device": plant_device,
    "directory": os.mkdir,
}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    path = tmp_path / "sealed"
    for name in ("blobs", "keys", "manifests", "pending"):
        (path / name).mkdir(parents=True)
    return path


@pytest.mark.timeout(10)
@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
@pytest.mark.parametrize("name", NAMES)
def test_planted_special_file_is_refused_without_hanging(root: Path, name: str, plant: Callable[[Path], None]) -> None:
    plant(root / name)
    with Store(root) as store:
        for call in (store.open_file, lambda name: store.read_file(name, 1000)):
            with pytest.raises(StoreError, match="not a regular file") as caught:
                call(name)
            assert not isinstance(caught.value, BlobNotFoundError)
        assert store.file_size(name) is None


@pytest.mark.timeout(10)
@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_a_lock_that_is_no_file_is_none(root: Path, plant: Callable[[Path], None]) -> None:
    plant(root / "pending" / "lock")
    with Store(root) as store, pytest.raises(StoreError), store.writer_lock():
        pass
    assert os.path.lexists(root / "pending" / "lock")


@pytest.mark.parametrize("folder", ["blobs", "keys", "manifests", "pending"])
@pytest.mark.parametrize("kind", ["symlink", "file"])
def test_directory_that_is_none_is_not_entered(root: Path, folder: str, kind: str) -> None:
    (root / folder).rename(root.parent / "elsewhere")
    (root.parent / "elsewhere" / "x").write_bytes(b"outside")
    if kind == "symlink":
        (root / folder).symlink_to(root.parent / "elsewhere")
    else:
        (root / folder).write_bytes(b"")
    with Store(root) as store:
        for call in (
            lambda: store.open_file(f"{folder}/x"),
            lambda: store.read_file(f"{folder}/x", 10),
            lambda: store.names(folder),
            lambda: store.remove(f"{folder}/x"),
            lambda: store.write_file(f"{folder}/x", b"new"),
            lambda: store.sync_directory(folder),
        ):
            with pytest.raises(StoreError):
                call()
        assert store.file_size(f"{folder}/x") is None
    assert (root.parent / "elsewhere" / "x").read_bytes() == b"outside"


def test_read_file(root: Path) -> None:
    (root / "manifest.json").write_bytes(b"12345")
    with Store(root) as store:
        assert store.read_file("manifest.json", 5) == b"12345"
        assert store.file_size("manifest.json") == 5
        with pytest.raises(LimitExceededError, match="5 bytes, more than the limit of 4"):
            store.read_file("manifest.json", 4)


def test_missing_names(root: Path) -> None:
    (root / "keys").rmdir()
    with Store(root) as store:
        for name in ("manifest.json", "blobs/x", "keys/x"):
            with pytest.raises(BlobNotFoundError, match=f"{name} is missing"):
                store.open_file(name)
            assert store.file_size(name) is None
            store.remove(name)
        assert store.names("keys") == []


@pytest.mark.parametrize("kind", ["missing", "file"])
def test_store_of_no_directory(tmp_path: Path, kind: str) -> None:
    if kind == "file":
        (tmp_path / "x").write_bytes(b"")
    with pytest.raises(StoreError, match="open the sealed model"):
        Store(tmp_path / "x")


def test_store_may_itself_be_a_symlink(root: Path, tmp_path: Path) -> None:
    """The path is the operator's own; only what lies below is the storage's."""
    (root / "manifest.json").write_bytes(b"x")
    (tmp_path / "link").symlink_to(root)
    with Store(tmp_path / "link") as store:
        assert store.read_file("manifest.json", 1) == b"x"


def test_store_stays_with_the_directory_it_opened(root: Path, tmp_path: Path) -> None:
    (root / "manifest.json").write_bytes(b"first")
    with Store(root) as store:
        root.rename(tmp_path / "moved")
        root.mkdir()
        (root / "manifest.json").write_bytes(b"second")
        assert store.read_file("manifest.json", 10) == b"first"


def test_blob_ids(root: Path) -> None:
    for name in ("a" * 32, "b" * 32 + ".digests", "A" * 32, "c" * 31, "d" * 32 + ".tmp", "e" * 33, ".hidden"):
        (root / "blobs" / name).write_bytes(b"")
    with Store(root) as store:
        assert store.blob_ids() == {"a" * 32, "b" * 32}


def test_write_file_replaces(root: Path) -> None:
    with Store(root) as store:
        for data in (b"old", b"new"):
            store.write_file("manifest.json", data)
            store.write_file("keys/k.json", data)
    assert (root / "manifest.json").read_bytes() == (root / "keys" / "k.json").read_bytes() == b"new"
    assert sorted(os.listdir(root)) == ["blobs", "keys", "manifest.json", "manifests", "pending"]
    assert os.listdir(root / "keys") == ["k.json"]
    assert os.listdir(root / "pending") == []


@pytest.mark.parametrize("plant", [plant_symlink, os.mkfifo, os.mkdir], ids=["symlink", "FIFO", "directory"])
def test_write_file_over_something_planted(root: Path, plant: Callable[[Path], None]) -> None:
    """A planted name is replaced, never written through; what a file cannot replace is an error."""
    plant(root / "manifest.json")
    with Store(root) as store, contextlib.suppress(StoreError):
        store.write_file("manifest.json", b"new")
    if plant is os.mkdir:
        assert os.listdir(root / "manifest.json") == []
    else:
        assert stat.S_ISREG(os.lstat(root / "manifest.json").st_mode)
        assert (root / "manifest.json").read_bytes() == b"new"
    if plant is plant_symlink:
        assert (root.parent / "outside").read_bytes() == b"outside"
    assert sorted(os.listdir(root)) == ["blobs", "keys", "manifest.json", "manifests", "pending"]


@pytest.mark.parametrize("kind", ["hard link", "symlink", "FIFO"])
def test_write_file_does_not_write_through_a_planted_temporary_file(
    root: Path, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever writes the storage knows the temporary name of a process and may put a link to another file there."""
    victim = tmp_path / "victim"
    victim.write_bytes(b"precious")
    names: list[str] = []
    really_rename = os.rename
    monkeypatch.setattr(os, "rename", lambda old, new, **kwargs: (names.append(old), really_rename(old, new, **kwargs)))
    with Store(root) as store:
        store.write_file("manifest.json", b"one")
        assert names, "write_file renames nothing any more: this test needs another way to learn the temporary name"
        for folder in (root, root / "pending"):
            if kind == "hard link":
                os.link(victim, folder / names[0])
            elif kind == "symlink":
                (folder / names[0]).symlink_to(victim)
            else:
                os.mkfifo(folder / names[0])
        store.write_file("manifest.json", b"two")
    assert victim.read_bytes() == b"precious"
    assert stat.S_ISREG(os.lstat(root / "manifest.json").st_mode)
    assert (root / "manifest.json").read_bytes() == b"two"


def test_create_blob_never_opens_what_is_there(root: Path, tmp_path: Path) -> None:
    name = "a" * 32
    (tmp_path / "outside").write_bytes(b"outside")
    (root / "blobs" / name).symlink_to(tmp_path / "outside")
    with Store(root) as store, pytest.raises(FileExistsError):
        store.create_blob(name)
    assert (tmp_path / "outside").read_bytes() == b"outside"


def test_remove_blob_removes_its_digests(root: Path) -> None:
    for name in ("a" * 32, "a" * 32 + ".digests", "b" * 32):
        (root / "blobs" / name).write_bytes(b"")
    with Store(root) as store:
        store.remove_blob("a" * 32)
        store.remove_blob("a" * 32)
    assert os.listdir(root / "blobs") == ["b" * 32]


def test_remove_does_not_follow(root: Path, tmp_path: Path) -> None:
    (tmp_path / "outside").write_bytes(b"outside")
    (root / "blobs" / "x").symlink_to(tmp_path / "outside")
    with Store(root) as store:
        store.remove("blobs/x")
    assert (tmp_path / "outside").exists()
    assert os.listdir(root / "blobs") == []


def test_make_directories_where_none_can_be_made(root: Path) -> None:
    with Store(root) as store:
        for name in ("blobs", "keys", "manifests", "pending"):
            (root / name).rmdir()
        root.rmdir()
        with pytest.raises(StoreError):
            store.make_directories("blobs")


def test_writer_lock_excludes_another_and_leaves_nothing(root: Path) -> None:
    with Store(root) as first, Store(root) as second:
        with first.writer_lock():
            with pytest.raises(StoreError, match="another modelfs command is writing"), second.writer_lock():
                pass
            assert os.listdir(root / "pending") == ["lock"]
        assert not (root / "pending").exists()
        with second.writer_lock():
            pass
    assert not (root / "pending").exists()


def test_writer_lock_leaves_pending_work_alone(root: Path) -> None:
    (root / "pending" / "plan.json").write_bytes(b"x")
    with Store(root) as store, store.writer_lock():
        pass
    assert (root / "pending" / "plan.json").read_bytes() == b"x"


def test_writer_lock_ends_with_its_process(root: Path) -> None:
    code = (
        "import os, sys, pathlib; from modelfs.store.local import Store\n"
        "store = Store(pathlib.Path(sys.argv[1])); lock = store.writer_lock(); lock.__enter__()\n"
        "os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, root], cwd=REPOSITORY, check=False)
    assert done.returncode == -9
    assert os.listdir(root / "pending") == ["lock"]
    with Store(root) as store, store.writer_lock():
        pass


@pytest.mark.timeout(10)
@pytest.mark.parametrize("kind", ["symlink", "directory", "symlinked pending", "dangling pending", "file pending"])
def test_writer_lock_refuses_what_is_planted(root: Path, tmp_path: Path, kind: str) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if kind == "symlink":
        (root / "pending" / "lock").symlink_to(elsewhere / "lock")
    elif kind == "directory":
        (root / "pending" / "lock").mkdir()
    else:
        (root / "pending").rmdir()
        if kind == "file pending":
            (root / "pending").write_bytes(b"")
        else:
            (root / "pending").symlink_to(elsewhere if kind == "symlinked pending" else elsewhere / "nothing")
    with Store(root) as store, pytest.raises(StoreError), store.writer_lock():
        pytest.fail("the lock was taken")
    assert os.listdir(elsewhere) == []


def test_pread_exact(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"0123456789")
    fd = os.open(tmp_path / "x", os.O_RDONLY)
    buffer = bytearray(4)
    try:
        assert pread_exact(fd, memoryview(buffer), 6)
        assert bytes(buffer) == b"6789"
        assert not pread_exact(fd, memoryview(buffer), 7)
        assert not pread_exact(fd, memoryview(buffer), 1000)
        assert pread_exact(fd, memoryview(buffer)[:0], 1000)
    finally:
        os.close(fd)
    with pytest.raises(StoreError, match="read a blob"):
        pread_exact(fd, memoryview(buffer), 0)


@pytest.mark.parametrize("number", [28, 122], ids=["ENOSPC", "EDQUOT"])
def test_store_error_says_that_the_disk_is_full(number: int) -> None:
    assert "the disk is full; make room" in str(store_error("write x", OSError(number, "")))
