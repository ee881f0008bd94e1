"""The control loop: signals, the control socket, the warden's channel. No key, no model data, no path below the mountpoint."""

import contextlib
import json
import logging
import os
import signal
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import trio

from modelfs.audit.log import AuditKind, AuditLog
from modelfs.control.fence import Fence, State
from modelfs.control.lease import Event, Lease, LeaseState
from modelfs.control.leasing import Effects, LeaseHolder
from modelfs.control.notify import Notifier, Watchdog
from modelfs.control.socket import Answer, serve
from modelfs.errors import ConfigError

ACKNOWLEDGE_SECONDS = 1.0
"""A warden that does not begin the unmount by then is ended, and control does it itself."""
DARKEN_SECONDS = 5.0
"""The same for a warden that does not begin to darken a locked mount: only it could take the plaintext out of the page cache."""
SILENCE_SECONDS = 3.0
"""A warden at work, which says each second that it goes on, is ended when it has said nothing for so long."""
DRAIN_SECONDS = 0.5
"""For the last words of a warden that was ended. A child that it leaves, stuck in the kernel, may hold the channel open for longer."""
TICK_SECONDS = 0.05
LOCK_SECONDS = 20.0
"""And as long as a darkening may take with this many files."""
UNLOCK_SECONDS = 10.0
MAX_REASON_BYTES = 2000
"""Of a reason as the warden is told it: its packets are small."""

logger = logging.getLogger(__name__)


def _cut(reason: str) -> str:
    """As much of a reason as is told the warden; how many bytes a character takes in JSON depends on it."""
    while len(json.dumps(reason)) > MAX_REASON_BYTES:
        reason = reason[: len(reason) * 3 // 4]
    return reason


_AUDITED: dict[Event, AuditKind] = {
    Event.NO_ANSWER: AuditKind.RENEWAL_FAILED,
    Event.DENIAL: AuditKind.DENIED,
    Event.LEASE_END: AuditKind.LOCKED,
    Event.CLOCK_JUMP: AuditKind.LOCKED,
    Event.EXPIRY: AuditKind.LOCKED,
    Event.LOCK: AuditKind.LOCKED,
}
"""What of the lease is recorded; grants are not, but for the one that ends a lock."""


@dataclass(frozen=True)
class Audit:
    """Where events go, and whether a mount may serve without."""

    log: AuditLog
    is_required: bool


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
    """The same of the unmount sequence. When the warden dies in it, control needs as much once more."""


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
        self._raw = channel
        self._channel = trio.socket.from_stdlib_socket(channel)
        self._since = time.time()
        self._workers: list[int] = []
        self._deaths = 0
        self._is_crash_loop = False
        self._reason: str | None = None
        self._said_ending: str | None = None
        """Why the warden takes the mount down, as it says itself."""
        self._ending = trio.Event()
        self._ended = trio.Event()
        self._gone = trio.Event()
        self._works = 0
        """How many darkenings and unmounts of the warden are being watched."""
        self._heard = 0
        """Messages of the warden."""
        self._quiet_s = SILENCE_SECONDS
        self._clients = 0
        self._nursery: trio.Nursery | None = None
        self._was_dark = False
        self._dark: dict[str, Any] = {}
        self._lights, self._lit, self._lights_before_darkening, self._lights_before_dark = 0, 0, -1, -1
        """How often the warden was told to light the mount, and has; and how often it had when it last began to darken, and was done."""
        self._facts: MountFacts
        self._audit = audit
        self.audit_error: str | None = None
        """Why the last event could not be recorded."""
        self._notifier = notifier or Notifier()
        self._watchdog = Watchdog(self._notifier, lambda: self._send({"do": "answer"}), self._status_line)
        self.lease = lease(Effects(self._darken, self._light, self._revoke, self._report))
        self._noted_version = self._audited_version = self.lease.key_version
        self._noted_kek = self._audited_kek = self.lease.kek
        self._note_kek()
        self.proof: dict[str, Any] | None = None
        """Of the unmount: the warden's, or control's own if the warden died before it could give one."""
        self.is_warden_lost = False

    async def run(
        self, facts: MountFacts, server: socket.socket, ready: Callable[[], None], take_down: Callable[[str], dict[str, Any]]
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
        async with trio.open_nursery() as nursery:
            await nursery.start(self._receive_signals)
            nursery.start_soon(serve, server, self._handle)
            nursery.start_soon(self._receive_from_warden)
            self._nursery = nursery
            nursery.start_soon(self.lease.run)
            nursery.start_soon(self._watch_warden)
            ready()
            self._notifier.ready(self._status_line())
            await self._ended.wait()
            if self.proof is None:
                self._fence.close(State.REVOKED)
                self.lease.close()
                self.is_warden_lost = True
                self.proof = take_down(f"{self._reason}; the warden died" if self._reason else "the warden died")
            self._gone.set()
            with trio.move_on_after(1):  # let waiting clients have their answer
                while self._clients:
                    await trio.sleep(0.001)
            nursery.cancel_scope.cancel()
        return self.proof

    @property
    def reason(self) -> str:
        """Why the mount ended, as far as control knows."""
        return self._reason or str((self.proof or {}).get("reason", "the warden died"))

    async def _receive_signals(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
            task_status.started()
            async for number in signals:
                await self._end(signal.Signals(number).name)

    async def _receive_from_warden(self) -> None:
        while True:
            try:
                data = await self._channel.recv(65536)
            except ConnectionResetError:
                continue  # it ended without reading our last word; what it said itself is still to be read
            except OSError:
                data = b""
            if not data:
                self._ending.set()
                self._ended.set()
                return
            message = json.loads(data)
            self._watchdog.answered()
            self._heard += 1
            self._quiet_s = message.get("alive") or SILENCE_SECONDS
            if "darkening" in message:
                self._watchdog.busy(message["busy_s"])
                self._lights_before_darkening = lights = message["darkening"]
                self._watch_work(message["busy_s"], partial(self._has_darkened, lights))
            if "workers" in message:
                self._workers, self._deaths, self._is_crash_loop = message["workers"], message["deaths"], message["crash_loop"]
                self._say_status()
            if "dark" in message:
                logger.warning("dark: %s", json.dumps(message["dark"]))
                self._dark, self._lights_before_dark = message["dark"], message["lights"]
                self._watchdog.busy(0)
            if "lit" in message:
                self._lit = message["lit"]
            if "ending" in message:
                self._ending.set()
                self._notifier.stopping(f"unmounting: {message['ending']}")
                self._said_ending = message["ending"]
                self._watch_work(message["busy_s"], lambda: self.proof is not None)
            if "proof" in message:
                self.proof = message["proof"]
                if self._reason:
                    self.proof["reason"] = self._reason

    async def _watch_warden(self) -> None:
        await self._watchdog.run()
        await self._end_silent_warden()

    async def _watch_darkening(self, lights: int) -> None:
        """The fence has fallen and the keys are gone, but only the warden can take the plaintext out of the page cache."""
        deadline = trio.current_time() + DARKEN_SECONDS
        while self._lights_before_darkening < lights and self._lit <= lights:
            if trio.current_time() >= deadline:
                await self._end_silent_warden()
                return
            await trio.sleep(0.02)

    def _watch_work(self, total_s: float, is_done: Callable[[], bool]) -> None:
        """The warden has begun what only it can do, and says all the time that it goes on: from now on it is watched."""
        if self._nursery is not None:
            self._works += 1
            self._nursery.start_soon(self._watch_until, total_s, is_done)

    def _has_darkened(self, lights: int) -> bool:
        """Whether a darkening is done that began when the mount had been lit so often."""
        return self._lights_before_dark >= lights

    async def _watch_until(self, total_s: float, is_done: Callable[[], bool]) -> None:
        # In ticks, not by the clock: if this process was stopped or starved, what the warden has said meanwhile is still to be read.
        heard, quiet, ticks = self._heard, 0, 0
        try:
            while not is_done() and not self._ended.is_set():
                if quiet * TICK_SECONDS >= self._quiet_s or ticks * TICK_SECONDS >= total_s:
                    logger.error("the warden does not go on with what it has begun: ending it")
                    self._begin_end("the warden does not answer")
                    await self._kill_warden()
                    return
                await trio.sleep(TICK_SECONDS)
                ticks += 1
                heard, quiet = self._heard, quiet + 1 if heard == self._heard else 0
        finally:
            self._works -= 1

    async def _end_silent_warden(self) -> None:
        if self._ending.is_set():
            return  # it is taking the mount down, and watched
        logger.error("the warden does not answer")
        await self._end("the warden does not answer")

    def _begin_end(self, reason: str) -> bool:
        """Fence at once, and for good; whether this is the first reason to."""
        if self._reason is not None:
            return False
        self._reason = reason
        self._fence.close(State.REVOKED)
        self.lease.close()
        self._notifier.stopping(f"unmounting: {reason}")
        return True

    async def _end(self, reason: str) -> None:
        """Fence, then have the warden take the mount down."""
        if not self._begin_end(reason):
            return
        self._send({"do": "unmount", "reason": _cut(reason)})
        while self._works and not self._ending.is_set():
            await trio.sleep(TICK_SECONDS)  # it is darkening, which comes first in an unmount too
        with trio.move_on_after(ACKNOWLEDGE_SECONDS) as waiting:
            await self._ending.wait()
        if waiting.cancelled_caught:
            logger.error("the warden does not begin the unmount: ending it")
            await self._kill_warden()

    async def _kill_warden(self) -> None:
        """It is our child and not reaped before the loop has ended: the number is its own."""
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._facts.warden, signal.SIGKILL)
        with trio.move_on_after(DRAIN_SECONDS):
            await self._ended.wait()
        self._ending.set()
        self._ended.set()

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
            while self.lease.lease.state is LeaseState.PAUSED and self._lights_before_dark != self._lights and self._reason is None:
                await trio.sleep(0.005)
        if self._reason is not None:
            await self._gone.wait()
            return {"error": f"not locked, but taken down ({self._reason}): see the log, and mount again"}
        was_counted = not self._dark.get("resident_bytes") and self._dark.get("not_counted") is None
        is_dark = self._lights_before_dark == self._lights and self._dark.get("evicted") and was_counted
        if self.lease.lease.state is LeaseState.PAUSED and not is_dark:
            return {"error": "locked, and reads fail, but plaintext may be left in the page cache: see the log, or `modelfs unmount`"}
        return self._status()

    async def _unlock(self) -> Answer:
        self.lease.unlock()
        with trio.move_on_after(UNLOCK_SECONDS):
            while self.lease.lease.state is LeaseState.LOCKED or (self._is_granted and self._lit != self._lights):
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

    def _send(self, message: Answer) -> None:
        """Tell the warden, without waiting. A full channel is one whose warden does not answer; a dead one is heard of otherwise."""
        try:
            self._raw.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)
        except BlockingIOError:
            if self._reason is None and self._nursery is not None:
                self._nursery.start_soon(self._end_silent_warden)
        except OSError:
            logger.warning("the warden does not listen any more")

    def _darken(self) -> None:
        self._send({"do": "darken"})
        if self._nursery is not None:
            self._nursery.start_soon(self._watch_darkening, self._lights)

    def _light(self) -> None:
        self._lights += 1
        self._send({"do": "light"})

    def _revoke(self, reason: str) -> None:
        if self._nursery is not None:
            self._nursery.start_soon(self._end, f"revoked: {reason}")

    def _report(self, event: Event, lease: Lease) -> None:
        left = lease.end_at_s - time.clock_gettime(time.CLOCK_BOOTTIME)
        error = f": {lease.last_error}" if lease.last_error else ""
        logger.info("lease %s after %s, %.2f s left%s", lease.state, event, left, error)
        self._say_status()
        kind = _AUDITED.get(event)
        was_dark, self._was_dark = self._was_dark, lease.state in (LeaseState.LOCKED, LeaseState.PAUSED)
        version, before = self.lease.key_version, self._noted_version
        if version != before and self.lease.kek == self._noted_kek:
            logger.warning("the key is wrapped by version %s of the KEK now, by %s before", version, before)
        if event is Event.GRANT and self.lease.passed:
            logger.warning("granted by %s; passed over: %s", self.lease.kek, self.lease.passed)
        is_other = self.lease.kek != self._noted_kek
        if version != before or is_other:
            self._noted_version, self._noted_kek = version, self.lease.kek
            self._note_kek()
            self._send({"do": "note", "key_version": version, "kek": self.lease.kek})
        if kind is AuditKind.LOCKED and was_dark and event is not Event.LOCK:
            return  # it was dark before
        if event is Event.GRANT and was_dark:
            kind = AuditKind.UNLOCK
        elif is_other:
            kind = AuditKind.OTHER_KEK
        if kind is not None:
            self.audit(kind, lease.last_error or self.lease.passed or str(event))

    def _note_kek(self) -> None:
        """From here on events name the KEK that granted last."""
        if self._audit is not None and self.lease.kek is not None:
            self._audit.log.subject = replace(self._audit.log.subject, kek=self.lease.kek)

    def audit(self, kind: AuditKind, reason: str, proof: dict[str, Any] | None = None) -> None:
        """Record an event: a fence before, an unlock after. A mount that must not serve unaudited is locked."""
        if self._audit is None:
            return
        version = self.lease.key_version
        if version != self._audited_version and self.lease.kek == self._audited_kek:
            reason = f"{reason} (KEK version {version} now, {self._audited_version} before)"
        try:
            self._audit.log.write(kind, version, reason, proof)
            self._audited_version, self._audited_kek, self.audit_error = version, self.lease.kek, None
        except ConfigError as exc:
            logger.error("%s", exc)
            self.audit_error = str(exc)
            if self._audit.is_required and kind not in (AuditKind.LOCKED, AuditKind.REVOKED, AuditKind.UNMOUNT):
                self.lease.lock(f"nothing is served unaudited: {exc}")

    def _say_status(self) -> None:
        if self._nursery is not None:  # before that, nothing is served
            self._notifier.status(self._status_line())

    def _status_line(self) -> str:
        lease, facts = self.lease.lease, self._facts
        if self._why_ending is not None:
            return f"{facts.model} release {facts.release} at {facts.mountpoint}, unmounting: {self._why_ending}"
        error = "" if lease.state is LeaseState.GRANTED else f": {lease.last_error}"
        alarm = f"; {self.audit_error}" if self.audit_error else ""
        alarm += "; workers die as fast as they are started" if self._is_crash_loop else ""
        return (
            f"{facts.model} release {facts.release} at {facts.mountpoint}, {len(self._workers)} workers, lease {lease.state}{error}{alarm}"
        )

    @property
    def _why_ending(self) -> str | None:
        return self._reason or self._said_ending

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
            "audit_error": self.audit_error,
            "workers": self._workers,
            "worker_deaths": self._deaths,
            "crash_loop": self._is_crash_loop,
            "uptime_s": round(time.time() - self._since, 3),
        }
