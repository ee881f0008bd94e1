"""The fence: one shared word that stops plaintext, seen by every worker within microseconds.

A page of memory shared by all processes of a mount. A keyed worker serves only while the state is SERVING, the epoch is
the one it was started in and the deadline (CLOCK_BOOTTIME, so a suspended host's lease runs out) has not passed; it looks
after it received a request and again right before it replies. Whoever holds the page can fence; nobody can take a fence
back without a new epoch.
"""

import errno
import mmap
import time
from enum import IntEnum

_EPOCH, _STATE, _DEADLINE, _CHECKER = range(4)

NO_DEADLINE = (1 << 63) - 1


class State(IntEnum):
    """What a mount may answer."""

    SERVING = 1
    LOCKED = 2
    """The lease ran out or an operator paused it: EKEYEXPIRED."""
    REVOKED = 3
    """Terminal: EKEYREVOKED."""


class Fence:
    """Handle on the shared page; inherited over fork. Each slot is one aligned 8-byte store."""

    def __init__(self) -> None:
        """Make a page in state REVOKED: nothing is served before `open_epoch`."""
        self._page = mmap.mmap(-1, mmap.PAGESIZE)
        self._slots = memoryview(self._page).cast("Q")
        self._slots[_STATE] = State.REVOKED

    @property
    def epoch(self) -> int:
        """Grows each time that keys change hands."""
        return self._slots[_EPOCH]

    @property
    def state(self) -> State:
        """The current state."""
        return State(self._slots[_STATE])

    @property
    def deadline_ns(self) -> int:
        """CLOCK_BOOTTIME nanoseconds after which no plaintext leaves."""
        return self._slots[_DEADLINE]

    @property
    def checker_pid(self) -> int:
        """The process that may look at attributes of a dark mount, to count resident pages; 0 if none."""
        return self._slots[_CHECKER]

    @checker_pid.setter
    def checker_pid(self, pid: int) -> None:
        self._slots[_CHECKER] = pid

    def open_epoch(self, deadline_ns: int = NO_DEADLINE) -> int:
        """Start a new epoch in which workers may serve; its number. Nothing, after a revocation."""
        if self.state is State.REVOKED and self.epoch:
            return self.epoch
        self._slots[_DEADLINE] = deadline_ns
        self._slots[_EPOCH] += 1
        self._slots[_STATE] = State.SERVING
        return self.epoch

    def extend(self, deadline_ns: int) -> None:
        """Move the deadline of the current epoch: the lease was proven again."""
        self._slots[_DEADLINE] = deadline_ns

    def close(self, state: State) -> None:
        """Fence: from now on no worker of the current epoch replies with plaintext."""
        if self.state is not State.REVOKED:
            self._slots[_STATE] = state
        self._slots[_EPOCH] += 1

    def allows(self, epoch: int) -> bool:
        """Whether a worker of `epoch` may send plaintext now."""
        slots = self._slots
        return slots[_STATE] == State.SERVING and slots[_EPOCH] == epoch and time.clock_gettime_ns(time.CLOCK_BOOTTIME) < slots[_DEADLINE]

    @property
    def errno(self) -> int:
        """What readers of a mount without keys are told."""
        return errno.EKEYREVOKED if self.state is State.REVOKED else errno.EKEYEXPIRED
