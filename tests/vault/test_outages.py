"""A mounted model through every outage of its key service: it serves to the lease's end, is dark after it, and serves again by itself."""

import errno
from collections.abc import Mapping

import pytest

from tests.helpers import KeySet
from tests.vault.leased import Outcome
from tests.vault.outages import NAMES, TTL_S, run_outages
from tests.vault.server import Server


@pytest.fixture(scope="module")
def outcomes(server: Server, keys_dir: KeySet, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Outcome]:
    """All of them side by side: each takes seconds of waiting."""
    return run_outages(server, keys_dir, tmp_path_factory.mktemp("outages"))


@pytest.mark.parametrize("name", NAMES)
def test_reads_go_on_to_the_leases_end_and_not_after(outcomes: Mapping[str, Outcome], name: str) -> None:
    outcome = outcomes[name]
    earliest, latest = outcome.lease_end
    assert outcome.began < earliest
    assert latest - earliest < 0.5, "the end is not known well enough to say anything"
    assert earliest <= outcome.began + TTL_S, "a proof after the server was gone has counted"
    good, dark = outcome.good(), outcome.dark()
    assert {sample.errno for sample in dark} == {errno.EKEYEXPIRED}
    assert dark[0].ended >= earliest, "an outage must not end a lease that still runs"
    assert len(good) > 20
    assert good[-1].started <= latest, "plaintext after the lease's end"
    assert dark[0].started <= latest + 2.0, "the bound of the design"
    assert len(dark) > 20
    assert dark[-1].ended > latest + 1.0


@pytest.mark.parametrize("name", NAMES)
def test_reads_work_again_by_themselves(outcomes: Mapping[str, Outcome], name: str) -> None:
    """Through the descriptor that was open all the time, in the same mount."""
    outcome = outcomes[name]
    assert len(outcome.again()) > 10
    assert outcome.samples[-1].errno is None
    assert outcome.dark()[-1].ended < outcome.again()[0].ended, "it went dark a second time"
    assert outcome.state == "serving"
    assert set(outcome.audited) == {"renewal failed", "locked", "unlock"}, "an outage is no denial"
    assert [outcome.audited.count(event) for event in ("locked", "unlock")] == [1, 1]
