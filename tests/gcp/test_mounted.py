"""A model mounted with a KEK in Google Cloud KMS (the stand-in): what a denial and an outage do to readers; logs hold no secret."""

import base64
import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import google_crc32c
import pytest

from modelfs.keys import open_kek
from tests.gcp.fake import DECRYPT, ENCRYPT, FakeKms, Status
from tests.helpers import KeySet
from tests.leases.denials import end_by_denial
from tests.leases.impostor import Misbehave, answer, http, server_context
from tests.leases.outages import REFUSED, TTL_S, WRONG_CA, assert_again, assert_bound, bad_answers, impostor, live_through
from tests.leases.switch import Switch
from tests.leases.watching import FILE, PLAIN, RENEW_S, Outage, Outcome, Wanted, mounts, seal_for
from tests.mount.conftest import Mounted, Program
from tests.mount.conftest import program as program  # noqa: PLC0414  a fixture
from tests.vault.server import dev_vault


class Leased:
    """A model sealed for a key of its own, and what the host that mounts it says."""

    def __init__(self, kms: FakeKms, keys: KeySet, base: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        base.mkdir()
        self.kms, self.name = kms, name
        self.key = kms.key(name)
        self.credentials = kms.account(name, self.key, ENCRYPT, DECRYPT)
        self.environment = kms.environment(self.credentials)
        with monkeypatch.context() as here:
            for variable, value in self.environment.items():
                here.setenv(variable, value)
            self.sealed = seal_for(open_kek(self.uri(kms.endpoint)), keys, base)

    def uri(self, endpoint: str) -> str:
        return f"gcpkms:{self.key}?endpoint={endpoint}"

    def wanted(self, endpoint: str, ttl_s: float = TTL_S, *more: object) -> Wanted:
        options = ["--kek", self.uri(endpoint), "--renew-every", RENEW_S, "--ttl", ttl_s, *more]
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


@pytest.mark.parametrize("denial", DENIALS)
def test_a_denial_ends_everything_within_the_bound(
    gcp: FakeKms,
    keys_dir: KeySet,
    program: Callable[..., Program],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    denial: str,
    record_property: Callable[[str, object], None],
) -> None:
    leased = Leased(gcp, keys_dir, tmp_path / "model", monkeypatch, "d" + denial.replace(" ", "-"))
    act, reason = DENIALS[denial]
    with mounts(tmp_path, {"it": leased.wanted(gcp.endpoint)}) as made:
        dark_s = end_by_denial(made["it"], program, partial(act, leased), reason, tmp_path / "it.audit")
    record_property("seconds to the last good read", round(dark_s, 2))


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


@pytest.fixture(scope="module")
def outcomes(gcp: FakeKms, keys_dir: KeySet, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, Outcome]]:
    """All of them side by side: each takes seconds of waiting."""
    base = tmp_path_factory.mktemp("gcp-outages")
    with pytest.MonkeyPatch.context() as monkeypatch, contextlib.ExitStack() as stack:
        leased = Leased(gcp, keys_dir, base / "model", monkeypatch, "outages")
        good = server_context(*gcp.ca.issue("behind-a-proxy", is_server=True))
        (base / "stranger").mkdir()
        bad = server_context(*dev_vault.Authority(base / "stranger", "stranger").issue("stranger", is_server=True))
        cases = {}
        for name in NAMES:
            switch = Switch(gcp.rest)
            stack.callback(switch.close)
            if name is REFUSED:
                begin = switch.refuse
            else:
                port = stack.enter_context(impostor(bad if name is WRONG_CA else good, ANSWERS.get(name, DENIAL)))
                begin = partial(switch.lead_to, port)
            cases[name] = leased.wanted(f"localhost:{switch.port}"), Outage(begin, partial(switch.lead_to, gcp.rest))
        yield live_through(base, cases, lambda: None)


@pytest.mark.parametrize("name", NAMES)
def test_reads_go_on_to_the_leases_end_and_not_after(outcomes: Mapping[str, Outcome], name: str) -> None:
    assert_bound(outcomes[name])


@pytest.mark.parametrize("name", NAMES)
def test_reads_work_again_by_themselves(outcomes: Mapping[str, Outcome], name: str) -> None:
    assert_again(outcomes[name])


# What is said.


def test_a_mount_s_whole_life_at_debug_level_says_nothing_secret(
    gcp: FakeKms, keys_dir: KeySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leased = Leased(gcp, keys_dir, tmp_path / "model", monkeypatch, "secrets")
    wrapped = []
    opened = []

    def listen(found: object) -> object:
        if hasattr(found, "plaintext"):
            opened.append(bytes(found.plaintext))
        return found

    monkeypatch.setattr(gcp, "alter", listen)
    leased.environment["GOOGLE_SDK_PYTHON_LOGGING_SCOPE"] = "google"
    with mounts(tmp_path, {"it": leased.wanted(gcp.endpoint, TTL_S, "--log-level", "debug")}) as made:
        mounted: Mounted = made["it"]
        assert (mounted.path / FILE).read_bytes() == PLAIN
        proofs = len(opened)
        from tests.mount.conftest import modelfs, wait_until

        wait_until(lambda: len(opened) > proofs + 1, 10, "two more proofs")
        said = modelfs("status", mounted.path, "--json").stdout + mounted.log + (tmp_path / "it.audit").read_text()
    for path in (leased.sealed.path / "keys").iterdir():
        wrapped += [base64.b64decode(entry["wrapped"]) for entry in json.loads(path.read_text())["recipients"]]
    assert opened
    assert wrapped
    assert "proof: Answer(verdict=<Verdict.GRANTED" in said, "the log is at debug level"
    for secret in {*opened, *wrapped}:
        for text in (base64.b64encode(secret).decode(), base64.urlsafe_b64encode(secret).decode(), secret.hex(), repr(secret)[2:-1]):
            assert text not in said
    assert json.loads(leased.credentials.read_text())["private_key"][60:100] not in said
    assert "Bearer" not in said
    assert "eyJ" not in said, "a token"
