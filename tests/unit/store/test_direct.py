"""Large blobs past the page cache: the same bytes whatever the file system takes, and one error when it takes no more."""

import contextlib
import errno
import fcntl
import os
import subprocess
import threading
import time
from collections.abc import Iterator
from concurrent.futures import CancelledError, ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfs.cache.scratch import Scratch
from modelfs.store.direct import PAGE, PieceWriter, Seam

MIB = 1 << 20


@contextlib.contextmanager
def mounted(place: Path, *arguments: str) -> Iterator[Path]:
    place.mkdir()
    subprocess.run(["mount", *arguments, str(place)], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


@contextlib.contextmanager
def small_disk(directory: Path) -> Iterator[Path]:
    """A real ext4 of 16 MiB that takes direct writes and cannot reserve room: it is full only when it is full."""
    image = directory / "image"
    image.write_bytes(b"")
    os.truncate(image, 16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^extent,^64bit", str(image)], check=True)
    # With delayed allocation, a sync(2) of somebody else while this one is full makes the kernel try for ever (ext4_do_writepages).
    with mounted(directory / "disk", "-o", "loop,nodelalloc", str(image)) as place:
        yield place


def write_pieces(path: Path, pieces: list[bytes], threads: int = 3) -> None:
    """As a seal does: each piece in its thread's own memory, laid out as in the file."""
    offsets = [sum(map(len, pieces[:number])) for number in range(len(pieces))]
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
    try:
        writer = PieceWriter(fd, sum(map(len, pieces)))
        seams: list[Seam | None] = [None, *(Seam() for _ in pieces)]

        def work(number: int) -> None:
            piece, scratch = pieces[number], Scratch()
            scratch.framed(offsets[number], len(piece))[1:] = piece
            after = seams[number + 1]
            assert after is not None
            try:
                writer.write(scratch.from_page(offsets[number], len(piece)), offsets[number], seams[number], after)
            finally:
                after.cancel()

        with ThreadPoolExecutor(threads) as pool:
            for done in [pool.submit(work, number) for number in range(len(pieces))]:
                done.result()
        last = seams[-1]
        writer.finish(last.result() if last else b"", sum(map(len, pieces)))
    finally:
        os.close(fd)


def random_pieces(sizes: list[int]) -> list[bytes]:
    return [os.urandom(size) for size in sizes]


class Watched:
    """os.pwrite, with a record of each write and whether it went past the page cache."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, most: int = 1 << 62) -> None:
        self.writes: list[tuple[int, int, bool]] = []
        self.most = most
        self._really = os.pwrite
        monkeypatch.setattr(os, "pwrite", self)

    def __call__(self, fd: int, data: memoryview, offset: int) -> int:
        direct = bool(fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT)
        count = self._really(fd, data[: self.most], offset)
        self.writes.append((offset, count, direct))
        return count

    def covers(self, size: int) -> bool:
        """Every byte once."""
        at = 0
        for offset, count, _ in sorted(self.writes):
            if offset != at:
                return False
            at += count
        return at == size


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(0, 3 * PAGE) | st.sampled_from([1, 16, PAGE - 1, PAGE, PAGE + 1, 1 << 17, (1 << 17) + 16]), max_size=9))
def test_any_pieces_come_out_as_they_went_in(tmp_path: Path, sizes: list[int]) -> None:
    path = tmp_path / "blob"
    path.unlink(missing_ok=True)
    pieces = random_pieces(sizes)
    write_pieces(path, pieces)
    assert path.read_bytes() == b"".join(pieces)


def test_whole_pages_go_past_the_page_cache_and_every_byte_is_written_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = random_pieces([MIB + 128] * 5 + [1000])
    watched = Watched(monkeypatch)
    write_pieces(tmp_path / "blob", pieces)
    assert (tmp_path / "blob").read_bytes() == b"".join(pieces)
    size = 5 * (MIB + 128) + 1000
    assert watched.covers(size)
    assert sum(count for _, count, direct in watched.writes if direct) == size // PAGE * PAGE
    assert all(offset % PAGE == 0 for offset, _, _ in watched.writes)


@pytest.mark.parametrize("most", [PAGE, 3 * PAGE, 5000], ids=["a page", "three pages", "no whole pages"])
def test_short_writes_are_gone_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int) -> None:
    """Of 5,000 bytes a real direct write refuses to begin or end: the page cache takes them."""
    pieces = random_pieces([100_000] * 3)
    watched = Watched(monkeypatch, most)
    write_pieces(tmp_path / "blob", pieces)
    assert (tmp_path / "blob").read_bytes() == b"".join(pieces)
    assert watched.covers(300_000)


def test_a_file_system_that_takes_the_flag_and_refuses_the_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    really = os.pwrite

    def refuse(fd: int, data: memoryview, offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            raise OSError(errno.EINVAL, "")
        return really(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse)
    pieces = random_pieces([MIB + 128] * 4)
    write_pieces(tmp_path / "blob", pieces)
    assert (tmp_path / "blob").read_bytes() == b"".join(pieces)


def test_two_threads_that_are_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second learns it when the first has fallen back already."""
    really, together = os.pwrite, threading.Barrier(2)

    def refuse(fd: int, data: memoryview, offset: int) -> int:
        if fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
            if together.wait(10) == 0:
                while fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_DIRECT:
                    time.sleep(0.001)
                time.sleep(0.01)
            raise OSError(errno.EINVAL, "")
        return really(fd, data, offset)

    monkeypatch.setattr(os, "pwrite", refuse)
    pieces = random_pieces([MIB + 128] * 2)
    write_pieces(tmp_path / "blob", pieces, threads=2)
    assert (tmp_path / "blob").read_bytes() == b"".join(pieces)


def test_invalid_for_another_reason_is_an_error_and_no_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise OSError(errno.EINVAL, "")

    monkeypatch.setattr(os, "pwrite", refuse)
    with pytest.raises(OSError, match="22"):
        write_pieces(tmp_path / "blob", random_pieces([MIB]))


def test_a_piece_that_fails_stops_those_after_it(tmp_path: Path) -> None:
    fd = os.open(tmp_path / "blob", os.O_RDWR | os.O_CREAT)
    try:
        writer, failed, after = PieceWriter(fd, 2 * MIB), Seam(), Seam()
        failed.cancel()
        scratch = Scratch()
        scratch.framed(MIB + 16, 100)
        with pytest.raises(CancelledError):
            writer.write(scratch.from_page(MIB + 16, 100), MIB + 16, failed, after)
    finally:
        os.close(fd)


@pytest.mark.fuse
def test_a_file_system_without_direct_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = random_pieces([MIB + 128] * 4)
    watched = Watched(monkeypatch)
    with mounted(tmp_path / "ramfs", "-t", "ramfs", "none") as place:
        write_pieces(place / "blob", pieces)
        assert (place / "blob").read_bytes() == b"".join(pieces)
    assert not any(direct for _, _, direct in watched.writes)
    assert watched.covers(4 * (MIB + 128))


@pytest.mark.fuse
def test_a_disk_that_is_too_small_is_known_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    with mounted(tmp_path / "tmpfs", "-t", "tmpfs", "-o", "size=1m", "none") as place:
        with pytest.raises(OSError) as caught:
            write_pieces(place / "blob", random_pieces([MIB + 128] * 2))
        assert caught.value.errno == errno.ENOSPC
    assert watched.writes == []


@pytest.mark.fuse
def test_a_disk_that_is_full_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    watched = Watched(monkeypatch)
    with small_disk(tmp_path) as place:
        with pytest.raises(OSError) as caught:
            write_pieces(place / "blob", random_pieces([MIB + 128] * 20))
        assert caught.value.errno == errno.ENOSPC
    assert 8 * MIB < sum(count for _, count, direct in watched.writes if direct) < 16 * MIB
