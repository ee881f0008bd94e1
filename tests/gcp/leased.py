"""Models sealed for keys in the stand-in, what takes the keys away, and every outage."""

import base64
import contextlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import google_crc32c

from modelfs.keys import open_kek
from tests.aws.leased import variables
from tests.gcp.fake import DECRYPT, ENCRYPT, FakeKms, Status
from tests.helpers import KeySet
from tests.leases.impostor import Misbehave, answer, http, server_context
from tests.leases.outages import REFUSED, WRONG_CA, bad_answers, impostor, live_through
from tests.leases.switch import Switch
from tests.leases.watching import RENEW_S, Outage, Outcome, Wanted, seal_for
from tests.vault.server import dev_vault

TTL_S = 10.0
"""On a busy machine control needs seconds to import the library after the first proof."""


class Leased:
    """A model sealed for a key of its own, and what the host that mounts it says."""

    def __init__(self, kms: FakeKms, keys: KeySet, base: Path, name: str) -> None:
        base.mkdir()
        self.kms, self.name = kms, name
        self.key = kms.key(name)
        self.credentials = kms.account(name, self.key, ENCRYPT, DECRYPT)
        self.environment = kms.environment(self.credentials)
        with variables(self.environment):
            self.sealed = seal_for(open_kek(self.uri(kms.endpoint)), keys, base)

    def uri(self, endpoint: str) -> str:
        return f"gcpkms:{self.key}?endpoint={endpoint}"

    def wanted(self, endpoint: str, ttl_s: float = TTL_S, *more: object) -> Wanted:
        options = ["--kek", self.uri(endpoint), "--renew-every", RENEW_S, "--ttl", ttl_s, "--proof-timeout", 2, *more]
        return Wanted(self.sealed, options, self.environment)


# Denials.


def disable(leased: Leased) -> None:
    leased.kms.keys[leased.key].states[1] = "DISABLED"


def schedule(leased: Leased) -> None:
    leased.kms.keys[leased.key].states[1] = "DESTROY_SCHEDULED"


DENIALS: dict[str, tuple[Callable[[Leased], object], str]] = {
    "binding removed": (lambda leased: leased.kms.revoke(leased.name), "PERMISSION_DENIED"),
    "version disabled": (disable, "FAILED_PRECONDITION"),
    "version scheduled for destruction": (schedule, "FAILED_PRECONDITION"),
    "key gone": (lambda leased: leased.kms.keys.pop(leased.key), "NOT_FOUND"),
}


# Outages.

DENIAL = http(403, Status("PERMISSION_DENIED", "no", "IAM_PERMISSION_DENIED").as_json())
"""What would end the mount at once, if it counted."""


def decrypted(plaintext: bytes, crc32c: int) -> bytes:
    return answer({"plaintext": base64.b64encode(plaintext).decode(), "plaintextCrc32c": str(crc32c)})


OTHER = b"E" * 32
ANSWERS: dict[str, bytes | Misbehave] = {
    "throttled": http(429, Status("RESOURCE_EXHAUSTED", "quota").as_json()),
    "answers 503": http(503, Status("UNAVAILABLE", "later").as_json()),
    "answers 401": http(401, Status("UNAUTHENTICATED", "who?").as_json()),
    "a checksum that disagrees": decrypted(OTHER, 1),
    "another key's bytes": decrypted(OTHER, google_crc32c.value(OTHER)),
    **bad_answers(DENIAL),
}
NAMES = [REFUSED, WRONG_CA, *ANSWERS]


def run_outages(kms: FakeKms, keys: KeySet, base: Path, name: str, shift: Callable[[], None] = lambda: None) -> dict[str, Outcome]:
    """All of them at once, each with a mount of its own."""
    with contextlib.ExitStack() as stack:
        leased = Leased(kms, keys, base / "model", name)
        good = server_context(*kms.ca.issue("behind-a-proxy", is_server=True))
        (base / "stranger").mkdir()
        bad = server_context(*dev_vault.Authority(base / "stranger", "stranger").issue("stranger", is_server=True))
        cases = {}
        for each in NAMES:
            switch = Switch(kms.rest)
            stack.callback(switch.close)
            if each is REFUSED:
                begin = switch.refuse
            else:
                port = stack.enter_context(impostor(bad if each is WRONG_CA else good, ANSWERS.get(each, DENIAL)))
                begin = partial(switch.lead_to, port)
            cases[each] = leased.wanted(f"localhost:{switch.port}"), Outage(begin, partial(switch.lead_to, kms.rest))
        return live_through(base, cases, shift)
