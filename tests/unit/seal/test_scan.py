"""What may be sealed: regular files, directories, symlinks inside the tree. Everything else is refused with what to do."""

import os
import socket
import stat
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs.errors import ConfigError
from modelfs.seal.scan import SourceTree, scan_source
from tests.helpers import write_tree


def paths(tree: SourceTree) -> dict[str, str]:
    found = {entry.path: "dir" for entry in tree.directories}
    found |= {entry.path: f"-> {entry.target}" for entry in tree.symlinks}
    return found | {file.path: f"{file.size}" for file in tree.files}


def test_scan_directory(tmp_path: Path) -> None:
    write_tree(tmp_path, {"a": b"123", "d/e/f": b"", "d/empty": None}, {"d/up": "../a", "d/nothing": "e/no"})
    expected = {"": "dir", "d": "dir", "d/e": "dir", "d/empty": "dir", "a": "3", "d/e/f": "0", "d/up": "-> ../a", "d/nothing": "-> e/no"}
    tree = scan_source(tmp_path, follow_symlinks=False)
    assert paths(tree) == expected
    assert tree.size == 3


def test_scan_keeps_times_and_drops_write_bits(tmp_path: Path) -> None:
    write_tree(tmp_path, {"run": b"x", "old": b"x"})
    (tmp_path / "run").chmod(0o4775)
    os.utime(tmp_path / "run", ns=(1, 1234567890123456789))
    os.utime(tmp_path / "old", ns=(0, -5))
    files = {file.path: file for file in scan_source(tmp_path, follow_symlinks=False).files}
    assert (files["run"].mode, files["run"].mtime) == (0o555, 1234567890123456789)
    assert files["old"].mtime == 0  # before 1970


@pytest.mark.parametrize("through_symlink", [False, True])
def test_scan_one_file(tmp_path: Path, through_symlink: bool) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"12345")
    if through_symlink:
        (tmp_path / "link.gguf").symlink_to("model.gguf")
        path = tmp_path / "link.gguf"
    assert paths(scan_source(path, follow_symlinks=False)) == {"": "dir", path.name: "5"}


@pytest.mark.parametrize("files", [{}, {"a/b": None}], ids=["empty", "only directories"])
def test_scan_refuses_a_tree_without_files(tmp_path: Path, files: dict[str, None]) -> None:
    write_tree(tmp_path / "src", files)
    with pytest.raises(ConfigError, match=r"no file in .*: nothing to seal"):
        scan_source(tmp_path / "src", follow_symlinks=False)


def test_scan_refuses_a_missing_source(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read the source .*no/such: No such file"):
        scan_source(tmp_path / "no" / "such", follow_symlinks=False)


def plant_socket(path: Path) -> None:
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as server:
            server.bind(path.name)
    finally:
        os.chdir(before)


def plant_device(path: Path) -> None:
    try:
        os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("making a device needs CAP_MKNOD")


SPECIAL: dict[str, Callable[[Path], None]] = {"FIFO": os.mkfifo, "socket": plant_socket, "device": plant_device}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("plant", SPECIAL.values(), ids=SPECIAL)
def test_scan_refuses_special_files_without_hanging(tmp_path: Path, plant: Callable[[Path], None], follow: bool) -> None:
    write_tree(tmp_path / "src", {"a": b"x", "d/e": b"x"})
    plant(tmp_path / "src" / "d" / "special")
    with pytest.raises(ConfigError, match="d/special is a device, socket or pipe"):
        scan_source(tmp_path / "src", follow)
    with pytest.raises(ConfigError, match="neither a directory nor a regular file"):
        scan_source(tmp_path / "src" / "d" / "special", follow)


def test_scan_with_follow_refuses_a_symlink_to_a_special_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    write_tree(tmp_path / "src", {"a": b"x"}, {"l": "../fifo"})
    with pytest.raises(ConfigError, match="device, socket or pipe"):
        scan_source(tmp_path / "src", follow_symlinks=True)


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_scan_refuses_names_that_are_not_utf8(tmp_path: Path, kind: str) -> None:
    write_tree(tmp_path / "src", {"a": b"x"})
    name = os.fsencode(tmp_path / "src") + b"/caf\xe9"
    if kind == "file":
        os.close(os.open(name, os.O_CREAT))
    elif kind == "directory":
        os.mkdir(name)
    else:
        os.symlink(b"a", name)
    with pytest.raises(ConfigError, match=r"caf\\xe9 cannot be sealed: a path is not valid UTF-8; rename it") as caught:
        scan_source(tmp_path / "src", follow_symlinks=False)
    str(caught.value).encode()  # the message itself can be printed


def test_scan_refuses_a_target_that_is_not_utf8(tmp_path: Path) -> None:
    write_tree(tmp_path / "src", {"a": b"x"})
    os.symlink(b"caf\xe9", os.fsencode(tmp_path / "src") + b"/l")
    with pytest.raises(ConfigError, match="not valid UTF-8"):
        scan_source(tmp_path / "src", follow_symlinks=False)


OUTSIDE = {
    "absolute": "/etc/hostname",
    "out": "../outside",
    "out through a directory": "d/../../outside",
    "out through another symlink": "d/top/../outside",
    "circle": "link",
}


@pytest.mark.parametrize("target", OUTSIDE.values(), ids=OUTSIDE)
def test_scan_names_the_flag_for_a_symlink_that_leads_out(tmp_path: Path, target: str) -> None:
    write_tree(tmp_path / "src", {"a": b"x", "d/e": b"x"}, {"link": target, "d/top": ".."})
    with pytest.raises(ConfigError, match=r"^link: .*--follow-symlinks"):
        scan_source(tmp_path / "src", follow_symlinks=False)


def hugging_face_cache(root: Path) -> Path:
    """A snapshot as huggingface_hub lays it out: every file is a symlink into blobs/."""
    repository = root / "models--x--y"
    write_tree(repository, {"blobs/1111": b"{}", "blobs/2222": b"weights", "refs/main": b"abc"})
    snapshot = repository / "snapshots" / "abc"
    write_tree(snapshot, {}, {"config.json": "../../blobs/1111", "nested/model.safetensors": "../../../blobs/2222"})
    return snapshot


def test_scan_hugging_face_snapshot(tmp_path: Path) -> None:
    snapshot = hugging_face_cache(tmp_path)
    with pytest.raises(ConfigError):  # no file at all without following
        scan_source(snapshot, follow_symlinks=False)
    tree = scan_source(snapshot, follow_symlinks=True)
    assert paths(tree) == {"": "dir", "nested": "dir", "config.json": "2", "nested/model.safetensors": "7"}
    assert tree.symlinks == []


def test_scan_hugging_face_snapshot_with_a_plain_file_names_the_flag(tmp_path: Path) -> None:
    snapshot = hugging_face_cache(tmp_path)
    (snapshot / "README.md").write_bytes(b"x")
    with pytest.raises(ConfigError, match=r"--follow-symlinks .*Hugging Face"):
        scan_source(snapshot, follow_symlinks=False)


def test_scan_hugging_face_snapshot_without_plain_files_names_the_flag(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--follow-symlinks"):
        scan_source(hugging_face_cache(tmp_path), follow_symlinks=False)


@pytest.mark.timeout(20)
@pytest.mark.parametrize("target", [".", "..", "../d", "../../src"])
def test_scan_with_follow_refuses_loops(tmp_path: Path, target: str) -> None:
    write_tree(tmp_path / "src", {"d/f": b"x"}, {"d/loop": target})
    with pytest.raises(ConfigError, match="leads back to a directory above it"):
        scan_source(tmp_path / "src", follow_symlinks=True)


def test_scan_with_follow_refuses_a_symlink_to_itself_and_to_nothing(tmp_path: Path) -> None:
    write_tree(tmp_path / "one", {"f": b"x"}, {"l": "l"})
    write_tree(tmp_path / "two", {"f": b"x"}, {"l": "nothing"})
    with pytest.raises(ConfigError, match="symbolic links"):
        scan_source(tmp_path / "one", follow_symlinks=True)
    with pytest.raises(ConfigError, match="symlink to nothing"):
        scan_source(tmp_path / "two", follow_symlinks=True)


def test_scan_with_follow_takes_one_directory_twice(tmp_path: Path) -> None:
    write_tree(tmp_path, {"d/f": b"x"}, {"again": "d"})
    assert paths(scan_source(tmp_path, follow_symlinks=True)) == {"": "dir", "d": "dir", "d/f": "1", "again": "dir", "again/f": "1"}


def test_scan_goes_deeper_than_python_recurses(tmp_path: Path) -> None:
    """2,040 directories of one letter are a legal path of 4,079 bytes."""
    before, depth = os.getcwd(), 2040
    os.chdir(tmp_path)
    try:
        for _ in range(depth):
            os.mkdir("d")
            os.chdir("d")
        Path("f").write_bytes(b"x")
        os.chdir(tmp_path)
        # The file's own path is longer than PATH_MAX from the root, so the source is named relatively.
        tree = scan_source(Path("."), follow_symlinks=False)
    finally:
        os.chdir(before)
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # shutil.rmtree, and so pytest, recurses
    assert (len(tree.directories), tree.files[0].path.count("/")) == (depth + 1, depth)
