"""Faults under a real systemd: whoever dies or hangs, the mount is evicted and comes back, and no dead mountpoint is left."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.systemd.conftest import MODELS, PLAIN, SUM, Holder, Host, monotonic, wait_for

WATCHDOG = "WatchdogSec=3\n"


def test_watchdog(host: Host, hold: Callable[[str], Holder]) -> None:
    """A control process that is stopped: systemd ends it, its warden evicts and detaches, the unit comes back."""
    machine, unit = host.machine, host.instance("dog", unit=WATCHDOG)
    machine.systemctl("start", unit)
    before, reader = machine.main_pid(unit), hold("dog")
    assert reader.before["resident"] == len(PLAIN)
    os.kill(before, signal.SIGSTOP)
    machine.wait(unit, ActiveState="active", SubState="running", NRestarts="1")
    assert "Watchdog timeout" in machine.journal(unit)
    assert machine.main_pid(unit) != before
    after = reader.finish()
    assert (after["resident"], after["touch"]) == (0, "SIGBUS")
    assert machine.run("sha256sum", f"{MODELS}/dog/model.bin").stdout.startswith(SUM), "no stuck mountpoint"


def test_a_locked_mount_is_no_watchdog_failure(host: Host) -> None:
    machine, unit = host.machine, host.instance("locked", unit=WATCHDOG)
    machine.systemctl("start", unit)
    before = machine.main_pid(unit)
    machine.run("modelfs", "lock", f"{MODELS}/locked")
    since = monotonic(machine, unit, "WatchdogTimestampMonotonic")
    wait_for(lambda: monotonic(machine, unit, "WatchdogTimestampMonotonic") > since + 4_000_000, "not fed for two watchdogs' time")
    assert machine.main_pid(unit) == before
    assert "lease paused" in machine.show(unit, "StatusText")["StatusText"]
    assert machine.systemctl("reload", unit, check=False).returncode != 0, "an operator's lock stays"
    machine.run("modelfs", "unlock", f"{MODELS}/locked")
    assert machine.run("sha256sum", f"{MODELS}/locked/model.bin").stdout.startswith(SUM)


@pytest.mark.parametrize("victim", ["control", "warden", "all"])
def test_killed(host: Host, hold: Callable[[str], Holder], victim: str) -> None:
    """SIGKILL of control or warden: evicted by the other; of all at once: not, but never a stuck mountpoint."""
    machine, unit = host.machine, host.instance("killed")
    machine.systemctl("start", unit)
    control, reader = machine.main_pid(unit), hold("killed")
    warden = next(pid for pid in machine.pids(unit) if parent(pid) == control)
    assert reader.before["resident"] == len(PLAIN)
    if victim == "all":
        machine.systemctl("kill", "--signal=KILL", unit)
    else:
        os.kill(control if victim == "control" else warden, signal.SIGKILL)
    machine.wait(unit, ActiveState="active", SubState="running", NRestarts="1")
    after = reader.finish()
    if victim != "all":
        assert (after["resident"], after["touch"]) == (0, "SIGBUS"), machine.journal(unit)
    assert machine.run("sha256sum", f"{MODELS}/killed/model.bin").stdout.startswith(SUM)
    table = Path(f"/proc/{machine.pid}/mounts").read_text()
    assert table.count(f" {MODELS}/killed ") == 1, "a dead mount below the new one"


def parent(pid: int) -> int:
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])


def test_a_stopped_warden_is_replaced_in_order(host: Host, hold: Callable[[str], Holder]) -> None:
    """Control notices before the watchdog does, ends the warden and takes the mount down itself."""
    machine, unit = host.machine, host.instance("stopped", unit=WATCHDOG)
    machine.systemctl("start", unit)
    control, reader = machine.main_pid(unit), hold("stopped")
    os.kill(next(pid for pid in machine.pids(unit) if parent(pid) == control), signal.SIGSTOP)
    machine.wait(unit, ActiveState="active", SubState="running", NRestarts="1")
    after = reader.finish()
    assert (after["resident"], after["touch"]) == (0, "SIGBUS")
    assert machine.show(unit, "Result")["Result"] == "success"
    assert "the warden does not answer" in machine.journal(unit)
    assert "Watchdog timeout" not in machine.journal(unit)
