"""Faults under a real systemd: whoever dies or hangs, the mount is evicted and comes back, and no dead mountpoint is left."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY
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


STORE = f"""
[Service]
ExecStart={sys.executable} {REPOSITORY}/tests/mount/passthrough.py {{sealed}} /srv/hung
ExecStopPost=-umount -l /srv/hung
"""


def test_storage_that_hangs_is_no_watchdog_failure(host: Host) -> None:
    """Readers wait; status, watchdog and the unmount sequence do not."""
    machine, unit = host.machine, host.instance("hung", unit=WATCHDOG, sealed='"/srv/hung"')
    machine.write("/etc/systemd/system/store.service", STORE.format(sealed=host.sealed), 0o644)
    machine.run("mkdir", "-p", "/srv/hung")
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "store.service")
    wait_for(lambda: " /srv/hung " in Path(f"/proc/{machine.pid}/mounts").read_text(), "no storage")
    machine.systemctl("start", unit)
    storage = machine.main_pid("store.service")
    os.kill(storage, signal.SIGSTOP)
    try:
        readers = [subprocess.Popen(machine.command("cat", f"{MODELS}/hung/model.bin"), stdout=subprocess.DEVNULL) for _ in range(4)]
        since = monotonic(machine, unit, "WatchdogTimestampMonotonic")
        wait_for(lambda: monotonic(machine, unit, "WatchdogTimestampMonotonic") > since + 4_000_000, "not fed for a watchdog's time")
        assert all(reader.poll() is None for reader in readers), "they must hang, or the test shows nothing"
        assert machine.show(unit, "ActiveState", "NRestarts") == {"ActiveState": "active", "NRestarts": "0"}
        machine.systemctl("stop", unit)
        assert not host.is_mounted("hung")
        assert all(reader.wait(20) != 0 for reader in readers)
    finally:
        os.kill(storage, signal.SIGCONT)
        machine.systemctl("stop", "store.service")
    wait_for(lambda: not machine.pids(unit), "processes that waited for the storage did not end with its answer")


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


@pytest.mark.slow
def test_control_killed_while_the_warden_is_stopped(host: Host) -> None:
    """Nobody is left who could evict: what is left is ended after a minute, and the unit comes back."""
    machine, unit = host.machine, host.instance("nobody")
    machine.systemctl("start", unit)
    control = machine.main_pid(unit)
    warden = next(pid for pid in machine.pids(unit) if parent(pid) == control)
    os.kill(warden, signal.SIGSTOP)
    os.kill(control, signal.SIGKILL)
    machine.wait(unit, 120, ActiveState="active", SubState="running", NRestarts="1")
    assert "is left of the mount: ending it" in machine.journal(unit)
    assert machine.run("sha256sum", f"{MODELS}/nobody/model.bin").stdout.startswith(SUM)
