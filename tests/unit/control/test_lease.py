"""The lease's table, held against DESIGN's sentences, and against random histories."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from modelfs.control.lease import (
    TRANSITIONS,
    Action,
    Event,
    Happening,
    Lease,
    LeaseState,
    new_lease,
    renew_delay_s,
    retry_delay_s,
    step,
)

NOW = 1000.0
GRANT = Happening(Event.GRANT, sent_at_s=NOW - 0.2, ttl_s=300.0)


def granted() -> Lease:
    lease, _ = step(new_lease(), GRANT, NOW)
    return lease


def after(*happenings: Happening) -> Lease:
    lease = new_lease()
    for happening in happenings:
        lease, _ = step(lease, happening, NOW)
    return lease


def test_a_grant_counts_from_when_it_was_sent() -> None:
    lease, actions = step(new_lease(), GRANT, NOW)
    assert (lease.state, lease.end_at_s) == (LeaseState.GRANTED, NOW + 299.8)
    assert actions == (Action.EXTEND, Action.LIGHT, Action.RENEW_LATER)


def test_a_grant_that_is_over_when_it_arrives_is_no_answer() -> None:
    late = Happening(Event.GRANT, sent_at_s=NOW - 400, ttl_s=300)
    lease, actions = step(granted(), late, NOW)
    assert lease.state is LeaseState.UNREACHABLE
    assert actions == (Action.RETRY_LATER,)
    assert lease.end_at_s == granted().end_at_s, "what was granted before still counts"


def test_no_answer_keeps_the_lease_to_its_end_and_not_after() -> None:
    lease, actions = step(granted(), Happening(Event.NO_ANSWER, "timeout"), NOW + 1)
    assert (lease.state, lease.end_at_s, lease.last_error) == (LeaseState.UNREACHABLE, NOW + 299.8, "timeout")
    assert Action.DARKEN not in actions
    lease, actions = step(lease, Happening(Event.LEASE_END), NOW + 299.8)
    assert lease.state is LeaseState.LOCKED
    assert actions[0] is Action.DARKEN


@pytest.mark.parametrize("before", [GRANT, Happening(Event.NO_ANSWER), Happening(Event.LEASE_END)])
def test_a_denial_revokes_from_everywhere_but_a_pause(before: Happening) -> None:
    lease, actions = step(after(GRANT, before), Happening(Event.DENIAL, "403"), NOW)
    assert lease.state is LeaseState.REVOKED
    assert actions == (Action.REVOKE,)
    assert lease.last_error == "403"


def test_locked_unlocks_by_itself_and_paused_does_not() -> None:
    locked = after(GRANT, Happening(Event.LEASE_END))
    assert step(locked, GRANT, NOW)[0].state is LeaseState.GRANTED
    paused = after(GRANT, Happening(Event.LOCK))
    assert step(paused, GRANT, NOW) == (paused, ())
    unlocked, actions = step(paused, Happening(Event.UNLOCK), NOW)
    assert (unlocked.state, actions) == (LeaseState.LOCKED, (Action.PROVE_NOW,))


def test_a_clock_that_ran_ahead_fences_first_and_then_proves() -> None:
    lease, actions = step(granted(), Happening(Event.CLOCK_JUMP), NOW)
    assert lease.state is LeaseState.LOCKED
    assert actions == (Action.DARKEN, Action.PROVE_NOW)


@pytest.mark.parametrize("event", Event)
def test_revoked_is_terminal(event: Event) -> None:
    revoked = after(GRANT, Happening(Event.DENIAL))
    assert step(revoked, Happening(event, sent_at_s=NOW, ttl_s=300), NOW) == (revoked, ())


def test_every_row_can_be_reached_and_no_action_is_unused() -> None:
    reached = {LeaseState.LOCKED}
    for _ in LeaseState:
        reached |= {state for (before, _), (state, _) in TRANSITIONS.items() if before in reached}
    assert reached == set(LeaseState)
    assert {action for _, actions in TRANSITIONS.values() for action in actions} == set(Action)


HAPPENINGS = st.lists(st.tuples(st.sampled_from(Event), st.floats(0, 400), st.floats(0, 100), st.floats(0, 300)), min_size=1, max_size=40)


@given(HAPPENINGS)
def test_light_never_without_a_grant_that_still_counts(history: list[tuple[Event, float, float, float]]) -> None:
    lease, now, lit, revoked = new_lease(), NOW, False, False
    for event, wait_s, age_s, ttl_s in history:
        now += wait_s
        lease, actions = step(lease, Happening(event, sent_at_s=now - age_s, ttl_s=ttl_s), now)
        if Action.DARKEN in actions or Action.REVOKE in actions:
            lit = False
        if Action.LIGHT in actions:
            assert event is Event.GRANT
            assert not revoked
            lit = True
        if Action.EXTEND in actions:
            assert lease.end_at_s > now
        revoked |= lease.state is LeaseState.REVOKED
        assert lit == (lease.state in (LeaseState.GRANTED, LeaseState.UNREACHABLE))


def test_jitter_only_shortens_and_backoff_is_bounded() -> None:
    for fraction in (0.0, 0.5, 1.0):
        assert 27.0 <= renew_delay_s(30, 300, fraction) <= 30
        assert 0.9 <= renew_delay_s(30, 2, fraction) <= 1, "near a token's end"
        delays = [retry_delay_s(30, failures, fraction) for failures in range(1, 100)]
        assert all(0 < delay <= 30 for delay in delays)
        assert all(a <= b for a, b in itertools.pairwise(delays))
