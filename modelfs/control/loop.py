"""The control loop: signals, requests on the control socket, the lease, the end. No key, no model data, no path below the mountpoint."""

import logging
import signal
import socket
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import trio

from modelfs.control.fence import Fence, State
from modelfs.control.lease import Event, Lease, LeaseState
from modelfs.control.leasing import Effects, LeaseHolder
from modelfs.control.notify import Notifier, Watchdog
from modelfs.control.record import Audit, Record
from modelfs.control.socket import Answer, serve
from modelfs.control.warden_link import Heard, WardenLink

LOCK_SECONDS = 20.0
"""And as long as a darkening may take with this many files."""
UNLOCK_SECONDS = 10.0
WARDEN_DIED = "the warden died"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MountFacts:
    """What `status` says of a mount and never changes."""

    mountpoint: str
    sealed: str
    model: str
    release: int
    kek: str
    """The KEK that opened it; `status` names the one that granted last."""
    keks: list[str]
    """All that this host may use, in order of preference."""
    device: str
    control: int
    warden: int
    not_confined: list[str]
    """What of the confinement of these processes cannot be had, a sentence each."""
    darken_s: float
    """How long a darkening may take, with this many files."""
    unmount_s: float
    """The same of the unmount sequence. When the warden dies in it, a child of control needs as much, and when that dies, control."""


class ControlLoop:
    """One mount's control process, from ready to gone."""

    def __init__(
        self,
        fence: Fence,
        channel: socket.socket,
        lease: Callable[[Effects], LeaseHolder],
        audit: Audit | None = None,
        notifier: Notifier | None = None,
    ) -> None:
        """Take a mount whose first proof was granted.

        Args:
            fence: Shared with every process of the mount.
            channel: SOCK_SEQPACKET to the warden.
            lease: Makes the lease's holder, given what it may do here.
            audit: Where events go; None: nowhere.
            notifier: The service manager, if there is one.
        """
        self._fence = fence
        self._since = time.time()
        self._reason: str | None = None
        self._gone = trio.Event()
        self._clients = 0
        self._nursery: trio.Nursery | None = None
        self._facts: MountFacts
        self._notifier = notifier or Notifier()
        watchdog = Watchdog(self._notifier, self._status_line)
        self._warden = WardenLink(channel, watchdog, Heard(self._begin_end, self._warden_unmounts, self._say_status))
        self.lease = lease(Effects(self._warden.darken, self._warden.light, self._revoke, self._report))
        self.record = Record(audit, self.lease, self._warden.note)
        self.proof: dict[str, Any] | None = None
        """Of the unmount: the warden's, or control's own if the warden died before it could give one."""
        self.is_warden_lost = False

    async def run(
        self, facts: MountFacts, server: socket.socket, ready: Callable[[], None], take_down: Callable[[str], Awaitable[dict[str, Any]]]
    ) -> dict[str, Any]:
        """Serve until the mount is gone.

        Args:
            facts: What `status` says.
            server: The control socket.
            ready: Called as soon as signals and requests are heard.
            take_down: Ends what is left of the warden and runs the unmount sequence here; given the reason, returns the proof.

        Returns:
            The proof: the warden's, or that of `take_down`.
        """
        self._facts = facts
        self._warden.know(facts.warden)
        async with trio.open_nursery() as nursery:
            await nursery.start(self._receive_signals)
            nursery.start_soon(serve, server, self._handle)
            nursery.start_soon(self._warden.run)
            self._nursery = nursery
            nursery.start_soon(self.lease.run)
            ready()
            self._notifier.ready(self._status_line())
            await self._warden.ended.wait()
            self.proof = self._warden.proof
            if self.proof is None:
                self.is_warden_lost = True
                is_first = self._begin_end(WARDEN_DIED)
                self._warden.stand_in(2 * facts.unmount_s)
                self.proof = await take_down(WARDEN_DIED if is_first else f"{self._reason}; {WARDEN_DIED}")
            elif self._reason:
                self.proof["reason"] = self._reason
            self._gone.set()
            with trio.move_on_after(1):  # let waiting clients have their answer
                while self._clients:
                    await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        return self.proof

    async def _receive_signals(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                await self._end(signal.Signals(number).name)

    def _begin_end(self, reason: str) -> bool:
        """Fence at once, and for good; whether this is the first reason to."""
        if self._reason is not None:
            return False
        self._reason = reason
        self._fence.close(State.REVOKED)
        self.lease.close()
        self._say_unmounting(reason)
        return True

    async def _end(self, reason: str) -> None:
        """Fence, then have the warden take the mount down."""
        if self._begin_end(reason):
            await self._warden.unmount(reason)

    async def _handle(self, request: Answer) -> Answer:
        self._clients += 1
        try:
            match request.get("do"):
                case "status":
                    return self._status()
                case "lock":
                    return await self._lock()
                case "unlock":
                    return await self._unlock()
                case "renew":
                    return await self._renew()
                case "unmount":
                    await self._end("unmount")
                    await self._gone.wait()  # a warden at work is watched, so that this comes
                    return {"proof": self.proof, "warden_lost": self.is_warden_lost}
            return {"error": f"unknown request {str(request.get('do'))[:40]!r}: use status, lock, unlock, renew or unmount"}
        finally:
            # Counted down only after the answer is on its way: `serve` sends it without another await in between.
            self._clients -= 1

    async def _lock(self) -> Answer:
        """The fence falls at once; the answer waits for the page cache, whose plaintext mappings would go on reading."""
        self.lease.lock()
        with trio.move_on_after(LOCK_SECONDS + self._facts.darken_s):
            while self.lease.lease.state is LeaseState.PAUSED and not self._warden.is_dark and self._reason is None:
                await trio.sleep(0.005)
        if self._reason is not None:
            await self._gone.wait()
            return {"error": f"not locked, but taken down ({self._reason}): see the log, and mount again"}
        found = self._warden.darkness
        was_counted = not found.get("resident_bytes") and found.get("not_counted") is None
        is_dark = self._warden.is_dark and found.get("evicted") and was_counted
        if self.lease.lease.state is LeaseState.PAUSED and not is_dark:
            return {"error": "locked, and reads fail, but plaintext may be left in the page cache: see the log, or `modelfs unmount`"}
        return self._status()

    async def _unlock(self) -> Answer:
        self.lease.unlock()
        with trio.move_on_after(UNLOCK_SECONDS):
            while self.lease.lease.state is LeaseState.LOCKED or (self._is_granted and not self._warden.is_lit):
                await trio.sleep(0.005)
        if self._is_granted:
            return self._status()
        if self.lease.lease.state is LeaseState.REVOKED:
            return {"error": f"revoked, and taken down: {self.lease.lease.last_error or 'denied'}"}
        return {"error": f"still locked: {self.lease.lease.last_error or 'the key service has not answered'}"}

    @property
    def _is_granted(self) -> bool:
        return self.lease.lease.state in (LeaseState.GRANTED, LeaseState.UNREACHABLE)

    async def _renew(self) -> Answer:
        if self.lease.lease.state is LeaseState.PAUSED:
            return {"error": "an operator has locked the mount: `modelfs unlock` asks the key service and ends the pause"}
        wanted = self.lease.prove_now()
        with trio.move_on_after(UNLOCK_SECONDS):
            while self.lease.proofs < wanted:
                await trio.sleep(0.02)
        if self.lease.lease.state is not LeaseState.GRANTED:
            return {"error": f"{self.lease.lease.state}: {self.lease.lease.last_error or 'the key service has not answered'}"}
        return self._status()

    def _revoke(self, reason: str) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._end, f"revoked: {reason}")

    def _report(self, event: Event, lease: Lease) -> None:
        left = max(0.0, lease.end_at_s - time.clock_gettime(time.CLOCK_BOOTTIME))
        error = f": {lease.last_error}" if lease.last_error else ""
        logger.info("lease %s after %s, %.2f s left%s", lease.state, event, left, error)
        self._say_status()
        self.record.follow(event, lease)

    def _warden_unmounts(self, reason: str) -> None:
        """It has fenced by itself."""
        self.lease.close()
        self._say_unmounting(reason)

    def _say_unmounting(self, reason: str) -> None:
        self._notifier.stopping(f"unmounting: {reason}")

    def _say_status(self) -> None:
        if self._nursery is not None:  # before that, nothing is served
            self._notifier.status(self._status_line())

    def _status_line(self) -> str:
        lease, facts = self.lease.lease, self._facts
        if self._why_ending is not None:
            return f"{facts.model} release {facts.release} at {facts.mountpoint}, unmounting: {self._why_ending}"
        error = "" if lease.state is LeaseState.GRANTED else f": {lease.last_error}"
        alarm = f"; {self.record.error}" if self.record.error else ""
        alarm += "; workers die as fast as they are started" if self._warden.is_crash_loop else ""
        workers = f"{len(self._warden.workers)} workers"
        return f"{facts.model} release {facts.release} at {facts.mountpoint}, {workers}, lease {lease.state}{error}{alarm}"

    @property
    def _why_ending(self) -> str | None:
        return self._reason or self._warden.reason

    def _status(self) -> Answer:
        is_ending = self._why_ending is not None
        lease, now = self.lease.lease, time.clock_gettime(time.CLOCK_BOOTTIME)
        return {
            **vars(self._facts),
            "kek": self.lease.kek or self._facts.kek,
            "state": self._fence.state.name.lower(),
            "ending": self._why_ending,
            "lease": LeaseState.REVOKED if is_ending else lease.state,
            "lease_left_s": 0.0 if is_ending else round(max(0.0, lease.end_at_s - now), 3),
            "last_granted_s_ago": None if lease.granted_at_s is None else round(now - lease.granted_at_s, 3),
            "last_error": lease.last_error,
            "passed_over": self.lease.passed or None,
            "key_version": self.lease.key_version,
            "audit_error": self.record.error,
            "workers": self._warden.workers,
            "worker_deaths": self._warden.deaths,
            "crash_loop": self._warden.is_crash_loop,
            "uptime_s": round(time.time() - self._since, 3),
        }
