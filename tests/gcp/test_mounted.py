"""A model mounted with a KEK in Google Cloud KMS (the stand-in): what a denial and an outage do to readers; logs hold no secret."""

import base64
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pytest

from tests.gcp.fake import FakeKms
from tests.gcp.leased import DENIALS, NAMES, TTL_S, Leased, run_outages
from tests.helpers import KeySet
from tests.leases.denials import end_by_denial
from tests.leases.outages import assert_again, assert_bound
from tests.leases.watching import FILE, PLAIN, Outcome, mounts
from tests.mount.conftest import Mounted, Program


@pytest.mark.parametrize("denial", DENIALS)
def test_a_denial_ends_everything_within_the_bound(
    gcp: FakeKms, keys_dir: KeySet, program: Callable[..., Program], tmp_path: Path, denial: str
) -> None:
    leased = Leased(gcp, keys_dir, tmp_path / "model", "d" + denial.replace(" ", "-"))
    act, reason = DENIALS[denial]
    with mounts(tmp_path, {"it": leased.wanted(gcp.endpoint)}) as made:
        end_by_denial(made["it"], program, partial(act, leased), reason, tmp_path / "it.audit")


@pytest.fixture(scope="module")
def outcomes(gcp: FakeKms, keys_dir: KeySet, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Outcome]:
    """All of them side by side: each takes seconds of waiting."""
    return run_outages(gcp, keys_dir, tmp_path_factory.mktemp("gcp-outages"), "outages")


@pytest.mark.parametrize("name", NAMES)
def test_reads_go_on_to_the_leases_end_and_not_after(outcomes: Mapping[str, Outcome], name: str) -> None:
    assert_bound(outcomes[name], TTL_S)


@pytest.mark.parametrize("name", NAMES)
def test_reads_work_again_by_themselves(outcomes: Mapping[str, Outcome], name: str) -> None:
    assert_again(outcomes[name])


# What is said.


def test_a_mount_s_whole_life_at_debug_level_says_nothing_secret(
    gcp: FakeKms, keys_dir: KeySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    leased = Leased(gcp, keys_dir, tmp_path / "model", "secrets")
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
