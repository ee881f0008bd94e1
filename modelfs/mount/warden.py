"""The warden: tiny, synchronous, no network, no store. It outlives control.

Holds the FUSE session and a dup of every worker's clone, forks and replaces workers, watches control and the mount table, and
takes the mount down in order.
"""

import contextlib
import json
import logging
import os
import select
import signal
import socket
import time
from typing import Any

from modelfs.control.fence import NO_DEADLINE, State
from modelfs.control.process import kill_child
from modelfs.mount.mountinfo import MOUNTINFO, mountpoints_of
from modelfs.mount.teardown import KEYLESS_WORKERS, Proof, darken, darken_seconds, forget_workers, tear_down, tear_down_seconds
from modelfs.mount.worker import CONNECTION_ENDED, MountShare, Worker, start_worker

RESPAWN_BURST = 20
"""Replacements at once; after that one each RESPAWN_SECONDS, so that a crash loop is not spun."""
RESPAWN_SECONDS = 1.0
CALM_CREDIT = RESPAWN_BURST / 2
"""A crash loop is over when so many replacements are saved up again: after so many RESPAWN_SECONDS without one."""
DEADLINE_POLL_SECONDS = 0.5
"""How long a deadline that control has moved may go unnoticed; the workers look at every request."""
REASON_MS = 20
ALIVE_SECONDS = 0.25
"""At work it says that it lives no more often than this."""
MAX_PACKET_SIZE = 65536
CONTROL_DIED = "control died"

logger = logging.getLogger(__name__)


class Warden:
    """One mount's warden. `run` returns when the mount is gone."""

    def __init__(self, share: MountShare, channel: socket.socket, workers: int) -> None:
        """Take over a mounted, initialised session.

        Args:
            share: The mount, with its key page filled and its fence open.
            channel: SOCK_SEQPACKET to control: one JSON object a packet.
            workers: How many keyed workers to keep.
        """
        self.key_version: int | None = None
        """What control has last said of the KEK's version, for the audit trail, if control is gone at the end."""
        self.kek: str | None = None
        """The same of which KEK has granted; None: the one that opened the mount."""
        self._share = share
        self._channel = channel
        self._wanted = workers
        self._workers: list[Worker] = []
        self._keyed = True
        """Whether `_workers` have keys, or answer errors because the mount is locked."""
        self._lights = 0
        """How often the mount was lit again; control must tell a darkening before from one after."""
        self._deaths = 0
        self._is_crash_loop = False
        self._credit = float(RESPAWN_BURST)
        self._credited_at = time.monotonic()
        self._said_alive_at = 0.0

    def run(self) -> Proof:
        """Serve until told to unmount, until control is gone, or until the mount is detached."""
        children, writing = os.pipe()
        os.set_blocking(children, False)
        os.set_blocking(writing, False)
        signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
        self._fill()
        self._tell_workers()
        with open(MOUNTINFO, "rb") as mountinfo:
            reason = self._watch(mountinfo.fileno(), children)
        logger.info("taking %s down: %s", self._share.session.mountpoint, reason)
        self._tell({"ending": reason, "busy_s": tear_down_seconds(self._share, len(self._workers))})
        keyed, keyless = (self._workers, []) if self._keyed else ([], self._workers)
        proof = tear_down(self._share, keyed, keyless, reason, self._say_alive)
        logger.info("proof: %s", json.dumps(proof.as_json()))
        self._tell({"proof": proof.as_json()})
        return proof

    def _watch(self, mountinfo: int, children: int) -> str:
        """Until something ends the mount; the reason. `children` is readable after SIGCHLD."""
        session, fence = self._share.session, self._share.fence
        while True:
            poll = select.poll()
            poll.register(self._channel, select.POLLIN)
            poll.register(mountinfo, select.POLLPRI | select.POLLERR)
            poll.register(children, select.POLLIN)
            for worker in self._workers:
                poll.register(worker.pidfd, select.POLLIN)
            ready = dict(poll.poll(self._poll_timeout_ms()))
            if fence.state is State.REVOKED:
                return self._reason_of_control()
            if self._channel.fileno() in ready:
                message = self._receive()
                if message is None:
                    return CONTROL_DIED
                match message.get("do"):
                    case "unmount":
                        return str(message.get("reason", "unmount"))
                    case "light":
                        self._light()
                        continue
                    case "note":
                        self.key_version, self.kek = message.get("key_version"), message.get("kek")
                        continue
                    case "answer":
                        self._tell({"alive": None})
            if mountinfo in ready and not mountpoints_of(session.device):
                return "the mount was detached"
            epoch = fence.epoch
            if self._keyed and not fence.allows(epoch):
                self._darken(epoch)
                continue
            if children in ready:
                os.read(children, 4096)
                self._end_stopped()
            dead = [worker for worker in self._workers if worker.pidfd in ready]
            if (dead or self._is_crash_loop) and self._replace(dead):
                return "somebody ended the connection (umount -f)"

    def _end_stopped(self) -> None:
        """A worker that somebody has stopped (SIGSTOP) would leave what it has read unanswered for ever: it is ended, and replaced."""
        for worker in self._workers:
            with contextlib.suppress(ChildProcessError):  # it is dead
                if os.waitid(os.P_PID, worker.pid, os.WSTOPPED | os.WNOHANG) is not None:
                    logger.warning("worker %d was stopped: ending it", worker.pid)
                    kill_child(worker.pid)

    def _reason_of_control(self) -> str:
        """Control fences first and says why right after."""
        poll = select.poll()
        poll.register(self._channel, select.POLLIN)
        while poll.poll(REASON_MS) and (message := self._receive()):
            if message.get("do") == "unmount":
                return str(message.get("reason", "revoked"))
        return "revoked"

    def _poll_timeout_ms(self) -> int | None:
        waits = [RESPAWN_SECONDS] if self._is_crash_loop else []
        if self._keyed and self._share.fence.deadline_ns != NO_DEADLINE:
            left = (self._share.fence.deadline_ns - time.clock_gettime_ns(time.CLOCK_BOOTTIME)) / 1e9
            waits.append(max(0.0, min(left, DEADLINE_POLL_SECONDS)))
        return int(min(waits) * 1000) + 1 if waits else None

    @property
    def _wanted_now(self) -> int:
        return self._wanted if self._keyed else KEYLESS_WORKERS

    def _darken(self, epoch: int) -> None:
        """The fence has fallen, but not for good: no key and no plaintext stays, the mount does."""
        self._tell({"darkening": self._lights, "busy_s": darken_seconds(self._share, len(self._workers))})
        # Where control has locked, the next key may be in the key page already: then neither that nor a new epoch is ours to end.
        # Only where the lease ran out, and control, stopped or dead, has not said so, is it for us to do.
        fence = self._share.fence
        ran_out = fence.state is State.SERVING and fence.epoch == epoch
        dark, keyless = darken(self._share, self._workers, State.LOCKED if ran_out else None, self._say_alive)
        self._workers, self._keyed = keyless, False
        logger.warning("dark: %s", json.dumps(dark.as_json()))
        self._tell({"dark": dark.as_json(), "lights": self._lights})
        self._tell_workers()

    def _light(self) -> None:
        """A new epoch is open and its key in the key page: keyed workers take over, unanswered requests go to them."""
        keyless, self._workers, self._keyed = self._workers, [], True
        self._lights += 1
        self._credit = float(RESPAWN_BURST)
        self._fill()
        for worker in keyless:
            kill_child(worker.pid)
        forget_workers(self._share, keyless)
        self._tell({"lit": self._lights})
        self._tell_workers()

    def _replace(self, dead: list[Worker]) -> bool:
        """Replace dead workers; whether one of them found that the connection has ended, and nobody was replaced."""
        ended = False
        for worker in dead:
            code = os.waitstatus_to_exitcode(os.waitpid(worker.pid, 0)[1])
            self._workers.remove(worker)
            if code == CONNECTION_ENDED:
                ended = True
                continue
            self._deaths += 1
            logger.warning("worker %d ended (%s): replacing it", worker.pid, f"signal {-code}" if code < 0 else f"exit {code}")
        if not ended:
            self._fill()
        # First somebody who answers, then what the dead left unanswered, then their queues go. In a crash loop it may be just that which
        # kills whoever takes it: then it is not handed on, and whoever asked is told ECONNABORTED.
        if dead and not self._is_crash_loop:
            self._share.session.resend()
        for worker in dead:
            worker.forget()
        self._tell_workers()
        return ended

    def _fill(self) -> None:
        now = time.monotonic()
        self._credit = min(RESPAWN_BURST, self._credit + (now - self._credited_at) / RESPAWN_SECONDS)
        self._credited_at = now
        while len(self._workers) < self._wanted_now and self._credit >= 1:
            self._credit -= 1
            self._workers.append(start_worker(self._share, keyed=self._keyed))
        if len(self._workers) < self._wanted_now and not self._is_crash_loop:
            self._is_crash_loop = True
            logger.error("workers die as fast as they are started (%d by now): one is started each %g s", self._deaths, RESPAWN_SECONDS)
        elif self._is_crash_loop and self._credit >= CALM_CREDIT:
            self._is_crash_loop = False
            logger.warning("workers live again")

    def _tell_workers(self) -> None:
        pids = [worker.pid for worker in self._workers]
        self._tell({"workers": pids, "deaths": self._deaths, "crash_loop": self._is_crash_loop})

    def _say_alive(self, seconds: float | None) -> None:
        """To control, which ends a warden that says nothing in the midst of a darkening or an unmount."""
        if seconds is not None or time.monotonic() - self._said_alive_at >= ALIVE_SECONDS:
            self._said_alive_at = time.monotonic()
            self._tell({"alive": seconds})

    def _tell(self, message: dict[str, Any]) -> None:
        """Never waits: control may be stopped, and its channel full."""
        try:
            self._channel.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)
        except OSError:
            logger.warning("control does not listen any more")

    def _receive(self) -> dict[str, Any] | None:
        """What control says; None if it is gone. What is no message says nothing."""
        try:
            data = self._channel.recv(MAX_PACKET_SIZE)
        except OSError:
            return None
        if not data:
            return None
        try:
            message = json.loads(data)
        except (ValueError, RecursionError):
            message = None
        if not isinstance(message, dict):
            logger.error("control has sent %d bytes that are no message", len(data))
            return {}
        return message
