"""Every outage of a key service that a mounted model must live through, each with a way back."""

import contextlib
import os
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from tests.helpers import KeySet
from tests.vault.impostor import Impostor, Misbehave, answer, http, send, server_context
from tests.vault.leased import Leased, Outage, Outcome, endure, mounts
from tests.vault.server import Server, dev_vault, running_server
from tests.vault.switch import Switch

TTL_S = 5.0

DENIAL = answer({"errors": ["1 error occurred:\n\t* permission denied\n\n"]}, 403)
"""What would end the mount at once, if it counted."""


def slowly(pause_s: float, at_first_s: float = 0.0) -> Misbehave:
    """A denial, a byte at a time."""

    def action(connection: ssl.SSLSocket) -> None:
        wait = threading.Event().wait
        wait(at_first_s)
        for byte in DENIAL:
            connection.sendall(bytes([byte]))
            wait(pause_s)

    return action


ANSWERS: dict[str, bytes | Misbehave] = {
    "answers 500": answer({"errors": ["internal error"]}, 500),
    "answers 429": answer({"errors": ["rate limit quota exceeded"]}, 429),
    "answers garbage": send(b"\0\1\2\3 not HTTP at all\r\n\r\n"),
    "a proxy's HTML 403": http(403, b"<html><body>403 Forbidden: blocked by policy</body></html>", "text/html"),
    "a byte a second": slowly(1.0),
    "answers after 60 s": slowly(0.0, 60.0),
}
WRONG_CA, REFUSED = "a certificate of another CA", "network refused"
KILLED, STOPPED, SEALED = "server killed (SIGKILL)", "server stopped (SIGSTOP)", "server sealed"
NAMES = [KILLED, STOPPED, SEALED, REFUSED, *ANSWERS, WRONG_CA]


@contextlib.contextmanager
def impostor(context: ssl.SSLContext, fault: bytes | Misbehave) -> Iterator[int]:
    """The port of a server that answers everything like that."""
    made = Impostor(context, b"", {"": fault})
    try:
        yield int(made.address.rpartition(":")[2])
    finally:
        made.close()


def run_outages(server: Server, keys: KeySet, base: Path, shift: Callable[[], None] = lambda: None) -> dict[str, Outcome]:
    """All of them at once, each with a mount of its own.

    Args:
        server: Stays up: outages of the server itself have servers of their own.
        keys: The publisher's.
        base: A new directory.
        shift: Called before each begins.
    """
    with contextlib.ExitStack() as stack:
        leased, addresses, outages = dict[str, Leased](), dict[str, str](), dict[str, Outage]()
        for name in (KILLED, STOPPED, SEALED):
            own = stack.enter_context(running_server(base / f"{name.split()[1]}.server", is_durable=name is KILLED))
            leased[name] = Leased(own, keys, base / f"{name.split()[1]}.model")
            outages[name] = of_server(name, own)
        behind, authority = Leased(server, keys, base / "model"), server.vault.ca
        good = server_context(*authority.issue("behind-a-proxy", is_server=True))
        (base / "stranger").mkdir()
        bad = server_context(*dev_vault.Authority(base / "stranger", "stranger").issue("stranger", is_server=True))
        for name in (REFUSED, *ANSWERS, WRONG_CA):
            switch = Switch(server.vault.port)
            stack.callback(switch.close)
            leased[name], addresses[name] = behind, switch.address
            if name is REFUSED:
                begin = switch.refuse
            else:
                port = stack.enter_context(impostor(bad if name is WRONG_CA else good, ANSWERS.get(name, DENIAL)))
                begin = partial(switch.lead_to, port)
            outages[name] = Outage(begin, partial(switch.lead_to, server.vault.port))
        wanted = {name: (leased[name].sealed, leased[name].options(address=addresses.get(name, ""), ttl_s=TTL_S)) for name in NAMES}
        mounted = stack.enter_context(mounts(base, wanted))

        def live_through(name: str) -> Outcome:
            shift()
            return endure(mounted[name], outages[name])

        with ThreadPoolExecutor(len(NAMES)) as pool:
            return dict(zip(NAMES, pool.map(live_through, NAMES), strict=True))


def of_server(name: str, server: Server) -> Outage:
    vault = server.vault
    if name is KILLED:
        return Outage(vault.kill, vault.restart)
    if name is STOPPED:
        return Outage(partial(os.kill, vault.pid, signal.SIGSTOP), partial(os.kill, vault.pid, signal.SIGCONT))
    return Outage(server.root.sys.seal, vault.unseal)
