"""Processes that are stopped (SIGSTOP) instead of dying, and a proof that cannot be given: what an operator is told."""

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress

import pytest

from modelfs.control.loop import LOCK_SECONDS
from modelfs.control.process import is_running
from modelfs.control.warden_link import DARKEN_SECONDS
from tests.faults.conftest import assert_dark, assert_gone, children, status
from tests.helpers import Sealed
from tests.mount.conftest import Mounted, Program, modelfs, wait_until


def test_lock_with_a_stopped_warden_takes_the_mount_down_instead(
    model: Sealed, mount: Callable[..., Mounted], program: Callable[..., Program]
) -> None:
    """Only the warden could take the plaintext out of the page cache. Fenced at once, evicted within seconds by control."""
    mounted = mount(model)
    holder = program("hold", mounted.path / "model.bin")
    holder.line()
    pids = mounted.pids()
    os.kill(mounted.facts["warden"], signal.SIGSTOP)
    start = time.monotonic()
    done = modelfs("lock", mounted.path)
    assert done.returncode == 7
    assert "not locked, but taken down (the warden does not answer)" in done.stderr
    assert done.stderr.count("\n") == 1
    assert DARKEN_SECONDS < time.monotonic() - start < LOCK_SECONDS
    assert_gone(mounted, pids)
    assert_dark(holder.finish())


def test_a_lease_that_ends_while_the_warden_is_stopped(
    model: Sealed, mount: Callable[..., Mounted], program: Callable[..., Program]
) -> None:
    """Workers keep the fence's deadline by themselves; what is in the page cache goes when control has waited for the warden."""
    mounted = mount(model, "--renew-every", 0.5, "--ttl", 2)
    holder = program("hold", mounted.path / "model.bin")
    holder.line()
    pids = mounted.pids()
    away = model.keys.kek.with_name("away")
    os.kill(mounted.facts["warden"], signal.SIGSTOP)
    model.keys.kek.rename(away)
    try:
        assert_gone(mounted, pids)
    finally:
        away.rename(model.keys.kek)
    assert_dark(holder.finish())
    assert "the warden does not answer" in mounted.log


def test_a_stopped_control_cannot_stretch_a_lease(model: Sealed, mount: Callable[..., Mounted]) -> None:
    """The warden darkens by itself; control, when it goes on, finds its lease ended and asks anew."""
    mounted = mount(model, "--workers", 1, "--renew-every", 0.5, "--ttl", 2)
    control = mounted.facts["control"]
    os.kill(control, signal.SIGSTOP)
    try:
        with open(mounted.path / "model.bin", "rb", buffering=0) as file:

            def is_dark() -> bool:
                try:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
                    return not os.pread(file.fileno(), 4096, 0)
                except OSError:
                    return True

            wait_until(is_dark, 2 + 2, "the lease's end")
    finally:
        os.kill(control, signal.SIGCONT)

    def serves() -> bool:
        with suppress(OSError):  # EKEYEXPIRED
            return (mounted.path / "model.bin").read_bytes() == model.plain["model.bin"]
        return False

    wait_until(serves, 10, "a new grant")


def test_a_stopped_keyless_worker_holds_up_neither_errors_nor_unlock(model: Sealed, mount: Callable[..., Mounted]) -> None:
    mounted = mount(model, "--workers", 1)
    assert modelfs("lock", mounted.path).returncode == 0
    for pid in status(mounted)["workers"]:
        os.kill(pid, signal.SIGSTOP)
    with pytest.raises(OSError, match="Key has expired"):
        os.listdir(mounted.path)
    assert modelfs("unlock", mounted.path).returncode == 0
    assert (mounted.path / "model.bin").read_bytes() == model.plain["model.bin"]


def kill_the_fourth(warden: int, workers: set[int], ended: threading.Event) -> None:
    """Of an unmount's children: two workers without keys, the one that evicts, and the one that counts."""
    seen: list[int] = []
    while not ended.is_set() and is_running(warden):
        seen += [pid for pid in children(warden) if pid not in workers and pid not in seen]
        if len(seen) >= 4:
            with suppress(ProcessLookupError):
                os.kill(seen[3], signal.SIGKILL)
            return


def test_an_unmount_that_could_not_count_is_no_success(model: Sealed, mount: Callable[..., Mounted]) -> None:
    """Root has asked for a revocation, and is not told that it is proven when it is not."""
    for _ in range(5):  # the count takes milliseconds: it may be over before it is hit
        mounted = mount(model)
        pids = mounted.pids()
        ended = threading.Event()
        thread = threading.Thread(target=kill_the_fourth, args=(mounted.facts["warden"], set(pids), ended))
        thread.start()
        done = modelfs("unmount", mounted.path, "--json")
        ended.set()
        thread.join()
        assert_gone(mounted, pids)
        proof = json.loads(done.stdout)
        assert (proof["evicted"], proof["detached"]) == (True, True)
        if proof["resident_bytes"] is None:
            assert done.returncode == 7
            assert "what is left in the page cache is not known (the residency check did not end in time or failed)" in done.stderr
            return
        assert (proof["resident_bytes"], proof["not_counted"], done.returncode) == (0, None, 0)
    pytest.fail("the counting child was never hit")
