"""What a service manager hears: a real datagram socket, by path and abstract; and when the watchdog is fed."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from modelfs.control.notify import START_SECONDS, USUAL_SECONDS, Notifier, Watchdog


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@modelfs-test-{os.getpid()}-{os.urandom(8).hex()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(name.replace("@", "\0", 1))
        listener.settimeout(5)
        yield listener, name


def test_messages(manager: tuple[socket.socket, str]) -> None:
    listener, address = manager
    notifier = Notifier(address)
    notifier.starting("mounting")
    assert listener.recv(4096) == f"EXTEND_TIMEOUT_USEC={START_SECONDS}000000\nSTATUS=mounting".encode()
    notifier.ready("serving")
    assert listener.recv(4096) == f"READY=1\nMAINPID={os.getpid()}\nSTATUS=serving".encode()
    notifier.alive("a\nREADY=1\n b")
    assert listener.recv(4096) == b"WATCHDOG=1\nSTATUS=a READY=1 b", "a status is one line, or it could say anything"
    notifier.stopping("unmounting")
    assert listener.recv(4096) == b"STOPPING=1\nSTATUS=unmounting"


def test_the_environment_is_read_and_taken_away(manager: tuple[socket.socket, str]) -> None:
    listener, address = manager
    environ = {"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "2500000", "WATCHDOG_PID": str(os.getpid()), "OTHER": "x"}
    notifier = Notifier.from_environment(environ)
    assert environ == {"OTHER": "x"}, "no child process may speak for this one"
    assert notifier.watchdog_s == 2.5
    notifier.status("hello")
    assert listener.recv(4096) == b"STATUS=hello"


@pytest.mark.parametrize(
    ("usec", "pid", "expected"),
    [("1000000", "", 1.0), ("1000000", "1", None), ("0", "", None), ("", "", None), ("-5", "", None), ("soon", "", None)],
)
def test_a_watchdog_that_is_not_ours_is_not_fed(usec: str, pid: str, expected: float | None) -> None:
    environ = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": usec, "WATCHDOG_PID": pid}
    assert Notifier.from_environment(environ).watchdog_s == expected


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "vsock:2:1234", "relative", "/" + "x" * 500])
def test_a_manager_that_cannot_be_reached_stops_nothing(address: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    notifier.ready("serving")
    notifier.alive("serving")


class Warden:
    """Answers until told otherwise."""

    def __init__(self) -> None:
        self.answers = True
        self.watchdog: Watchdog

    def ask(self) -> None:
        if self.answers:
            self.watchdog.answered()


@pytest.fixture
def fed(manager: tuple[socket.socket, str]) -> tuple[Warden, socket.socket]:
    listener, address = manager
    listener.settimeout(0)
    warden = Warden()
    warden.watchdog = Watchdog(Notifier(address, 8.0), lambda: "well")
    return warden, listener


async def fed_in(seconds: int, listener: socket.socket) -> int:
    """How many feeds come in so many seconds. A datagram socket holds only ten."""
    count = 0
    for _ in range(seconds):
        await trio.sleep(1)
        count += heard(listener)
    return count


def heard(listener: socket.socket) -> int:
    """How many feeds have come since the last call."""
    count = 0
    while True:
        try:
            assert listener.recv(4096) == b"WATCHDOG=1\nSTATUS=well"
            count += 1
        except BlockingIOError:
            return count


async def test_the_watchdog_is_fed_while_the_warden_answers(
    fed: tuple[Warden, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    warden, listener = fed
    async with trio.open_nursery() as nursery:
        nursery.start_soon(warden.watchdog.run, warden.ask)
        await trio.sleep(0.5)
        assert await fed_in(40, listener) == 40, "once in a quarter of half the time"
        nursery.cancel_scope.cancel()


async def test_a_silent_warden_ends_the_feeding_before_the_watchdog_bites(
    fed: tuple[Warden, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    warden, listener = fed
    async with trio.open_nursery() as nursery:

        async def run() -> None:
            await warden.watchdog.run(warden.ask)
            nursery.cancel_scope.cancel()

        nursery.start_soon(run)
        await trio.sleep(0.5)
        assert await fed_in(20, listener) == 20
        warden.answers = False
        start = trio.current_time()
        await trio.sleep(100)
    assert trio.current_time() - start <= 5.0, "half the watchdog's time and one more round"
    assert heard(listener) <= 4


async def test_a_warden_that_said_it_is_busy_is_waited_for(
    fed: tuple[Warden, socket.socket], autojump_clock: trio.testing.MockClock
) -> None:
    warden, listener = fed
    async with trio.open_nursery() as nursery:
        nursery.start_soon(warden.watchdog.run, warden.ask)
        await trio.sleep(2.5)
        warden.answers = False
        warden.watchdog.busy(30)
        heard(listener)
        assert await fed_in(28, listener) == 28, "a mount that goes dark slowly is no failure"
        warden.answers = True
        assert await fed_in(20, listener) == 20
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("address", ["", "manager"])
async def test_without_a_service_manager_s_watchdog_the_warden_is_watched_all_the_same(
    manager: tuple[socket.socket, str], autojump_clock: trio.testing.MockClock, address: str
) -> None:
    listener, name = manager
    listener.settimeout(0)
    warden = Warden()
    warden.watchdog = Watchdog(Notifier(name if address else ""), lambda: "well")
    with trio.move_on_after(1000) as scope:
        await warden.watchdog.run(warden.ask)
    assert scope.cancelled_caught
    warden.answers = False
    start = trio.current_time()
    await warden.watchdog.run(warden.ask)
    assert trio.current_time() - start <= 0.75 * USUAL_SECONDS
    assert heard(listener) == 0, "who has asked for no feeding gets none"
