"""Every outage of AWS KMS that a mounted model must live through, each with a way back."""

import contextlib
import os
import signal
from base64 import b64encode
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from tests.aws.emulators import Emulator, running
from tests.aws.impostor import KEY_ARN, error, reply
from tests.aws.leased import Leased
from tests.helpers import KeySet
from tests.leases.impostor import Misbehave, server_context
from tests.leases.outages import REFUSED, WRONG_CA, bad_answers, impostor, live_through
from tests.leases.switch import Switch
from tests.leases.watching import Outage, Outcome, Wanted
from tests.vault.server import dev_vault

AT_ONCE = 7
"""Mounts: a proof takes 50 ms of a processor."""
TTL_S = 10.0
"""Longer than it takes to make seven mounts at once, each of which imports the SDK, on a busy machine."""
STOPPED = "server stopped (SIGSTOP)"
WRONG_BYTES, OTHER_KEY = "wrong key bytes", "another key's bytes"
ALARMS = (WRONG_BYTES, OTHER_KEY)


def plaintext(data: bytes) -> bytes:
    return reply({"KeyId": KEY_ARN, "Plaintext": b64encode(data).decode()})


ANSWERS: dict[str, bytes | Misbehave] = {
    "throttled": error("ThrottlingException", "Rate exceeded"),
    "answers 500": error("KMSInternalException", status=500),
    "credentials ended": error("ExpiredTokenException"),
    WRONG_BYTES: plaintext(os.urandom(37)),
    OTHER_KEY: plaintext(os.urandom(32)),
    **bad_answers(error("AccessDeniedException")),
}
NAMES = [STOPPED, REFUSED, *ANSWERS, WRONG_CA]


def run_outages(
    emulator: Emulator, authority: Any, keys: KeySet, base: Path, shift: Callable[[], None] = lambda: None
) -> dict[str, Outcome]:
    """All of them, a few at once, each with a mount of its own.

    Args:
        emulator: Stays up; a stopped one is another.
        authority: Whose certificates count.
        keys: The publisher's.
        base: A new directory.
        shift: Called before each begins.
    """
    with contextlib.ExitStack() as stack:
        own = stack.enter_context(running(emulator.name, base / "stopped.server"))
        stopped, behind = Leased(own, authority, keys, base / "stopped.model"), Leased(emulator, authority, keys, base / "model")
        for each in (stopped, behind):
            stack.callback(each.close)
        (base / "stranger").mkdir()
        bad = server_context(*dev_vault.Authority(base / "stranger", "stranger").issue("stranger", is_server=True))
        freeze = Outage(partial(os.kill, own.pid, signal.SIGSTOP), partial(os.kill, own.pid, signal.SIGCONT))
        cases: dict[str, tuple[Wanted, Outage]] = {STOPPED: (stopped.wanted(ttl_s=TTL_S), freeze)}
        for name in NAMES[1:]:
            switch = Switch(behind.front.port)
            stack.callback(switch.close)
            if name is REFUSED:
                begin: Callable[[], object] = switch.refuse
            else:
                context = bad if name is WRONG_CA else behind.context
                begin = partial(switch.lead_to, stack.enter_context(impostor(context, ANSWERS.get(name, error("AccessDeniedException")))))
            cases[name] = behind.wanted(switch, ttl_s=TTL_S), Outage(begin, partial(switch.lead_to, behind.front.port))
        outcomes: dict[str, Outcome] = {}
        for first in range(0, len(NAMES), AT_ONCE):
            outcomes |= live_through(base, {name: cases[name] for name in NAMES[first : first + AT_ONCE]}, shift)
        return outcomes
