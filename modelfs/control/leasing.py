"""Drives a mount's lease: proofs in short-lived children, clocks, and what the table of control/lease.py says to do.

One proof at a time, each with a total deadline; no answer counts after a lock, a revocation or a newer proof, because the child
that would give it is killed first. The fence carries the lease's end, so workers and warden keep it even if this process stops.
"""

import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass

import trio

from modelfs.control.fence import Fence, State
from modelfs.control.keypage import KeyPage
from modelfs.control.lease import Action, Event, Happening, Lease, LeasePolicy, LeaseState, new_lease, renew_delay_s, retry_delay_s, step
from modelfs.control.prover import Answer, Prover, Verdict

logger = logging.getLogger(__name__)

TICK_S = 0.1
CLOCK_JUMP_S = 5.0
"""The wall clock may run ahead of CLOCK_BOOTTIME by this much between two ticks; more is a paused or restored VM."""


@dataclass(frozen=True)
class Clocks:
    """Time and chance as arguments."""

    boot_s: Callable[[], float] = lambda: time.clock_gettime(time.CLOCK_BOOTTIME)
    wall_s: Callable[[], float] = time.time
    chance: Callable[[], float] = secrets.SystemRandom().random


@dataclass(frozen=True)
class Effects:
    """What the lease does to the world around it."""

    darken: Callable[[], None]
    """Tell the warden; the fence is closed already."""
    light: Callable[[], None]
    """Tell the warden that a new epoch is open and its key in the key page."""
    revoke: Callable[[str], None]
    """Begin the unmount sequence; the fence is closed already."""
    report: Callable[[Event, Lease], None]
    """Audit and log: called after the others, but before `light`. May lock the lease again."""


class LeaseHolder:
    """One mount's lease in motion. All methods run in trio's thread; only `run` waits."""

    def __init__(
        self,
        policy: LeasePolicy,
        prover: Prover,
        fence: Fence,
        key_page: KeyPage,
        effects: Effects,
        expires_at: float | None,
        clocks: Clocks | None = None,
    ) -> None:
        """Take a mount that a first proof has just opened; call `start` with its answer.

        Args:
            policy: Intervals.
            prover: Makes proofs.
            fence: Its deadline is the lease's end.
            key_page: Wiped when the mount goes dark.
            effects: See `Effects`.
            expires_at: The manifest's expiry, seconds since 1970, or None.
            clocks: See `Clocks`.
        """
        self.policy = policy
        self.lease = new_lease()
        self.key_version: int | None = None
        self.kek: str | None = None
        """Name of the KEK that granted last."""
        self.passed = ""
        """What the KEKs said at the last proof that were passed over."""
        self.proofs = 0
        """How many proofs have ended, with an answer or without."""
        self._begun = 0
        self._is_closed = False
        self._again = False
        self._prover = prover
        self._fence = fence
        self._key_page = key_page
        self._effects = effects
        self._expires_at = expires_at
        self._clocks = clocks or Clocks()
        self._next_proof_at: float | None = None
        self._wake = trio.Event()
        self._proof_scope: trio.CancelScope | None = None

    def start(self, answer: Answer) -> None:
        """Begin with the grant that opened the mount, before the warden starts: the fence is opened, nobody is told."""
        self.lease, _ = step(self.lease, self._happening(answer), self._clocks.boot_s())
        self.key_version, self.kek, self.passed = answer.key_version, answer.kek, answer.passed
        if self.lease.state is LeaseState.GRANTED:
            self._fence.open_epoch(self._deadline_ns())
            self._next_proof_at = self._clocks.boot_s() + self._renew_delay_s()

    async def run(self) -> None:
        """Prove, watch the clocks, and act, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_clocks)
            while True:
                await self._until_next_proof()
                await self._prove()

    def lock(self, reason: str = "an operator locked the mount") -> None:
        """An operator's lock, or one that he has ordered beforehand: stays until an operator's unlock."""
        self._apply(Happening(Event.LOCK, reason))

    def unlock(self) -> None:
        """An operator's unlock: asks the key service again."""
        self._apply(Happening(Event.UNLOCK))

    def prove_now(self) -> int:
        """Ask the key service now, or once more right after a proof that is under way; nothing while an operator's lock lasts.

        Returns:
            What `proofs` is when that has been answered.
        """
        self._again = self._begun > self.proofs
        if not self._again and self.lease.state is not LeaseState.PAUSED and not self._is_closed:
            self._schedule(self._clocks.boot_s())
        return self._begun + 1

    def close(self) -> None:
        """The mount is ending: no more proofs, and whatever happens to the lease has no effect any more."""
        self._is_closed = True
        self._next_proof_at = None
        if self._proof_scope is not None:
            self._proof_scope.cancel()

    def _deadline_ns(self) -> int:
        return int(self.lease.end_at_s * 1e9)

    def _renew_delay_s(self) -> float:
        left_s = self.lease.end_at_s - self._clocks.boot_s()
        return renew_delay_s(self.policy.renew_every_s, left_s, self._clocks.chance())

    def _happening(self, answer: Answer) -> Happening:
        match answer.verdict:
            case Verdict.GRANTED:
                ttl_s = min(self.policy.ttl_s, answer.ttl_s if answer.ttl_s is not None else self.policy.ttl_s)
                return Happening(Event.GRANT, sent_at_s=answer.sent_at_s, ttl_s=ttl_s)
            case Verdict.DENIED:
                return Happening(Event.DENIAL, answer.reason)
        return Happening(Event.NO_ANSWER, answer.reason)

    def _apply(self, happening: Happening) -> None:
        """One step of the table and all that follows from it. No await in here: nothing may come between."""
        if self._is_closed:
            return
        before = self.lease
        self.lease, actions = step(before, happening, self._clocks.boot_s())
        after = self.lease
        lights = Action.LIGHT in actions
        if lights:
            self._effects.report(happening.event, after)
            if self.lease is not after:
                return  # it could not be recorded, and must not serve so
        for action in actions:
            self._act(action)
        if not lights and (actions or after != before):
            self._effects.report(happening.event, after)

    def _act(self, action: Action) -> None:
        now = self._clocks.boot_s()
        match action:
            case Action.EXTEND:
                self._fence.extend(self._deadline_ns())
            case Action.RENEW_LATER:
                self._schedule(now + self._renew_delay_s())
            case Action.RETRY_LATER:
                self._schedule(now + retry_delay_s(self.policy.renew_every_s, self.lease.failures, self._clocks.chance()))
            case Action.PROVE_NOW:
                self._schedule(now)
            case Action.DARKEN:
                self._stop_proof()
                self._fence.close(State.LOCKED)
                self._key_page.wipe()
                self._effects.darken()
            case Action.LIGHT:
                self._fence.open_epoch(self._deadline_ns())
                self._effects.light()
            case Action.REVOKE:
                self._stop_proof()
                self._fence.close(State.REVOKED)
                self._key_page.wipe_all()
                self._effects.revoke(self.lease.last_error or "denied")

    def _schedule(self, at_s: float | None) -> None:
        self._next_proof_at = at_s
        self._wake.set()
        self._wake = trio.Event()

    def _stop_proof(self) -> None:
        """A child that is proving may be about to write a key: it is killed before the page is wiped."""
        self._schedule(None)
        self._prover.kill()
        if self._proof_scope is not None:
            self._proof_scope.cancel()

    async def _until_next_proof(self) -> None:
        while True:
            wake = self._wake
            left = float("inf") if self._next_proof_at is None else self._next_proof_at - self._clocks.boot_s()
            if left <= 0:
                return
            with trio.move_on_after(max(left, 0.001)):  # two clocks: less would be no wait at all for trio's
                await wake.wait()

    async def _prove(self) -> None:
        self._begun += 1
        try:
            await self._prove_once()
        finally:
            self.proofs = self._begun
        if self._again and self.lease.state in (LeaseState.GRANTED, LeaseState.UNREACHABLE, LeaseState.LOCKED):
            self._schedule(self._clocks.boot_s())
        self._again = False

    async def _prove_once(self) -> None:
        self._next_proof_at = None
        answer: Answer | None = None
        with trio.CancelScope() as self._proof_scope:
            answer = await self._prover.prove(self.lease.state is LeaseState.LOCKED, self.policy.proof_timeout_s)
        self._proof_scope = None
        if answer is None:
            return  # stopped: whatever it would have said does not count
        if self._is_expired():
            self._apply(Happening(Event.EXPIRY, "the release has expired"))
            return
        if answer.verdict is Verdict.GRANTED:
            self.key_version, self.kek, self.passed = answer.key_version, answer.kek, answer.passed
        self._apply(self._happening(answer))

    def _is_expired(self) -> bool:
        return self._expires_at is not None and self._clocks.wall_s() >= self._expires_at

    async def _watch_clocks(self) -> None:
        boot, wall = self._clocks.boot_s(), self._clocks.wall_s()
        while True:
            await trio.sleep(TICK_S)
            last_boot, last_wall = boot, wall
            boot, wall = self._clocks.boot_s(), self._clocks.wall_s()
            serving = self.lease.state in (LeaseState.GRANTED, LeaseState.UNREACHABLE)
            if serving and boot >= self.lease.end_at_s:
                self._apply(Happening(Event.LEASE_END, "the lease ran out"))
            elif (wall - last_wall) - (boot - last_boot) > CLOCK_JUMP_S:
                self._apply(Happening(Event.CLOCK_JUMP, "the wall clock ran ahead: a paused or restored machine"))
            elif serving and self._is_expired():
                self._apply(Happening(Event.EXPIRY, "the release has expired"))
