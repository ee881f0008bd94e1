"""Outages of a key service that a mounted model must live through, each with a way back."""

import contextlib
import errno
import ssl
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.leases.impostor import Misbehave, Request, ServiceImpostor, http, send, slowly
from tests.leases.watching import Outage, Outcome, Wanted, endure, mounts

TTL_S = 5.0
WRONG_CA, REFUSED = "a certificate of another CA", "network refused"


def bad_answers(denial: bytes) -> dict[str, bytes | Misbehave]:
    """What any key service may answer that is no denial, however much it looks like one.

    Args:
        denial: Would end the mount at once, if it counted.
    """
    return {
        "answers garbage": send(b"\0\1\2\3 not HTTP at all\r\n\r\n"),
        "a proxy's HTML 403": http(403, b"<html><body>403 Forbidden: blocked by policy</body></html>", "text/html"),
        "a byte a second": slowly(denial, 1.0),
        "answers after 60 s": slowly(denial, 0.0, 60.0),
    }


class _Always(ServiceImpostor):
    def usual(self, _request: Request) -> bytes:
        return b""


@contextlib.contextmanager
def impostor(context: ssl.SSLContext, fault: bytes | Misbehave) -> Iterator[int]:
    """The port of a server that answers everything like that."""
    made = _Always(context, b"", {"": fault})
    try:
        yield int(made.address.rpartition(":")[2])
    finally:
        made.close()


def live_through(base: Path, cases: Mapping[str, tuple[Wanted, Outage]], shift: Callable[[], None]) -> dict[str, Outcome]:
    """All of them at once, each with a mount of its own.

    Args:
        base: A new directory.
        cases: A mount, and its outage.
        shift: Called before each begins.
    """

    def one(name: str) -> Outcome:
        shift()
        return endure(mounted[name], cases[name][1])

    wanted = {name: mount for name, (mount, _outage) in cases.items()}
    with mounts(base, wanted) as mounted, ThreadPoolExecutor(len(cases)) as pool:
        return dict(zip(cases, pool.map(one, cases), strict=True))


def assert_bound(outcome: Outcome, ttl_s: float = TTL_S) -> None:
    """Reads go on to the lease's end, and not after."""
    earliest, latest = outcome.lease_end
    assert outcome.began < earliest
    assert latest - earliest < 0.5, "the end is not known well enough to say anything"
    assert earliest <= outcome.began + ttl_s, "a proof after the server was gone has counted"
    good, dark = outcome.good(), outcome.dark()
    assert {sample.errno for sample in dark} == {errno.EKEYEXPIRED}
    assert dark[0].ended >= earliest, "an outage must not end a lease that still runs"
    assert len(good) > 20
    assert good[-1].started <= latest, "plaintext after the lease's end"
    assert dark[0].started <= latest + 2.0, "the bound of the design"
    assert len(dark) > 20
    assert dark[-1].ended > latest + 1.0


def assert_again(outcome: Outcome) -> None:
    """Reads work again by themselves, through the descriptor that was open all the time, in the same mount."""
    assert len(outcome.again()) > 10
    assert outcome.samples[-1].errno is None
    assert outcome.dark()[-1].ended < outcome.again()[0].ended, "it went dark a second time"
    assert outcome.state == "serving"
    assert set(outcome.audited) == {"renewal failed", "locked", "unlock"}, "an outage is no denial"
    assert [outcome.audited.count(event) for event in ("locked", "unlock")] == [1, 1]
