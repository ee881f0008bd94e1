"""The fence: what it allows, who sees it, and that it does not come back."""

import errno
import os
import time

from modelfs.control.fence import Fence, State


def test_a_new_fence_allows_nothing() -> None:
    fence = Fence()
    assert fence.state is State.REVOKED
    assert not fence.allows(fence.epoch)


def test_an_open_epoch_allows_itself_and_no_other() -> None:
    fence = Fence()
    epoch = fence.open_epoch()
    assert fence.allows(epoch)
    assert not fence.allows(epoch - 1)
    assert not fence.allows(epoch + 1)


def test_a_closed_fence_is_seen_by_a_forked_process() -> None:
    fence = Fence()
    epoch = fence.open_epoch()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, b"1")
        deadline = time.monotonic() + 10
        while fence.allows(epoch) and time.monotonic() < deadline:
            pass
        os._exit(1 if fence.allows(epoch) else 0)
    os.read(reading, 1)
    fence.close(State.REVOKED)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    os.close(reading)
    os.close(writing)


def test_a_passed_deadline_allows_nothing() -> None:
    fence = Fence()
    now = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    assert not fence.allows(fence.open_epoch(deadline_ns=now - 1))
    assert fence.allows(fence.open_epoch(deadline_ns=now + 10**12))


def test_reopening_after_a_lock_needs_new_workers() -> None:
    fence = Fence()
    old = fence.open_epoch()
    fence.close(State.LOCKED)
    assert fence.errno == errno.EKEYEXPIRED
    new = fence.open_epoch()
    assert fence.allows(new)
    assert not fence.allows(old)


def test_revoked_is_not_weakened_to_locked() -> None:
    fence = Fence()
    fence.open_epoch()
    fence.close(State.REVOKED)
    fence.close(State.LOCKED)
    assert fence.state is State.REVOKED
    assert fence.errno == errno.EKEYREVOKED


def test_revoked_is_for_good() -> None:
    fence = Fence()
    fence.open_epoch()
    fence.close(State.REVOKED)
    assert not fence.allows(fence.open_epoch())
    assert fence.state is State.REVOKED
