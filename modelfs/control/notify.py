"""What a service manager is told: the datagram protocol of sd_notify(3), and the watchdog that it keeps. Silent where nobody asked."""

import logging
import os
import socket
from collections.abc import Callable, MutableMapping

import trio

SEND_SECONDS = 1.0
USUAL_SECONDS = 60.0
"""The watchdog's time where no service manager has one: WatchdogSec= of modelfs@.service."""
START_SECONDS = 150
"""How much longer the service manager shall wait after `starting`: more than everything between there and READY may take."""

logger = logging.getLogger(__name__)


class Notifier:
    """The service manager that started this process, if one did."""

    def __init__(self, address: str = "", watchdog_s: float | None = None) -> None:
        """Take where to send.

        Args:
            address: Path of a datagram socket, `@NAME` for an abstract one, or nothing.
            watchdog_s: Within which time `alive` must follow `alive`; None: nobody waits for it.
        """
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self.watchdog_s = watchdog_s

    @classmethod
    def from_environment(cls, environ: MutableMapping[str, str]) -> "Notifier":
        """As the service manager says in NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID, which are taken out: no child is to speak."""
        address = environ.pop("NOTIFY_SOCKET", "")
        usec, pid = environ.pop("WATCHDOG_USEC", ""), environ.pop("WATCHDOG_PID", "")
        if address and address[0] not in "/@":
            logger.warning("NOTIFY_SOCKET is no path and no abstract socket: the service manager is told nothing")
            address = ""
        is_ours = not pid or pid == str(os.getpid())
        return cls(address, int(usec) / 1e6 if address and usec.isdecimal() and int(usec) and is_ours else None)

    def starting(self, status: str) -> None:
        """Not ready yet, and not stuck."""
        self._send(f"EXTEND_TIMEOUT_USEC={START_SECONDS * 1_000_000}", _status(status))

    def ready(self, status: str) -> None:
        """The mount answers reads. Names this process, which may not be the one that the service manager has started."""
        self._send("READY=1", f"MAINPID={os.getpid()}", _status(status))

    def alive(self, status: str) -> None:
        """Feed the watchdog."""
        self._send("WATCHDOG=1", _status(status))

    def status(self, status: str) -> None:
        """The line that `systemctl status` shows."""
        self._send(_status(status))

    def stopping(self, status: str) -> None:
        """The unmount sequence has begun."""
        self._send("STOPPING=1", _status(status))

    def _send(self, *lines: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
                sender.settimeout(SEND_SECONDS)  # nothing here waits for a service manager that hangs
                sender.sendto("\n".join(lines).encode(), self._address)
        except OSError as exc:
            logger.warning("the service manager does not listen: %s", os.strerror(exc.errno or 0) if exc.errno else exc)


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())


class Watchdog:
    """Watches the warden, and feeds the service manager's watchdog: while this loop turns and the warden answers, whatever store and key
    service do. Without a service manager it watches all the same."""

    def __init__(self, notifier: Notifier, status: Callable[[], str]) -> None:
        """Take how to live.

        Args:
            notifier: Is fed if it has `watchdog_s`.
            status: The status line.
        """
        self._notifier = notifier
        self._status = status
        self._answered_at = 0.0
        self._busy_until = 0.0

    def answered(self) -> None:
        """The warden lives."""
        self._answered_at = trio.current_time()

    def busy(self, seconds: float) -> None:
        """The warden says that it will not answer for so long at most, because it darkens the mount."""
        self._busy_until = trio.current_time() + seconds

    async def run(self, ask: Callable[[], None]) -> None:
        """Feed; return when the warden has not answered for half of the watchdog's time.

        Args:
            ask: Sends the warden a question; `answered` is to be called with its answer.
        """
        period_s = (self._notifier.watchdog_s or USUAL_SECONDS) / 2
        self._answered_at = trio.current_time()
        while True:
            ask()
            await trio.sleep(period_s / 4)
            now = trio.current_time()
            if now - self._answered_at >= period_s and now >= self._busy_until:
                return
            if self._notifier.watchdog_s is not None:
                self._notifier.alive(self._status())
