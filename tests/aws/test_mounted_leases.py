"""A mounted model whose key is in AWS KMS: a denial ends it within the bound, an outage darkens it from the lease's end to its own."""

import contextlib
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.aws.emulators import Emulator, use
from tests.aws.leased import DENIALS, Leased
from tests.aws.outages import ALARMS, NAMES, TTL_S, run_outages
from tests.helpers import KeySet
from tests.leases.denials import end_by_denial
from tests.leases.outages import assert_again, assert_bound
from tests.leases.watching import FILE, PLAIN, RENEW_S, Outcome, status
from tests.mount.conftest import Mounted, Program, wait_until


@pytest.mark.parametrize("name", DENIALS)
def test_a_denial_ends_everything_within_the_bound(
    request: pytest.FixtureRequest,
    authority: Any,
    keys_dir: KeySet,
    mount: Callable[..., Mounted],
    program: Callable[..., Program],
    tmp_path: Path,
    name: str,
) -> None:
    denial = DENIALS[name]
    emulator: Emulator = request.getfixturevalue(denial.emulator)
    leased = Leased(emulator, authority, keys_dir, tmp_path)
    with contextlib.ExitStack() as stack:
        stack.callback(leased.close)
        wanted = leased.wanted(reference=leased.alias if denial.by_alias else "")
        mounted = mount(wanted.sealed, *wanted.options, "--audit", tmp_path / "audit", environment=wanted.environment)
        assert (mounted.path / FILE).read_bytes() == PLAIN
        end_by_denial(mounted, program, lambda: denial.act(leased, stack), denial.reason, tmp_path / "audit")


@pytest.fixture(scope="module")
def outcomes(ministack: Emulator, authority: Any, keys_dir: KeySet, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Outcome]:
    """All of them side by side: each takes seconds of waiting."""
    return run_outages(ministack, authority, keys_dir, tmp_path_factory.mktemp("outages"))


@pytest.mark.parametrize("name", NAMES)
def test_reads_go_on_to_the_leases_end_and_not_after(outcomes: Mapping[str, Outcome], name: str) -> None:
    assert_bound(outcomes[name], TTL_S)


@pytest.mark.parametrize("name", NAMES)
def test_reads_work_again_by_themselves(outcomes: Mapping[str, Outcome], name: str) -> None:
    assert_again(outcomes[name])


@pytest.mark.parametrize("name", NAMES)
def test_wrong_bytes_raise_an_alarm_and_nothing_else_does(outcomes: Mapping[str, Outcome], name: str) -> None:
    assert outcomes[name].reasons
    assert any("ALARM" in reason for reason in outcomes[name].reasons) == (name in ALARMS), outcomes[name].reasons


def test_all_that_a_host_is_told_may_be_in_its_home_directory(
    ministack: Emulator, authority: Any, keys_dir: KeySet, mount: Callable[..., Mounted], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A prover is confined, and still reads ~/.aws: profile, region, authorities, endpoint, and credentials by a program of its own."""
    leased = Leased(ministack, authority, keys_dir, tmp_path)
    use(monkeypatch, {"HOME": str(tmp_path / "home"), "AWS_PROFILE": "models"})
    home = tmp_path / "home"
    (home / ".aws").mkdir(parents=True)
    helper = home / "helper"
    fields = {"AccessKeyId": "ASIAHOME", "SecretAccessKey": "secret", "SessionToken": "token", "Expiration": "2099-01-01T00:00:00Z"}
    helper.write_text(f"#!/bin/sh\necho x >> {home}/calls\necho '{json.dumps({'Version': 1, **fields})}'\n")
    helper.chmod(0o700)
    (home / ".aws" / "config").write_text(
        f"[profile models]\nregion = eu-central-1\nca_bundle = {authority.path}\nservices = here\ncredential_process = {helper}\n"
        f"[services here]\nkms =\n  endpoint_url = {leased.switch.address}\n"
    )
    try:
        options = [*leased.wanted(reference=leased.alias).options, "--audit", tmp_path / "audit"]
        mounted = mount(leased.sealed, *options)
        granted = time.monotonic()
        time.sleep(3 * RENEW_S)
        wait_until(lambda: status(mounted)["last_granted_s_ago"] < time.monotonic() - granted, 20, "a proof after the first")
        assert (mounted.path / FILE).read_bytes() == PLAIN
        assert (home / "calls").read_text() == "x\n", "temporary credentials are asked for once"
        assert mounted.unmount()["resident_bytes"] == 0
    finally:
        leased.close()
