"""Reports of bad blocks: each once a minute, never a storm."""

import logging

import pytest

from modelfs.mount.faults import LINES_IN_WINDOW, WINDOW_S, FaultLog


def test_once_a_minute_for_each_fault(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    log = FaultLog(lambda: now)
    with caplog.at_level(logging.ERROR):
        for _ in range(100):
            log.report("block 1")
        log.report("block 2")
        assert len(caplog.records) == 2
        now = WINDOW_S
        log.report("block 1")
        assert len(caplog.records) == 3


def test_a_storm_is_cut_off_and_said_so(caplog: pytest.LogCaptureFixture) -> None:
    log = FaultLog(lambda: 0.0)
    with caplog.at_level(logging.ERROR):
        for block in range(1000):
            log.report(f"block {block}")
    assert len(caplog.records) == LINES_IN_WINDOW + 1
    assert "not logged for a minute" in caplog.records[-1].message
