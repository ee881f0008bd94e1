"""The unmount sequence, which is the revocation: always the same steps in the same order, each timed, with a proof at the end.

fence -> keyless workers answer -> SIGKILL keyed workers -> resend -> evict -> check residency -> abort -> detach

It runs in the warden, or in control when the warden is gone. It touches neither store nor network; what may block runs in a
child with a deadline.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from modelfs.control.fence import State
from modelfs.control.process import die_with_parent, fork_child, kill_child, wait_child
from modelfs.control.sandbox import confine_looker
from modelfs.mount.session import cached_pages, evict_inodes, open_inode
from modelfs.mount.worker import MountShare, Worker, start_worker

KEYLESS_WORKERS = 2
EVICT_SECONDS = 10.0
CHECK_SECONDS = 5.0
RECOUNT_SECONDS = 1.0
"""For all files together: what is counted is counted again until it is nothing."""
SECONDS_PER_INODE = 0.0005
"""On top of both, for models of very many files."""
REAP_SECONDS = 1.0
"""For each worker that was killed."""
DETACH_SECONDS = 15.0
"""For what comes after the page cache is empty: the kernel lets go of the mount, fusermount3 where this is not root."""
RESEND_SECONDS = 0.02
"""A worker that is being killed may still take a request: resend until the eviction is through."""

logger = logging.getLogger(__name__)

_PAGE_SIZE = os.sysconf("SC_PAGE_SIZE")
_CANNOT = b"cannot"

Alive = Callable[[float | None], None]
"""Called at every step and while one is waited for: each second at least. With a number, the next call may take so many seconds."""


def nobody_waits(_seconds: float | None) -> None:
    """Who takes the mount down tells nobody that it goes on."""


@dataclass
class Proof:
    """What an unmount did and found."""

    reason: str
    model: str
    release: int
    mountpoint: str
    steps_ms: dict[str, float] = field(default_factory=dict)
    """Milliseconds from the start to the end of each step, in order."""
    resident_bytes: int | None = None
    """Plaintext bytes left in the page cache; None if they were not counted."""
    not_counted: str | None = None
    """What went wrong, where they could have been counted."""
    evicted: bool = False
    """Whether eviction ended within its deadline."""
    detached: bool = False
    workers_left: list[int] = field(default_factory=list)
    """Killed workers that the kernel has not let go of, because the store below hangs; they run no code any more."""

    @property
    def is_clean(self) -> bool:
        """Whether nothing is left that could be read."""
        return self.evicted and self.detached and not self.resident_bytes and self.not_counted is None

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


@dataclass
class Darkness:
    """What a darkening did and found; `steps_ms` counts from its start."""

    steps_ms: dict[str, float] = field(default_factory=dict)
    resident_bytes: int | None = None
    not_counted: str | None = None
    evicted: bool = False
    workers_left: list[int] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """The fields as JSON values."""
        return asdict(self)


class _Watch:
    """Notes when each step ended, in milliseconds from its making, and says that the next one begins."""

    def __init__(self, steps_ms: dict[str, float], alive: Alive) -> None:
        self._start = time.monotonic()
        self._alive = alive
        self._steps_ms = steps_ms

    def done(self, step: str) -> None:
        self._steps_ms[step] = round((time.monotonic() - self._start) * 1000, 3)
        self._alive(None)


def darken_seconds(share: MountShare, workers: int) -> float:
    """How long `darken` takes at most, on a machine that is slow but not stuck."""
    return 5.0 + EVICT_SECONDS + CHECK_SECONDS + 2 * SECONDS_PER_INODE * len(share.rows) + REAP_SECONDS * workers


def tear_down_seconds(share: MountShare, workers: int) -> float:
    """The same of `tear_down`."""
    return darken_seconds(share, workers) + DETACH_SECONDS + 2 * KEYLESS_WORKERS * REAP_SECONDS


def darken(share: MountShare, keyed: list[Worker], state: State | None, alive: Alive = nobody_waits) -> tuple[Darkness, list[Worker]]:
    """Fence, end every process that holds a key, and take the plaintext out of the page cache. The mount stays.

    Args:
        share: The mount. Its fence may have fallen already.
        keyed: Workers that this process started; empty when it is not the warden. They are reaped and forgotten.
        state: LOCKED or REVOKED; None: control has closed the fence and wiped the key, and may be about to open the next epoch.
        alive: See `Alive`.

    Returns:
        What was done, and the keyless workers that answer from now on.
    """
    dark = Darkness()
    watch = _Watch(dark.steps_ms, alive)
    if state is not None:
        share.fence.close(state)
        share.key_page.wipe()
    watch.done("fence")
    keyless: list[Worker] = []
    for _ in range(KEYLESS_WORKERS):
        with contextlib.suppress(OSError):  # the connection is gone already: nobody can read, only evicting is left
            keyless.append(start_worker(share, keyed=False))
    watch.done("keyless")
    for worker in keyed:
        kill_child(worker.pid)
    watch.done("kill")
    share.session.resend()
    watch.done("resend")
    dark.evicted = _run(lambda: evict_inodes(len(share.rows)), EVICT_SECONDS + SECONDS_PER_INODE * len(share.rows), share, alive)
    watch.done("evict")
    dark.resident_bytes, dark.not_counted = _count_resident(share, alive)
    watch.done("check")
    dark.workers_left = forget_workers(share, keyed, alive)
    return dark, keyless


def forget_workers(share: MountShare, killed: list[Worker], alive: Alive = nobody_waits) -> list[int]:
    """Reap workers that were killed, hand on what they took last, and close what is held of them; those that cannot be reaped yet.

    A killed worker runs until the signal reaches it, and may take a request that has just been resent. So resend once more when it is
    dead: what its queue holds when that is closed ends with ECONNABORTED.
    """
    left = []
    for worker in killed:
        if wait_child(worker.pid, REAP_SECONDS) is None:
            left.append(worker.pid)
        alive(None)
    if killed:
        share.session.resend()
    for worker in killed:
        worker.forget()
    return left


def tear_down(share: MountShare, keyed: list[Worker], keyless: list[Worker], reason: str, alive: Alive = nobody_waits) -> Proof:
    """End all access through the mount.

    Args:
        share: The mount. Its fence may have fallen already.
        keyed: Workers with keys that this process started; empty when it is not the warden.
        keyless: Workers without keys that this process started, of a mount that is dark already.
        reason: For the proof.
        alive: See `Alive`.
    """
    session, manifest = share.session, share.pinned.manifest
    proof = Proof(reason, manifest.model, manifest.release, session.mountpoint)
    watch = _Watch(proof.steps_ms, alive)
    dark, more = darken(share, keyed, State.REVOKED, alive)
    keyless = [*keyless, *more]
    proof.steps_ms.update(dark.steps_ms)
    proof.evicted, proof.resident_bytes, proof.not_counted = dark.evicted, dark.resident_bytes, dark.not_counted
    alive(DETACH_SECONDS)
    _attempt("abort", session.abort)
    watch.done("abort")
    alive(DETACH_SECONDS)
    proof.detached = _attempt("detach", session.detach)
    watch.done("detach")
    for worker in keyless:
        kill_child(worker.pid)
    proof.workers_left = dark.workers_left + forget_workers(share, keyless, alive)
    watch.done("end")
    return proof


def _attempt(step: str, action: Callable[[], bool]) -> bool:
    """Nothing may keep the steps that follow from being taken."""
    try:
        return action()
    except Exception:
        logger.exception("the step %s of the unmount failed", step)
        return False


def _run(action: Callable[[], None], timeout_s: float, share: MountShare, alive: Alive) -> bool:
    """Run what may block in a child; whether it ended well in time. Meanwhile keep handing on what killed workers hold."""
    parent = os.getpid()

    def main() -> int:
        die_with_parent(parent)
        confine_looker()
        action()
        return 0

    try:
        pid = fork_child(main)
    except OSError:
        logger.exception("a step of the unmount needs a process, and none can be had")
        return False
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        code = wait_child(pid, RESEND_SECONDS)
        if code is not None:
            return code == 0
        share.session.resend()
        alive(None)
    kill_child(pid)
    wait_child(pid, 0.2)
    return False


def _count_resident(share: MountShare, alive: Alive) -> tuple[int | None, str | None]:
    """Plaintext bytes in the page cache, counted in a child through descriptors that are found by inode, not by name.

    Returns:
        The bytes, or None; and why the count failed. Where it cannot be done, None says no more: not root, a kernel that does not count,
        a mount or connection that somebody else has ended.
    """
    reading, writing = os.pipe()

    def count() -> None:
        share.fence.checker_pid = os.getpid()
        try:
            root = os.open(share.session.mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            if exc.errno != errno.ENOTCONN:
                raise
            os.write(writing, _CANNOT)  # somebody else has ended the connection: nobody answers any more
            return
        if cached_pages(root) is None or open_inode(root, 1) is None:
            os.write(writing, _CANNOT)  # the root is always known: this kernel does not find inodes so, and 0 would be a guess
            return
        pages, patience = 0, time.monotonic() + RECOUNT_SECONDS
        for inode in range(1, len(share.rows) + 1):
            row = share.rows.row(inode)
            fd = open_inode(root, inode) if row and row[0] else None
            if fd is None:
                continue
            found = cached_pages(fd)
            # For a read that is about to be refused the kernel makes pages, empty ones, and drops them again.
            while found and time.monotonic() < patience:
                time.sleep(RESEND_SECONDS)
                found = cached_pages(fd)
            os.close(fd)
            if found is None:
                os.write(writing, _CANNOT)
                return
            pages += found
        os.write(writing, str(pages * _PAGE_SIZE).encode())

    try:
        if os.geteuid() != 0 or not share.session.is_on_top():
            return None, None
        if not _run(count, CHECK_SECONDS + SECONDS_PER_INODE * len(share.rows), share, alive):
            logger.error("the residency check did not end in time or failed")
            return None, "the residency check did not end in time or failed"
        answer = os.read(reading, 32)
        return (None, None) if answer == _CANNOT else (int(answer), None)
    finally:
        share.fence.checker_pid = 0
        os.close(reading)
        os.close(writing)
