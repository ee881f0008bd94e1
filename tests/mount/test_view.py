"""The mount shows exactly the sealed tree, through every way that programs read files."""

import ctypes
import errno
import hashlib
import mmap
import os
import random
import shutil
import stat
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import SealedBuilder
from tests.helpers import KeySet, Sealed, seal
from tests.mount.conftest import Mounted, Program, modelfs

BIG = (5 << 20) + 4321
BLOCK = 128 * 1024
FILES = {
    "config.json": b"{}\n",
    "empty": b"",
    "one": b"1",
    "block-1": bytes(BLOCK - 1),
    "block": b"x" * BLOCK,
    "block+1": b"y" * (BLOCK + 1),
    "deep/er/still/weights.bin": random.Random(6).randbytes(300_000),
    "big.bin": random.Random(7).randbytes(BIG),
    "名前/вес/نموذج.bin": b"names in any script",
    "with space\tand\nnewline": b"odd",
    "n" * 255: b"longest name",
    "empty directory": None,
}


@pytest.fixture
def view(sealed: SealedBuilder, mount: Callable[..., Mounted]) -> Mounted:
    model = sealed(FILES, symlinks={"latest": "big.bin", "deep/up": "../one", "dangling": "nowhere"}, block_size=BLOCK)
    os.chmod(model.source / "config.json", 0o640)
    os.utime(model.source / "one", ns=(1, 1_234_567_890_123_456_789))
    shutil.rmtree(model.path)
    seal(model.keys, model.source, model.path, block_size=BLOCK)
    return mount(model)


def test_the_tree_is_the_sealed_tree(view: Mounted) -> None:
    source = view.sealed.source
    assert subprocess.run(["diff", "-r", "--no-dereference", source, view.path], check=False, capture_output=True).stdout == b""
    compared = 0
    for path in [source, *source.rglob("*")]:
        want, have = path.lstat(), (view.path / path.relative_to(source)).lstat()
        assert stat.S_IFMT(have.st_mode) == stat.S_IFMT(want.st_mode)
        assert have.st_mtime_ns == want.st_mtime_ns, path
        if not path.is_symlink():
            assert stat.S_IMODE(have.st_mode) == stat.S_IMODE(want.st_mode) & 0o555, path
        if path.is_file():
            assert have.st_size == want.st_size
        compared += 1
    assert compared > 15
    assert os.readlink(view.path / "deep/up") == "../one"
    assert (view.path / "deep/up").read_bytes() == b"1"
    assert sorted(os.listdir(view.path)) == sorted(os.listdir(source))
    assert (view.path / "deep").stat().st_nlink == 3


def test_pread_at_every_kind_of_offset(view: Mounted) -> None:
    plain, rng = FILES["big.bin"], random.Random(8)
    assert plain is not None
    fd = os.open(view.path / "big.bin", os.O_RDONLY)
    try:
        for _ in range(300):
            offset = rng.choice([rng.randrange(BIG + 10_000), rng.randrange(0, 41) * BLOCK + rng.choice([-1, 0, 1])])
            length = rng.choice([1, 4096, BLOCK, BLOCK + 1, rng.randrange(1, 3 * BLOCK)])
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(fd, length, max(0, offset)) == plain[max(0, offset) : max(0, offset) + length]
    finally:
        os.close(fd)


@pytest.mark.parametrize("size", [512, 4096, 8192, 65536, 1 << 20])
def test_direct_reads(view: Mounted, size: int) -> None:
    fd = os.open(view.path / "big.bin", os.O_RDONLY | os.O_DIRECT)
    buffer, got = mmap.mmap(-1, size), b""
    try:
        while count := os.preadv(fd, [buffer], len(got)):
            got += buffer[:count]
    finally:
        os.close(fd)
    assert got == FILES["big.bin"]


MAP_POPULATE = 0x8000


@pytest.mark.parametrize(
    ("flags", "prot"),
    [
        (mmap.MAP_SHARED, mmap.PROT_READ),
        (mmap.MAP_PRIVATE, mmap.PROT_READ),
        (mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE),
        (mmap.MAP_SHARED | MAP_POPULATE, mmap.PROT_READ),
    ],
    ids=["shared", "private", "private-writable", "populate"],
)
def test_mappings(view: Mounted, flags: int, prot: int) -> None:
    fd = os.open(view.path / "big.bin", os.O_RDONLY)
    with mmap.mmap(fd, 0, flags=flags, prot=prot) as mapping:
        os.close(fd)
        assert hashlib.sha256(mapping).digest() == hashlib.sha256(FILES["big.bin"] or b"").digest()
        if prot & mmap.PROT_WRITE:
            mapping[0:4] = b"mine"
            assert mapping[:4] == b"mine"
    assert (view.path / "big.bin").read_bytes()[:4] == (FILES["big.bin"] or b"")[:4], "a private write must stay private"


def test_sendfile(view: Mounted, tmp_path: Path) -> None:
    with open(view.path / "big.bin", "rb") as source, open(tmp_path / "copy", "wb") as target:
        offset = 0
        while count := os.sendfile(target.fileno(), source.fileno(), offset, 1 << 20):
            offset += count
    assert (tmp_path / "copy").read_bytes() == FILES["big.bin"]


def test_statfs_is_full_and_read_only(view: Mounted) -> None:
    info = os.statvfs(view.path)
    assert info.f_flag & os.ST_RDONLY
    assert info.f_flag & os.ST_NOSUID
    assert info.f_bavail == 0
    assert info.f_blocks * info.f_frsize >= sum(len(content or b"") for content in FILES.values())
    assert info.f_namemax == 255


WRITES: dict[str, Callable[[Path], object]] = {
    "open for writing": lambda root: os.open(root / "one", os.O_WRONLY),
    "open for both": lambda root: os.open(root / "one", os.O_RDWR),
    "create": lambda root: os.open(root / "new", os.O_WRONLY | os.O_CREAT),
    "truncate": lambda root: os.truncate(root / "one", 0),
    "unlink": lambda root: os.unlink(root / "one"),
    "mkdir": lambda root: os.mkdir(root / "new"),
    "rmdir": lambda root: os.rmdir(root / "empty directory"),
    "rename": lambda root: os.rename(root / "one", root / "two"),
    "chmod": lambda root: os.chmod(root / "one", 0o777),
    "chown": lambda root: os.chown(root / "one", 1, 1),
    "utime": lambda root: os.utime(root / "one"),
    "symlink": lambda root: os.symlink("one", root / "new"),
    "link": lambda root: os.link(root / "one", root / "new"),
    "setxattr": lambda root: os.setxattr(root / "one", "user.x", b"y"),
}


@pytest.mark.parametrize("write", WRITES)
def test_every_write_is_refused(view: Mounted, write: str) -> None:
    with pytest.raises(OSError) as caught:
        WRITES[write](view.path)
    assert caught.value.errno == errno.EROFS
    assert (view.path / "one").read_bytes() == b"1"


def test_names_that_are_not_there(view: Mounted) -> None:
    for name in (b"nothing", b"\xff\xfe", b"one/below"):
        with pytest.raises(OSError) as caught:
            os.stat(os.path.join(os.fsencode(view.path), name))
        assert caught.value.errno in (errno.ENOENT, errno.ENOTDIR)


def test_sixteen_parallel_readers_agree_with_the_plaintext(
    sealed: SealedBuilder, mount: Callable[..., Mounted], program: Callable[..., Program]
) -> None:
    model = sealed({"model.bin": random.Random(9).randbytes(24 << 20)}, block_size=BLOCK)
    mounted = mount(model)
    plain = model.source / "model.bin"
    readers = [program("loop", mode, mounted.path / "model.bin", plain) for mode in ("buffered", "direct", "mmap", "buffered") * 4]
    for reader in readers:
        reader.line()
    time.sleep(3)
    for result in [reader.finish() for reader in readers]:
        assert result["reads"] > 50, result
        assert (result["wrong"], result["errors"]) == (0, []), result
    assert hashlib.sha256((mounted.path / "model.bin").read_bytes()).digest() == hashlib.sha256(plain.read_bytes()).digest()


def test_ten_thousand_small_files(sealed: SealedBuilder, mount: Callable[..., Mounted]) -> None:
    files = {f"shard{i % 100:02}/{i:05}.json": b'{"number": %d}' % i for i in range(10_000)}
    model = sealed(files, block_size=BLOCK)
    mounted = mount(model)
    seen = {str(path.relative_to(mounted.path)) for path in mounted.path.rglob("*.json")}
    assert seen == set(files)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda path: (mounted.path / path).read_bytes() == files[path], files))


def test_a_path_of_the_legal_length(sealed: SealedBuilder, mount: Callable[..., Mounted]) -> None:
    path = "/".join(["d" * 250] * 14 + ["f" * 200])
    model = sealed({"short": b"1"}, block_size=BLOCK)
    directory = os.open(model.source, os.O_RDONLY)
    for part in path.split("/")[:-1]:
        os.mkdir(part, dir_fd=directory)
        below = os.open(part, os.O_RDONLY, dir_fd=directory)
        os.close(directory)
        directory = below
    with open(os.open(path.rpartition("/")[2], os.O_WRONLY | os.O_CREAT, dir_fd=directory), "wb") as file:
        file.write(b"far down")
    os.close(directory)
    shutil.rmtree(model.path)
    seal(model.keys, model.source, model.path, block_size=BLOCK)
    mounted = mount(model)
    root = os.open(mounted.path, os.O_RDONLY)
    with open(os.open(path, os.O_RDONLY, dir_fd=root), "rb") as file:
        assert file.read() == b"far down"
    os.close(root)


def test_a_sparse_file_of_more_than_4_gib(keys_dir: KeySet, tmp_path: Path, mount: Callable[..., Mounted]) -> None:
    size, marks = (4 << 30) + 12345, {0: b"start", (4 << 30) - 3: b"across", (4 << 30) + 12340: b"end!!"}
    source = tmp_path / "source"
    source.mkdir()
    with open(source / "large.bin", "wb") as file:
        file.truncate(size)
        for offset, text in marks.items():
            file.seek(offset)
            file.write(text)
    seal(keys_dir, source, tmp_path / "sealed", block_size=1 << 20)
    mounted = mount(Sealed(tmp_path / "sealed", source, keys_dir))
    large = mounted.path / "large.bin"
    assert large.stat().st_size == size
    fd = os.open(large, os.O_RDONLY)
    for offset, text in marks.items():
        assert os.pread(fd, len(text) + 2, offset)[: len(text)] == text
    assert os.pread(fd, 100, size - 5) == b"end!!"
    assert os.pread(fd, 4096, (3 << 30) + 77) == bytes(4096)
    os.close(fd)
    mounted.unmount()
    shutil.rmtree(tmp_path / "sealed")


def read_as(uid: int, gid: int, directory: Path, name: str) -> "subprocess.CompletedProcess[str]":
    """Enter the mount as root, become another user, read: only the mount itself can refuse that."""
    code = "import os, sys; os.setgroups([]); os.setgid(int(sys.argv[2])); os.setuid(int(sys.argv[1])); open(sys.argv[3]).read()"
    command = ["/usr/bin/python3", "-c", code, str(uid), str(gid), name]
    return subprocess.run(command, check=False, capture_output=True, text=True, cwd=directory)


def test_owner_and_mode_as_asked(sealed: SealedBuilder, mount: Callable[..., Mounted]) -> None:
    model = sealed({"a/one": b"1"}, block_size=BLOCK)
    mounted = mount(model, "--uid", 1234, "--gid", 4321, "--mode", "440", "--allow-other")
    info, directory = (mounted.path / "a/one").stat(), (mounted.path / "a").stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (1234, 4321, 0o440)
    assert (directory.st_uid, stat.S_IMODE(directory.st_mode)) == (1234, 0o550)
    for uid, gid, allowed in ((1234, 1, True), (1, 4321, True), (1, 1, False)):
        done = read_as(uid, gid, mounted.path, "a/one")
        assert (done.returncode == 0) == allowed, done.stderr
        assert allowed or "PermissionError" in done.stderr


def test_others_are_kept_out_unless_asked(view: Mounted) -> None:
    assert read_as(0, 0, view.path, "one").returncode == 0
    done = read_as(1234, 1234, view.path, "one")
    assert "PermissionError" in done.stderr


def test_status_names_the_processes_and_they_are_hardened(view: Mounted) -> None:
    status = view.status()
    assert (status["model"], status["release"], status["state"]) == ("demo", 1, "serving")
    assert modelfs("status").stdout.count(str(view.path)) == 1
    for pid in view.pids():
        limits = Path(f"/proc/{pid}/limits").read_text()
        assert "Max core file size        0                    0" in limits
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(3, 0, 0, 0, 0) == 1, "this process is dumpable; the mount's are not:"
    for pid in view.pids():
        assert os.stat(f"/proc/{pid}/environ").st_uid == 0
    code = "import os, sys; os.setuid(1234); open(f'/proc/{sys.argv[1]}/environ').read()"
    done = subprocess.run(["python3", "-c", code, str(view.pids()[0])], check=False, capture_output=True, text=True)
    assert "PermissionError" in done.stderr


@pytest.mark.parametrize(("workers", "read_ahead_kb"), [(1, 2048), (5, 5120)])
def test_read_ahead_gives_every_worker_a_request(
    sealed: SealedBuilder, mount: Callable[..., Mounted], workers: int, read_ahead_kb: int
) -> None:
    mounted = mount(sealed({"model.bin": b"weights"}), "--workers", workers)
    device = os.stat(mounted.path).st_dev
    found = Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").read_text()
    assert int(found) == read_ahead_kb
