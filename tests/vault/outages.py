"""Every outage of a Vault that a mounted model must live through, each with a way back."""

import contextlib
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.helpers import KeySet
from tests.leases.impostor import Misbehave, answer, server_context
from tests.leases.outages import REFUSED, TTL_S, WRONG_CA, bad_answers, impostor, live_through
from tests.leases.switch import Switch
from tests.leases.watching import Outage, Outcome, Wanted
from tests.vault.leased import Leased
from tests.vault.server import Server, dev_vault, running_server

DENIAL = answer({"errors": ["1 error occurred:\n\t* permission denied\n\n"]}, 403)
"""What would end the mount at once, if it counted."""


ANSWERS: dict[str, bytes | Misbehave] = {
    "answers 500": answer({"errors": ["internal error"]}, 500),
    "answers 429": answer({"errors": ["rate limit quota exceeded"]}, 429),
    **bad_answers(DENIAL),
}
KILLED, STOPPED, SEALED = "server killed (SIGKILL)", "server stopped (SIGSTOP)", "server sealed"
NAMES = [KILLED, STOPPED, SEALED, REFUSED, *ANSWERS, WRONG_CA]


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
        cases = {}
        for name in NAMES:
            options = leased[name].options(address=addresses.get(name, ""), ttl_s=TTL_S)
            cases[name] = Wanted(leased[name].sealed, options), outages[name]
        return live_through(base, cases, shift)


def of_server(name: str, server: Server) -> Outage:
    vault = server.vault
    if name is KILLED:
        return Outage(vault.kill, vault.restart)
    if name is STOPPED:
        return Outage(partial(os.kill, vault.pid, signal.SIGSTOP), partial(os.kill, vault.pid, signal.SIGCONT))
    return Outage(server.root.sys.seal, vault.unseal)
