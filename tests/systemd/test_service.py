"""modelfs@.service under a real systemd: its life, its faults, and what other units see of it."""

import hashlib
import os
import signal
from collections.abc import Callable

import pytest

from tests.systemd.conftest import MODELS, PLAIN, Holder, Host, wait_for
from tests.systemd.machine import Machine

SUM = hashlib.sha256(PLAIN).hexdigest()


def monotonic(machine: Machine, unit: str, name: str) -> int:
    return int(machine.show(unit, name)[name])


def test_boot_order(machine: Machine) -> None:
    """Enabled and started at boot: mount first, ready; then the server, an ordinary user in a mount namespace of its own, reads it."""
    machine.wait("boot.service", ActiveState="active")
    ready = monotonic(machine, "modelfs@boot.service", "ActiveEnterTimestampMonotonic")
    assert 0 < ready <= monotonic(machine, "boot.service", "ExecMainStartTimestampMonotonic")
    assert ready <= monotonic(machine, "modelfs.target", "ActiveEnterTimestampMonotonic")
    wait_for(lambda: machine.run("cat", "/run/boot/sum").stdout.startswith(SUM), "the server never read the model")


def test_a_credential_is_used_and_only_roots(machine: Machine) -> None:
    machine.wait("modelfs@boot.service", ActiveState="active")
    assert machine.run("ls", "/run/credentials/modelfs@boot.service").stdout == "kek\n", "only those that are in the store"
    denied = machine.run("setpriv", "--reuid=nobody", "--clear-groups", "cat", "/run/credentials/modelfs@boot.service/kek", check=False)
    assert denied.returncode != 0


def test_the_mount_keeps_out_who_is_not_in_the_group(machine: Machine) -> None:
    machine.wait("modelfs@boot.service", ActiveState="active")
    denied = machine.run("setpriv", "--reuid=nobody", "--clear-groups", "cat", f"{MODELS}/boot/model.bin", check=False)
    assert "Permission denied" in denied.stderr


def test_start_status_stop(host: Host, hold: Callable[[str], Holder]) -> None:
    machine, unit = host.machine, host.instance("plain")
    machine.systemctl("start", unit)
    assert machine.run("sha256sum", f"{MODELS}/plain/model.bin").stdout.startswith(SUM), "active, and not readable"
    shown = machine.show(unit, "StatusText", "ActiveState", "NotifyAccess", "Type")
    assert shown["StatusText"] == f"demo release 1 at {MODELS}/plain, 2 workers, lease granted"
    reader = hold("plain")
    assert reader.before["resident"] == len(PLAIN)
    machine.systemctl("stop", unit)
    assert machine.show(unit, "Result", "ActiveState") == {"Result": "success", "ActiveState": "inactive"}
    after = reader.finish()
    assert (after["resident"], after["touch"]) == (0, "SIGBUS")
    assert not host.is_mounted("plain")
    assert "plaintext left in the page cache: 0 bytes" in machine.journal(unit)


def test_reload_asks_the_key_service_now(host: Host) -> None:
    machine, unit = host.machine, host.instance("reload", renew_every=3000, ttl=4000)
    machine.systemctl("start", unit)
    before = machine.main_pid(unit)
    grants = machine.journal(unit).count("lease granted after granted")
    machine.systemctl("reload", unit)
    assert machine.journal(unit).count("lease granted after granted") == grants + 1
    assert machine.main_pid(unit) == before


def test_restart(host: Host) -> None:
    machine, unit = host.machine, host.instance("again")
    machine.systemctl("start", unit)
    before = machine.main_pid(unit)
    machine.systemctl("restart", unit)
    assert machine.main_pid(unit) != before
    assert machine.run("sha256sum", f"{MODELS}/again/model.bin").stdout.startswith(SUM)


def test_unmounting_by_hand_is_a_stop(host: Host) -> None:
    machine, unit = host.machine, host.instance("byhand")
    machine.systemctl("start", unit)
    machine.run("modelfs", "unmount", f"{MODELS}/byhand")
    machine.wait(unit, ActiveState="inactive", Result="success", NRestarts="0")


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
    assert mount_table(host).count(f" {MODELS}/killed ") == 1


def parent(pid: int) -> int:
    with open(f"/proc/{pid}/stat") as file:
        return int(file.read().rpartition(")")[2].split()[1])


def mount_table(host: Host) -> str:
    with open(f"/proc/{host.machine.pid}/mounts") as file:
        return file.read()


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


def test_a_unit_that_was_there_before_sees_the_mount(host: Host) -> None:
    """Also from a mount namespace of its own: the daemon's is the host's, and mounts propagate from there."""
    machine, unit = host.machine, host.instance("seen", allow_other="true")
    look = "until [ -s /models/seen/model.bin ]; do sleep 0.05; done; sha256sum </models/seen/model.bin >/run/seen-sum"
    machine.write(
        "/etc/systemd/system/before.service", f"[Service]\nType=oneshot\nProtectHome=yes\nPrivateTmp=yes\nExecStart=/bin/sh -c '{look}'\n"
    )
    host.made.append("before.service")
    machine.systemctl("daemon-reload")
    machine.systemctl("start", "--no-block", "before.service")
    machine.wait("before.service", SubState="start")
    machine.systemctl("start", unit)
    machine.wait("before.service", ActiveState="inactive", Result="success")
    assert machine.run("cat", "/run/seen-sum").stdout.startswith(SUM)
