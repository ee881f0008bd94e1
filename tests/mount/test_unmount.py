"""Unmounting is revoking: open files, mappings and the page cache go dark, whatever has died or hangs."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelfs.control.process import is_running
from modelfs.mount.mountinfo import top_mount
from tests.conftest import SealedBuilder
from tests.mount.conftest import Mounted, Program, modelfs, wait_until

SIZE = 64 << 20


@pytest.fixture
def holder(sealed: SealedBuilder, mount: Callable[..., Mounted], program: Callable[..., Program]) -> tuple[Mounted, Program]:
    """A mount with two workers, and a process that holds its file open and mapped, all of it resident."""
    model = sealed({"model.bin": random.Random(2).randbytes(SIZE)}, block_size=128 * 1024)
    mounted = mount(model, "--workers", 2)
    reader = program("hold", mounted.path / "model.bin")
    before = reader.line()
    assert before["resident"] == before["size"] == SIZE, "the page cache must hold the plaintext, or the test shows nothing"
    return mounted, reader


def assert_dark(after: dict[str, Any]) -> None:
    assert after["read"] in ("EKEYREVOKED", "ENOTCONN", "ECONNABORTED"), after
    assert after["resident"] == 0, after
    assert after["touch"] == "SIGBUS", after


def assert_gone(mounted: Mounted, pids: list[int]) -> None:
    wait_until(lambda: not mounted.is_attached(), 15, "the detaching")
    wait_until(lambda: not any(map(is_running, pids)), 15, f"the end of {pids}")


def test_unmount_with_an_open_and_mapped_file(holder: tuple[Mounted, Program]) -> None:
    mounted, reader = holder
    pids = mounted.pids()
    proof = mounted.unmount()
    assert not any(map(is_running, pids)), "unmount returned before the processes had ended"
    assert not mounted.is_attached()
    assert_dark(reader.finish())
    assert list(proof["steps_ms"]) == ["fence", "keyless", "kill", "resend", "evict", "check", "abort", "detach", "end"]
    assert proof["resident_bytes"] == 0
    assert proof["evicted"]
    assert proof["detached"]
    assert proof["reason"] == "unmount"


def test_control_killed(holder: tuple[Mounted, Program]) -> None:
    mounted, reader = holder
    pids = mounted.pids()
    os.kill(mounted.facts["control"], signal.SIGKILL)
    assert_gone(mounted, pids)
    assert_dark(reader.finish())
    assert "control died" in mounted.log
    assert modelfs("status").stdout.count(str(mounted.path)) == 0


def test_warden_killed(holder: tuple[Mounted, Program]) -> None:
    mounted, reader = holder
    pids = mounted.pids()
    os.kill(mounted.facts["warden"], signal.SIGKILL)
    assert_gone(mounted, pids)
    assert_dark(reader.finish())
    assert "the warden died" in mounted.log


def test_unmount_with_a_stopped_warden(holder: tuple[Mounted, Program]) -> None:
    mounted, reader = holder
    pids = mounted.pids()
    os.kill(mounted.facts["warden"], signal.SIGSTOP)
    done = modelfs("unmount", mounted.path, "--json")
    assert done.returncode == 8, "a process of the mount died; it was taken down in order"
    assert json.loads(done.stdout)["resident_bytes"] == 0
    assert "warden" in done.stderr
    assert_gone(mounted, pids)
    assert_dark(reader.finish())


@pytest.mark.parametrize("mode", ["buffered", "direct"])
def test_unmount_while_the_store_hangs(
    sealed: SealedBuilder,
    mount: Callable[..., Mounted],
    program: Callable[..., Program],
    hung_store: Callable[[Path], "HungStore"],
    mode: str,
) -> None:
    model = sealed({"model.bin": random.Random(4).randbytes(SIZE), "other.bin": random.Random(5).randbytes(SIZE)}, block_size=128 * 1024)
    store = hung_store(model.path)
    mounted = mount(replace(model, path=store.mountpoint), "--workers", 2)
    reader = program("hold", mounted.path / "model.bin")
    assert reader.line()["resident"] == SIZE
    plain = model.source / "other.bin"
    stuck = [program("loop", mode, mounted.path / "other.bin", plain) for _ in range(4)]
    for each in stuck:
        each.line()
    store.stop()
    time.sleep(1.0)  # until every worker waits for the store
    assert mounted.status()["state"] == "serving", "a hung store must not hold up status"
    pids = mounted.pids()
    started = time.monotonic()
    proof = mounted.unmount()
    assert time.monotonic() - started < 10
    assert proof["resident_bytes"] == 0
    assert proof["evicted"]
    assert not mounted.is_attached()
    assert_dark(reader.finish())
    for each in stuck:
        result = each.finish()
        assert result["wrong"] == 0
        assert set(result["errors"]) <= {"EKEYREVOKED", "ENOTCONN", "ECONNABORTED"}, result
    left = [pid for pid in pids if is_running(pid)]
    assert set(left) <= set(proof["workers_left"]), "only workers that the kernel holds in the hung store may be left"
    for pid in left:
        pending = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("ShdPnd"))
        assert int(pending.split()[1], 16) & 1 << (signal.SIGKILL - 1), "what is left must never run again"
    store.close()
    wait_until(lambda: not any(map(is_running, pids)), 10, "the end of every process once the store answers")


def test_control_killed_while_the_store_hangs(
    sealed: SealedBuilder,
    mount: Callable[..., Mounted],
    program: Callable[..., Program],
    hung_store: Callable[[Path], "HungStore"],
) -> None:
    model = sealed({"model.bin": random.Random(4).randbytes(SIZE)}, block_size=128 * 1024)
    store = hung_store(model.path)
    mounted = mount(replace(model, path=store.mountpoint), "--workers", 1)
    reader = program("hold", mounted.path / "model.bin")
    assert reader.line()["resident"] == SIZE
    stuck = program("loop", "buffered", mounted.path / "model.bin", model.source / "model.bin")
    stuck.line()
    store.stop()
    time.sleep(1.0)
    pids = mounted.pids()
    os.kill(mounted.facts["control"], signal.SIGKILL)
    wait_until(lambda: not mounted.is_attached(), 15, "the detaching")
    assert_dark(reader.finish())
    store.close()
    wait_until(lambda: not any(map(is_running, pids)), 10, "the end of every process")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_control_unmounts(holder: tuple[Mounted, Program], number: signal.Signals) -> None:
    mounted, reader = holder
    pids = mounted.pids()
    os.kill(mounted.facts["control"], number)
    assert_gone(mounted, pids)
    assert_dark(reader.finish())
    assert '"resident_bytes": 0' in mounted.log


def test_lazy_unmount_by_hand_revokes(holder: tuple[Mounted, Program]) -> None:
    mounted, reader = holder
    pids = mounted.pids()
    subprocess.run(["umount", "-l", mounted.path], check=True)
    assert_gone(mounted, pids)
    assert_dark(reader.finish())
    assert "the mount was detached" in mounted.log


def test_forced_unmount_by_hand_revokes(holder: tuple[Mounted, Program]) -> None:
    """`umount -f` ends the connection first, so the residency check has nobody to ask; the reader itself says what is left."""
    mounted, reader = holder
    pids = mounted.pids()
    subprocess.run(["umount", "-f", mounted.path], check=False, capture_output=True)
    assert_gone(mounted, pids)
    assert_dark(reader.finish())
    assert "somebody ended the connection" in mounted.log
    assert "Traceback" not in mounted.log


def test_readers_under_load_see_only_right_bytes_or_errors(
    sealed: SealedBuilder, mount: Callable[..., Mounted], program: Callable[..., Program]
) -> None:
    model = sealed({"model.bin": random.Random(3).randbytes(SIZE // 2)}, block_size=128 * 1024)
    mounted = mount(model)
    plain = model.source / "model.bin"
    readers = [program("loop", mode, mounted.path / "model.bin", plain) for mode in ("buffered", "direct") * 4]
    for reader in readers:
        reader.line()
    time.sleep(0.5)
    started = time.monotonic()
    proof = mounted.unmount()
    assert time.monotonic() - started < 10
    assert proof["resident_bytes"] == 0
    for reader in readers:
        result = reader.finish()
        assert result["wrong"] == 0, result
        assert set(result["errors"]) <= {"EKEYREVOKED", "ENOTCONN", "ECONNABORTED"}, result
        assert result["errors"], "the reader went on reading after the unmount"


def test_residency_check_counts_what_is_there(holder: tuple[Mounted, Program]) -> None:
    """The check must be able to fail: the same descriptors by inode see the resident file while the mount serves."""
    from modelfs.mount.session import cached_pages, open_inode

    mounted, _ = holder
    root = os.open(mounted.path, os.O_RDONLY | os.O_DIRECTORY)
    fd = open_inode(root, 2)
    assert fd is not None
    assert cached_pages(fd) == SIZE // 4096
    os.close(fd)
    os.close(root)


@pytest.fixture
def hung_store(tmp_path: Path) -> Iterator[Callable[[Path], "HungStore"]]:
    made: list[HungStore] = []

    def make(below: Path) -> HungStore:
        made.append(HungStore(below, tmp_path / "passthrough"))
        return made[-1]

    yield make
    for store in made:
        store.close()


class HungStore:
    """A pass-through FUSE file system over a directory, which SIGSTOP hangs."""

    def __init__(self, below: Path, mountpoint: Path) -> None:
        mountpoint.mkdir()
        script = Path(__file__).parent / "passthrough.py"
        self.mountpoint = mountpoint
        self.process = subprocess.Popen([sys.executable, str(script), str(below), str(mountpoint)])
        wait_until(lambda: top_mount(os.fsencode(mountpoint)) is not None, 10, "the pass-through mount")

    def stop(self) -> None:
        self.process.send_signal(signal.SIGSTOP)

    def close(self) -> None:
        if self.process.returncode is not None:
            return
        self.process.send_signal(signal.SIGCONT)
        subprocess.run(["umount", "-l", self.mountpoint], check=False)
        self.process.terminate()
        self.process.wait(10)
