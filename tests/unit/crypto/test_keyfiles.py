"""Files that hold secrets: made once, read only when private."""

import os
from pathlib import Path

import pytest

from modelfs.crypto.keyfiles import create_private, read_private
from modelfs.errors import ConfigError


def test_create_private_is_private_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        create_private(tmp_path / "key", b"secret")
    finally:
        os.umask(before)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600
    assert read_private(tmp_path / "key", 10, "KEK") == b"secret"


def test_create_private_never_overwrites_nor_follows(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    (tmp_path / "dangling").symlink_to(tmp_path / "elsewhere")
    for name in ("file", "dangling"):
        with pytest.raises(ConfigError, match="not overwritten"):
            create_private(tmp_path / name, b"new")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert not (tmp_path / "elsewhere").exists()


def test_create_private_without_a_directory(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file or directory"):
        create_private(tmp_path / "no" / "key", b"x")


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o777])
def test_read_private_refuses_what_others_may_touch(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_bytes(b"x")
    path.chmod(mode)
    with pytest.raises(ConfigError, match="chmod 600"):
        read_private(path, 10, "KEK")


def test_read_private_refuses_special_files_without_hanging(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo", 0o600)
    for path in (tmp_path / "fifo", Path("/dev/zero")):
        with pytest.raises(ConfigError, match="not a regular file"):
            read_private(path, 10, "KEK")


def test_read_private_refuses_missing_directory_and_long_files(tmp_path: Path) -> None:
    (tmp_path / "long").write_bytes(bytes(11))
    (tmp_path / "long").chmod(0o600)
    for name, text in (("missing", "No such file"), (".", "directory|regular"), ("long", "longer than 10 bytes")):
        with pytest.raises(ConfigError, match=text):
            read_private(tmp_path / name, 10, "KEK")
