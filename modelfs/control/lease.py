"""The lease: modelfs's own promise to hold a DEK no longer than it can prove it may. A pure state machine, written as a table.

Vault leases tokens and dynamic secrets, not the answer of a transit decrypt; what is leased here is our own holding of the
key. A proof is a renewed token and a DEK unwrapped again; the lease runs on from when the proof's request was *sent*. Times are
seconds on CLOCK_BOOTTIME, so a suspended host's lease runs out. What the machine does not do: keep time, talk to anybody, touch
the fence (control/leasing.py does).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum


class LeaseState(StrEnum):
    """What a mount may do."""

    GRANTED = "granted"
    """The last proof was granted: serving."""
    UNREACHABLE = "unreachable"
    """The key service does not answer: serving to the lease's end."""
    LOCKED = "locked"
    """Dark, and asking for a new grant: unlocks by itself."""
    PAUSED = "paused"
    """Dark by an operator's lock: unlocks only when the operator says so."""
    REVOKED = "revoked"
    """Terminal."""


class Event(StrEnum):
    """What can happen to a lease."""

    GRANT = "granted"
    DENIAL = "denied"
    NO_ANSWER = "no answer"
    LEASE_END = "lease end"
    CLOCK_JUMP = "clock jump"
    EXPIRY = "expiry"
    LOCK = "operator locks"
    UNLOCK = "operator unlocks"


class Action(StrEnum):
    """What the control loop does about it, in the order of the table."""

    EXTEND = "extend"
    """Move the fence's deadline to the new end."""
    RENEW_LATER = "renew later"
    """Prove again after renew_every, less jitter."""
    RETRY_LATER = "retry later"
    """Prove again after a backoff."""
    PROVE_NOW = "prove now"
    DARKEN = "darken"
    """Fence, keys gone, page cache evicted; the mount stays."""
    LIGHT = "light"
    """New epoch, keyed workers."""
    REVOKE = "revoke"
    """The unmount sequence."""


_S, _E, _A = LeaseState, Event, Action

TRANSITIONS: Mapping[tuple[LeaseState, Event], tuple[LeaseState, tuple[Action, ...]]] = {
    (_S.GRANTED, _E.GRANT): (_S.GRANTED, (_A.EXTEND, _A.RENEW_LATER)),
    (_S.GRANTED, _E.NO_ANSWER): (_S.UNREACHABLE, (_A.RETRY_LATER,)),
    (_S.GRANTED, _E.DENIAL): (_S.REVOKED, (_A.REVOKE,)),
    (_S.GRANTED, _E.LEASE_END): (_S.LOCKED, (_A.DARKEN, _A.PROVE_NOW)),
    (_S.GRANTED, _E.CLOCK_JUMP): (_S.LOCKED, (_A.DARKEN, _A.PROVE_NOW)),
    (_S.GRANTED, _E.EXPIRY): (_S.LOCKED, (_A.DARKEN, _A.RETRY_LATER)),
    (_S.GRANTED, _E.LOCK): (_S.PAUSED, (_A.DARKEN,)),
    (_S.UNREACHABLE, _E.GRANT): (_S.GRANTED, (_A.EXTEND, _A.RENEW_LATER)),
    (_S.UNREACHABLE, _E.NO_ANSWER): (_S.UNREACHABLE, (_A.RETRY_LATER,)),
    (_S.UNREACHABLE, _E.DENIAL): (_S.REVOKED, (_A.REVOKE,)),
    (_S.UNREACHABLE, _E.LEASE_END): (_S.LOCKED, (_A.DARKEN, _A.RETRY_LATER)),
    (_S.UNREACHABLE, _E.CLOCK_JUMP): (_S.LOCKED, (_A.DARKEN, _A.PROVE_NOW)),
    (_S.UNREACHABLE, _E.EXPIRY): (_S.LOCKED, (_A.DARKEN, _A.RETRY_LATER)),
    (_S.UNREACHABLE, _E.LOCK): (_S.PAUSED, (_A.DARKEN,)),
    (_S.LOCKED, _E.GRANT): (_S.GRANTED, (_A.EXTEND, _A.LIGHT, _A.RENEW_LATER)),
    (_S.LOCKED, _E.NO_ANSWER): (_S.LOCKED, (_A.RETRY_LATER,)),
    (_S.LOCKED, _E.DENIAL): (_S.REVOKED, (_A.REVOKE,)),
    (_S.LOCKED, _E.CLOCK_JUMP): (_S.LOCKED, (_A.PROVE_NOW,)),
    (_S.LOCKED, _E.EXPIRY): (_S.LOCKED, (_A.RETRY_LATER,)),
    (_S.LOCKED, _E.LOCK): (_S.PAUSED, ()),
    (_S.LOCKED, _E.UNLOCK): (_S.LOCKED, (_A.PROVE_NOW,)),
    (_S.PAUSED, _E.UNLOCK): (_S.LOCKED, (_A.PROVE_NOW,)),
}
"""What is not in the table changes nothing: a lock while paused, an unlock while granted, anything after a revocation."""


@dataclass(frozen=True)
class LeasePolicy:
    """How long and how often; seconds."""

    renew_every_s: float = 30.0
    ttl_s: float = 300.0
    proof_timeout_s: float = 1.0


@dataclass(frozen=True)
class Lease:
    """One mount's lease; a value."""

    state: LeaseState
    end_at_s: float
    """CLOCK_BOOTTIME seconds after which no plaintext may leave."""
    failures: int = 0
    """Proofs without an answer since the last grant: the backoff grows with it."""
    granted_at_s: float | None = None
    """When the last granted proof was sent."""
    last_error: str | None = None


@dataclass(frozen=True)
class Happening:
    """An event with what it carries."""

    event: Event
    reason: str = ""
    sent_at_s: float = 0.0
    """GRANT: when the proof's request was sent."""
    ttl_s: float = 0.0
    """GRANT: how long it counts, never past the token's own end."""


def new_lease() -> Lease:
    """A lease before the first proof: dark."""
    return Lease(LeaseState.LOCKED, 0.0)


def step(lease: Lease, happening: Happening, now_s: float) -> tuple[Lease, tuple[Action, ...]]:
    """The lease after a happening, and what to do.

    A grant whose time is already over when it arrives (a slow answer, a suspension in between) counts as no answer.
    """
    event = happening.event
    end_at_s = happening.sent_at_s + happening.ttl_s
    if event is Event.GRANT and end_at_s <= now_s:
        return step(lease, Happening(Event.NO_ANSWER, "the grant was over when it arrived"), now_s)
    if (lease.state, event) not in TRANSITIONS:
        return lease, ()
    state, actions = TRANSITIONS[lease.state, event]
    if event is Event.GRANT:
        return Lease(state, end_at_s, 0, happening.sent_at_s, None), actions
    end_at_s = 0.0 if state is LeaseState.REVOKED or Action.DARKEN in actions else lease.end_at_s
    failures = lease.failures + (event is Event.NO_ANSWER)
    return replace(lease, state=state, end_at_s=end_at_s, failures=failures, last_error=happening.reason or lease.last_error), actions


def renew_delay_s(renew_every_s: float, left_s: float, random_fraction: float) -> float:
    """When to prove again after a grant: jitter (0 to 10 %) only shortens it, or the bound would not hold.

    Args:
        renew_every_s: The operator's interval.
        left_s: What is left of the lease: near a token's own end it is less than the interval, and half of it must do.
        random_fraction: 0 to 1.
    """
    return min(renew_every_s, max(0.1, left_s / 2)) * (1 - 0.1 * random_fraction)


def retry_delay_s(renew_every_s: float, failures: int, random_fraction: float) -> float:
    """When to ask again after no answer: 0.25 s doubled each time, at most renew_every, less up to half of it."""
    return min(renew_every_s, 0.25 * float(2 ** min(failures, 20))) * (1 - 0.5 * random_fraction)
