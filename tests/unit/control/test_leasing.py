"""The lease in motion: injected clocks, a scripted prover, a real fence and key page. Time is trio's, and jumps by itself."""

from collections.abc import Callable
from dataclasses import dataclass, field

import trio
from trio.testing import MockClock

from modelfs.control.fence import Fence, State
from modelfs.control.keypage import KeyPage
from modelfs.control.lease import Event, Lease, LeasePolicy, LeaseState
from modelfs.control.leasing import Clocks, Effects, LeaseHolder
from modelfs.control.prover import Answer, Verdict

DENIED = Answer(Verdict.DENIED, reason="403")
SILENT = Answer(Verdict.NO_ANSWER, reason="timeout")


@dataclass
class World:
    """Everything around one lease. `answers` says what the key service says; the clocks can be pushed."""

    clock: MockClock
    boot_ahead_s: float = 0.0
    wall_ahead_s: float = 0.0
    expires_at: float | None = None
    answers: Callable[[float], Answer | None] = lambda now: None
    proofs: list[float] = field(default_factory=list)
    told: list[str] = field(default_factory=list)
    killed: int = 0
    cannot_record: bool = False

    def __post_init__(self) -> None:
        self.fence, self.key_page = Fence(), KeyPage()
        policy = LeasePolicy(renew_every_s=30, ttl_s=300, proof_timeout_s=1)
        effects = Effects(
            lambda: self.told.append("darken"),
            lambda: self.told.append("light"),
            lambda why: self.told.append(f"revoke {why}"),
            self._report,
        )
        clocks = Clocks(self.boot_s, lambda: self.boot_s() + 1_000_000 + self.wall_ahead_s, lambda: 0.5)
        self.holder = LeaseHolder(policy, self, self.fence, self.key_page, effects, self.expires_at, clocks)
        self.key_page.write(b"k" * 32)
        self.holder.start(self.granted())

    def boot_s(self) -> float:
        return self.clock.current_time() + 1000 + self.boot_ahead_s

    def granted(self, ttl_s: float | None = None) -> Answer:
        return Answer(Verdict.GRANTED, self.boot_s(), ttl_s=ttl_s, key_version=3)

    def _report(self, event: Event, lease: Lease) -> None:
        self.told.append(f"{lease.state}")
        if self.cannot_record and lease.state is LeaseState.GRANTED:
            self.holder.lock()

    # -- what LeaseHolder asks of a prover

    async def prove(self, write_key: bool, timeout_s: float) -> Answer:
        self.proofs.append(self.boot_s())
        answer = self.answers(self.boot_s())
        if answer is None:
            answer = self.granted()
        elif answer.verdict is Verdict.NO_ANSWER:
            await trio.sleep(timeout_s)
        if write_key and answer.verdict is Verdict.GRANTED:
            self.key_page.write(b"k" * 32)
        return answer

    def kill(self) -> None:
        self.killed += 1

    async def live(self, seconds: float) -> None:
        with trio.move_on_after(seconds):
            await self.holder.run()

    @property
    def state(self) -> LeaseState:
        return self.holder.lease.state


async def test_proofs_come_at_least_as_often_as_asked(autojump_clock: MockClock) -> None:
    world = World(autojump_clock)
    await world.live(600)
    assert world.state is LeaseState.GRANTED
    gaps = [b - a for a, b in zip(world.proofs, world.proofs[1:], strict=False)]
    assert len(gaps) >= 19
    assert all(gap <= 30.0 for gap in gaps)
    assert "darken" not in world.told


async def test_silence_locks_at_the_lease_s_end_and_an_answer_unlocks(autojump_clock: MockClock) -> None:
    world = World(autojump_clock)
    start = world.boot_s()
    world.answers = lambda now: SILENT if now < start + 400 else None
    await world.live(299)
    assert world.state is LeaseState.UNREACHABLE
    assert world.fence.state is State.SERVING
    await world.live(3)
    assert world.state is LeaseState.LOCKED
    assert world.fence.state is State.LOCKED
    assert world.key_page.read() == bytes(32)
    await world.live(140)
    assert world.state is LeaseState.GRANTED
    assert world.fence.state is State.SERVING
    assert world.told.count("light") == 1


async def test_a_denial_revokes_at_the_next_proof(autojump_clock: MockClock) -> None:
    world = World(autojump_clock)
    world.answers = lambda now: DENIED
    await world.live(31)
    assert world.state is LeaseState.REVOKED
    assert world.fence.state is State.REVOKED
    assert "revoke 403" in world.told
    assert world.key_page.read_session() is None
    proofs = len(world.proofs)
    await world.live(600)
    assert len(world.proofs) == proofs, "nobody is asked after a revocation"


async def test_a_wall_clock_set_back_or_forward_a_little_moves_nothing(autojump_clock: MockClock) -> None:
    world = World(autojump_clock)
    await world.live(1)
    end = world.holder.lease.end_at_s
    for ahead in (-86_400.0, -86_398.0):
        world.wall_ahead_s = ahead
        await world.live(1)
    assert world.holder.lease.end_at_s == end
    assert "darken" not in world.told


async def test_a_wall_clock_that_runs_ahead_fences_first_and_then_proves(autojump_clock: MockClock) -> None:
    world = World(autojump_clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.holder.run)
        await trio.sleep(1)
        world.wall_ahead_s = 3600
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    assert world.told[:2] == ["darken", "locked"]
    assert world.state is LeaseState.GRANTED, "the service granted anew"
    assert world.told.count("light") == 1


async def test_a_suspended_host_s_lease_runs_out(autojump_clock: MockClock) -> None:
    world = World(autojump_clock)
    world.answers = lambda now: SILENT
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.holder.run)
        await trio.sleep(1)
        epoch = world.fence.epoch
        world.boot_ahead_s = 3600  # CLOCK_BOOTTIME ran on while the host slept
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert not world.fence.allows(epoch)
    assert world.state is LeaseState.LOCKED


async def test_expiry_locks_a_running_mount_for_good(autojump_clock: MockClock) -> None:
    world = World(autojump_clock, expires_at=autojump_clock.current_time() + 1000 + 1_000_000 + 50)
    await world.live(40)
    assert world.state is LeaseState.GRANTED
    await world.live(400)
    assert world.state is LeaseState.LOCKED
    assert "light" not in world.told


async def test_an_operators_lock_outlasts_grants_and_a_late_answer_does_not_count(autojump_clock: MockClock) -> None:
    world = World(autojump_clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.holder.run)
        await trio.sleep(1)
        world.holder.lock()
        assert world.killed >= 1, "a proof that could write a key is killed before the page is wiped"
        assert world.key_page.read() == bytes(32)
        await trio.sleep(600)
        assert world.state is LeaseState.PAUSED
        world.holder.unlock()
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    assert world.state is LeaseState.GRANTED


async def test_a_token_that_ends_soon_is_proven_sooner(autojump_clock: MockClock) -> None:
    world = World(autojump_clock)
    world.answers = lambda now: world.granted(ttl_s=4.0)
    await world.live(120)
    assert world.state is LeaseState.GRANTED
    assert "darken" not in world.told
    assert len(world.proofs) > 30


async def test_an_unlock_is_recorded_before_it_is_lit_and_not_lit_if_it_cannot_be(autojump_clock: MockClock) -> None:
    world = World(autojump_clock)
    world.holder.lock()
    world.holder.unlock()
    await world.live(1)
    assert world.told == ["darken", "paused", "locked", "granted", "light"]
    world.holder.lock()
    world.told.clear()
    world.cannot_record = True
    world.holder.unlock()
    await world.live(1)
    assert world.told == ["locked", "granted", "darken", "paused"]
    assert world.fence.state is State.LOCKED
    assert world.key_page.read() == bytes(32)


async def test_asked_to_prove_now(autojump_clock: MockClock) -> None:
    """At once; while a proof is under way, once more after it: what that one says may be older than the question."""
    world = World(autojump_clock)
    world.answers = lambda now: SILENT if len(world.proofs) == 1 else None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.holder.run)
        await trio.sleep(1)
        start = world.boot_s()
        assert world.holder.prove_now() == 1
        await trio.sleep(0.5)
        assert world.proofs == [start]
        assert world.holder.prove_now() == 2, "the first is still waiting for its answer"
        await trio.sleep(1)
        assert (world.holder.proofs, len(world.proofs)) == (2, 2)
        assert world.state is LeaseState.GRANTED
        await trio.sleep(25)
        assert len(world.proofs) == 2, "and no more than that"
        nursery.cancel_scope.cancel()


async def test_nobody_is_asked_while_an_operator_has_locked(autojump_clock: MockClock) -> None:
    world = World(autojump_clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.holder.run)
        await trio.sleep(1)
        world.holder.lock()
        world.holder.prove_now()
        await trio.sleep(600)
        assert world.proofs == []
        assert world.state is LeaseState.PAUSED
        nursery.cancel_scope.cancel()


async def test_a_machine_restored_after_a_revocation_serves_nothing_more(autojump_clock: MockClock) -> None:
    """A snapshot from before the denial: its lease still has time, but the wall clock tells on it, and the service says no."""
    world = World(autojump_clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.holder.run)
        await trio.sleep(1)
        world.answers = lambda now: DENIED
        world.wall_ahead_s = 86_400
        await trio.sleep(2)
        nursery.cancel_scope.cancel()
    assert world.told[0] == "darken", "before anybody is asked"
    assert world.state is LeaseState.REVOKED
    assert "light" not in world.told
    assert world.key_page.read() == bytes(32)


async def test_a_machine_restored_without_its_key_service_stays_dark(autojump_clock: MockClock) -> None:
    world = World(autojump_clock)
    world.answers = lambda now: SILENT
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.holder.run)
        await trio.sleep(35)
        assert world.state is LeaseState.UNREACHABLE
        world.wall_ahead_s = 60
        await trio.sleep(120)
        assert world.state is LeaseState.LOCKED
        assert world.fence.state is State.LOCKED
        world.answers = lambda now: None
        await trio.sleep(40)
        nursery.cancel_scope.cancel()
    assert world.state is LeaseState.GRANTED
    assert (world.told.count("darken"), world.told.count("light")) == (1, 1)


async def test_clocks_that_jump_to_and_fro(autojump_clock: MockClock) -> None:
    """Back costs nothing; ahead costs a proof, and the mount is dark until it is granted. The fence ends with the lease throughout."""
    world = World(autojump_clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.holder.run)
        for jump in (-3600, 3600, -86_400, 10, 86_390, 4, -4):
            world.wall_ahead_s += jump
            await trio.sleep(1)
            assert world.state is LeaseState.GRANTED
            assert world.fence.deadline_ns == int(world.holder.lease.end_at_s * 1e9)
        nursery.cancel_scope.cancel()
    assert (world.told.count("darken"), world.told.count("light")) == (3, 3), "3600, 10 and 86,390 seconds ahead"
    assert world.killed >= 3, "a proof that was under way does not count after a jump"


async def test_a_jump_while_an_operator_has_locked_asks_nobody(autojump_clock: MockClock) -> None:
    world = World(autojump_clock)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.holder.run)
        await trio.sleep(1)
        world.holder.lock()
        asked = len(world.proofs)
        world.wall_ahead_s, world.boot_ahead_s = 7200, 3600
        await trio.sleep(60)
        nursery.cancel_scope.cancel()
    assert world.state is LeaseState.PAUSED
    assert len(world.proofs) == asked


async def test_nothing_lights_a_mount_that_is_ending(autojump_clock: MockClock) -> None:
    """An unlock, a renewal or the lease's end while the unmount goes on: no proof, no key, no light."""
    for paused in (True, False):
        world = World(autojump_clock)
        if paused:
            world.holder.lock()
        world.fence.close(State.REVOKED)
        world.holder.close()
        world.key_page.wipe()
        told, proofs = list(world.told), len(world.proofs)
        world.holder.unlock()
        world.holder.prove_now()
        await world.live(1000)
        assert (world.told, len(world.proofs)) == (told, proofs)
        assert world.key_page.read() == bytes(32)
        assert world.fence.state is State.REVOKED
