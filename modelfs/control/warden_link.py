"""The warden as control knows it: told what to do, heard, and ended when it does not go on with what only it can do."""

import contextlib
import json
import logging
import os
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import trio

from modelfs.control.notify import Watchdog

ACKNOWLEDGE_SECONDS = 1.0
"""A warden that does not begin the unmount by then is ended, and control does it itself."""
DARKEN_SECONDS = 5.0
"""The same for a warden that does not begin to darken a locked mount: only it could take the plaintext out of the page cache."""
SILENCE_SECONDS = 3.0
"""A warden at work, which says each second that it goes on, is ended when it has said nothing for so long."""
DRAIN_SECONDS = 0.5
"""For the last words of a warden that was ended. A child that it leaves, stuck in the kernel, may hold the channel open for longer."""
TICK_SECONDS = 0.05
MAX_REASON_BYTES = 2000
"""Of a reason as the warden is told it: its packets are small."""
SILENT = "the warden does not answer"

logger = logging.getLogger(__name__)

Message = dict[str, Any]


@dataclass(frozen=True)
class Heard:
    """What the control loop does about the warden."""

    fence: Callable[[str], bool]
    """Ends the mount for a reason: no plaintext leaves from now on. Whether it was the first reason."""
    unmounting: Callable[[str], None]
    """The warden takes the mount down by itself, and says why."""
    changed: Callable[[], None]
    """Other workers, or a crash loop."""


class WardenLink:
    """One end of the channel to the warden. What it says is in the attributes; what it owes is watched."""

    def __init__(self, channel: socket.socket, watchdog: Watchdog, heard: Heard) -> None:
        """Take a channel; nobody is heard before `run`.

        Args:
            channel: SOCK_SEQPACKET to the warden; stays the caller's.
            watchdog: Asks by this channel, and is told of every answer.
            heard: See `Heard`.
        """
        self._raw = channel
        self._channel = trio.socket.from_stdlib_socket(channel)
        self._watchdog = watchdog
        self._heard = heard
        self._pid: int | None = None
        self._nursery: trio.Nursery | None = None
        self._messages = 0
        self._quiet_s = SILENCE_SECONDS
        self._works = 0
        """How many darkenings and unmounts of the warden are being watched."""
        self._lights, self._lit, self._lights_before_darkening, self._lights_before_dark = 0, 0, -1, -1
        """How often the warden was told to light the mount, and has; and how often it had when it last began to darken, and was done."""
        self.workers: list[int] = []
        self.deaths = 0
        self.is_crash_loop = False
        self.darkness: Message = {}
        """What the last darkening did and found."""
        self.reason: str | None = None
        """Why the warden takes the mount down, as it says itself."""
        self.proof: Message | None = None
        self.has_begun = trio.Event()
        """The unmount, or there is no warden any more to begin it."""
        self.ended = trio.Event()

    def know(self, pid: int) -> None:
        """Which process it is: our child, not reaped before the mount has ended, so the number is its own. Before all else."""
        self._pid = pid

    async def run(self) -> None:
        """Hear and watch the warden, until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._receive)
            await self._watchdog.run(self._ask)
            await self._end_silent()

    def stand_in(self, seconds: float) -> None:
        """Somebody else does for at most so long what the dead warden should: the service manager is not to wait for its answers."""
        self._watchdog.busy(seconds)

    @property
    def is_dark(self) -> bool:
        """Whether it has darkened the mount since it was last told to light it."""
        return self._lights_before_dark == self._lights

    @property
    def is_lit(self) -> bool:
        """Whether it has lit the mount as often as it was told to."""
        return self._lit == self._lights

    # -- what it is told

    def note(self, key_version: int | None, kek: str | None) -> None:
        """What it is to record, should it end alone."""
        self._send({"do": "note", "key_version": key_version, "kek": kek})

    def light(self) -> None:
        """A new epoch is open: start workers with keys."""
        self._lights += 1
        self._send({"do": "light"})

    def darken(self) -> None:
        """The fence has fallen and the keys are gone, but only the warden can take the plaintext out of the page cache."""
        self._send({"do": "darken"})
        if self._nursery is not None:
            self._nursery.start_soon(self._watch_darkening, self._lights)

    async def unmount(self, reason: str) -> None:
        """Take the mount down; returns when that has begun, or the warden was ended because it did not."""
        self._send({"do": "unmount", "reason": cut(reason)})
        while self._works and not self.has_begun.is_set():
            await trio.sleep(TICK_SECONDS)  # it is darkening, which comes first in an unmount too
        with trio.move_on_after(ACKNOWLEDGE_SECONDS) as waiting:
            await self.has_begun.wait()
        if waiting.cancelled_caught:
            logger.error("the warden does not begin the unmount: ending it")
            await self._kill()

    def _ask(self) -> None:
        self._send({"do": "answer"})

    def _send(self, message: Message) -> None:
        """Without waiting. A full channel is one whose warden does not answer; a dead one is heard of otherwise."""
        if self.ended.is_set():
            return
        try:
            self._raw.send(json.dumps(message).encode(), socket.MSG_DONTWAIT)
        except BlockingIOError:
            if self._nursery is not None:
                self._nursery.start_soon(self._end_silent)
        except OSError:
            logger.warning("the warden does not listen any more")

    # -- what it says

    async def _receive(self) -> None:
        while True:
            try:
                data = await self._channel.recv(65536)
            except ConnectionResetError:
                continue  # it ended without reading our last word; what it said itself is still to be read
            except OSError:
                data = b""
            if not data:
                self.has_begun.set()
                self.ended.set()
                return
            self._hear(json.loads(data))

    def _hear(self, message: Message) -> None:
        self._watchdog.answered()
        self._messages += 1
        self._quiet_s = message.get("alive") or SILENCE_SECONDS
        if "darkening" in message:
            self._watchdog.busy(message["busy_s"])
            self._lights_before_darkening = lights = message["darkening"]
            self._watch(message["busy_s"], lambda: self._lights_before_dark >= lights)
        if "workers" in message:
            self.workers, self.deaths, self.is_crash_loop = message["workers"], message["deaths"], message["crash_loop"]
            self._heard.changed()
        if "dark" in message:
            logger.warning("dark: %s", json.dumps(message["dark"]))
            self.darkness, self._lights_before_dark = message["dark"], message["lights"]
            self._watchdog.busy(0)
        if "lit" in message:
            self._lit = message["lit"]
        if "ending" in message:
            self.has_begun.set()
            self.reason = message["ending"]
            self._heard.unmounting(message["ending"])
            self._watch(message["busy_s"], lambda: self.proof is not None)
        if "proof" in message:
            self.proof = message["proof"]

    # -- what it owes

    async def _watch_darkening(self, lights: int) -> None:
        """Until it begins, or there is nothing to darken any more because the mount was lit again."""
        deadline = trio.current_time() + DARKEN_SECONDS
        while self._lights_before_darkening < lights and self._lit <= lights:
            if trio.current_time() >= deadline:
                await self._end_silent()
                return
            await trio.sleep(0.02)

    def _watch(self, total_s: float, is_done: Callable[[], bool]) -> None:
        """It has begun what only it can do, and says all the time that it goes on: from now on it is watched."""
        if self._nursery is not None:
            self._works += 1
            self._nursery.start_soon(self._watch_work, total_s, is_done)

    async def _watch_work(self, total_s: float, is_done: Callable[[], bool]) -> None:
        # In ticks, not by the clock: if this process was stopped or starved, what the warden has said meanwhile is still to be read.
        messages, quiet, ticks = self._messages, 0, 0
        try:
            while not is_done() and not self.ended.is_set():
                if quiet * TICK_SECONDS >= self._quiet_s or ticks * TICK_SECONDS >= total_s:
                    logger.error("the warden does not go on with what it has begun: ending it")
                    self._heard.fence(SILENT)
                    await self._kill()
                    return
                await trio.sleep(TICK_SECONDS)
                ticks += 1
                messages, quiet = self._messages, quiet + 1 if messages == self._messages else 0
        finally:
            self._works -= 1

    async def _end_silent(self) -> None:
        """Unless it is taking the mount down, and watched."""
        if not self.has_begun.is_set():
            logger.error(SILENT)
            if self._heard.fence(SILENT):
                await self.unmount(SILENT)

    async def _kill(self) -> None:
        if self._pid is None:
            raise RuntimeError("nobody has said which process the warden is")
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        with trio.move_on_after(DRAIN_SECONDS):
            await self.ended.wait()
        self.has_begun.set()
        self.ended.set()


def cut(reason: str) -> str:
    """As much of a reason as is told the warden; how many bytes a character takes in JSON depends on it."""
    while len(json.dumps(reason)) > MAX_REASON_BYTES:
        reason = reason[: len(reason) * 3 // 4]
    return reason
