"""What a denial does to a mounted model, whoever says it."""

import errno
import json
from collections.abc import Callable
from pathlib import Path

from modelfs.control.process import is_running
from modelfs.keys.vault_session import boottime
from tests.leases.watching import FILE, PLAIN, RENEW_S, Watcher, pause
from tests.mount.conftest import Mounted, Program, wait_until


def end_by_denial(mounted: Mounted, program: Callable[..., Program], deny: Callable[[], object], reason: str, audit: Path) -> float:
    """Deny, and see that everything ends within the bound: reads, mapped pages, page cache, processes.

    Args:
        mounted: With its audit log in `audit`.
        program: The fixture.
        deny: Has effect when it returns.
        reason: Part of what the audit log says.
        audit: See `mounted`.

    Returns:
        Seconds from the denial to the last good read.
    """
    reader = program("hold", mounted.path / FILE)
    assert reader.line()["resident"] >= len(PLAIN)
    pids = mounted.pids()
    with Watcher(mounted) as watcher:
        wait_until(watcher.is_good, 10, "a first read")
        deny()
        denied = boottime()
        wait_until(lambda: not mounted.is_attached(), RENEW_S + 2.0, "the end of the mount")
        wait_until(watcher.bad, 1, "a read that is refused")
    assert watcher.last_good().ended - denied <= RENEW_S + 2.0
    assert {sample.errno for sample in watcher.bad()} <= {errno.EKEYREVOKED, errno.ENOTCONN, errno.ECONNABORTED}
    after = reader.finish()
    assert (after["resident"], after["touch"]) == (0, "SIGBUS"), after
    assert after["read"] in ("EKEYREVOKED", "ENOTCONN", "ECONNABORTED"), after
    wait_until(lambda: not any(map(is_running, pids)), 10, "the end of every process")
    events = [json.loads(line) for line in audit.read_text().splitlines()]
    assert [event["event"] for event in events if event["event"] != "renewal failed"] == ["mount", "denied", "revoked"]
    assert all(reason in event["reason"] for event in events[-2:]), events[-2:]
    assert events[-1]["proof"]["resident_bytes"] == 0
    return watcher.last_good().ended - denied


def seconds_to_dark(mounted: Mounted, deny: Callable[[], object]) -> float:
    """From when `deny` has returned, the service having confirmed it, to the last good read."""
    with Watcher(mounted, pause_s=0.002) as watcher:
        wait_until(watcher.is_good, 10, "a first read")
        pause()
        deny()
        denied = boottime()
        wait_until(lambda: not mounted.is_attached(), 20, "the end of the mount")
    return watcher.last_good().ended - denied
