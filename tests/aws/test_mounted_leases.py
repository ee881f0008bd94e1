"""A mounted model whose key is in AWS KMS: a denial ends it within the bound, an outage darkens it from the lease's end to its own."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.aws.emulators import Emulator
from tests.aws.leased import DENIALS, Leased
from tests.aws.outages import ALARMS, NAMES, run_outages
from tests.helpers import KeySet
from tests.leases.denials import end_by_denial
from tests.leases.outages import assert_again, assert_bound
from tests.leases.watching import FILE, PLAIN, Outcome
from tests.mount.conftest import Mounted, Program
from tests.mount.conftest import mount as mount  # noqa: PLC0414  a fixture
from tests.mount.conftest import program as program  # noqa: PLC0414  a fixture


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
    assert_bound(outcomes[name])


@pytest.mark.parametrize("name", NAMES)
def test_reads_work_again_by_themselves(outcomes: Mapping[str, Outcome], name: str) -> None:
    assert_again(outcomes[name])


@pytest.mark.parametrize("name", NAMES)
def test_wrong_bytes_raise_an_alarm_and_nothing_else_does(outcomes: Mapping[str, Outcome], name: str) -> None:
    assert outcomes[name].reasons
    assert any("ALARM" in reason for reason in outcomes[name].reasons) == (name in ALARMS), outcomes[name].reasons
