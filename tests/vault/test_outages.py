"""A mounted model through every outage of its Vault: it serves to the lease's end, is dark after it, and serves again by itself."""

from collections.abc import Mapping

import pytest

from tests.helpers import KeySet
from tests.leases.outages import assert_again, assert_bound
from tests.leases.watching import Outcome
from tests.vault.outages import NAMES, run_outages
from tests.vault.server import Server


@pytest.fixture(scope="module")
def outcomes(server: Server, keys_dir: KeySet, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Outcome]:
    """All of them side by side: each takes seconds of waiting."""
    return run_outages(server, keys_dir, tmp_path_factory.mktemp("outages"))


@pytest.mark.parametrize("name", NAMES)
def test_reads_go_on_to_the_leases_end_and_not_after(outcomes: Mapping[str, Outcome], name: str) -> None:
    assert_bound(outcomes[name])


@pytest.mark.parametrize("name", NAMES)
def test_reads_work_again_by_themselves(outcomes: Mapping[str, Outcome], name: str) -> None:
    assert_again(outcomes[name])
