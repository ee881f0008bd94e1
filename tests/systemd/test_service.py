"""modelfs@.service under a real systemd: its life, the server that needs it, and what other units see of it."""

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from modelfs.control.process import is_running
from tests.helpers import REPOSITORY
from tests.systemd.conftest import AT_BOOT, MODELS, PLAIN, SUM, Holder, Host, monotonic, wait_for
from tests.systemd.machine import Machine

BOOT = "modelfs@boot.service"


def test_boot_order(host: Host) -> None:
    """Enabled and started at boot: mount first, ready; then the server, an ordinary user in a mount namespace of its own, reads it."""
    mount, target, reader = (host.machine.at_boot[unit] for unit in AT_BOOT)
    assert 0 < mount <= target
    assert mount <= reader
    host.machine.wait("boot.service", ActiveState="active")
    host.wait_for_read("boot")


def test_a_credential_is_used_and_only_roots(machine: Machine) -> None:
    machine.wait(BOOT, ActiveState="active")
    assert machine.run("ls", "/run/credentials/modelfs@boot.service").stdout == "kek\n", "only those that are in the store"
    denied = machine.run("setpriv", "--reuid=daemon", "--clear-groups", "cat", "/run/credentials/modelfs@boot.service/kek", check=False)
    assert denied.returncode != 0


def test_the_mount_keeps_out_who_is_not_in_the_group(machine: Machine) -> None:
    machine.wait(BOOT, ActiveState="active")
    denied = machine.run("setpriv", "--reuid=daemon", "--clear-groups", "cat", f"{MODELS}/boot/model.bin", check=False)
    assert "Permission denied" in denied.stderr


def test_start_status_stop(host: Host, hold: Callable[[str], Holder]) -> None:
    machine, unit = host.machine, host.instance("plain")
    machine.systemctl("start", unit)
    assert machine.run("sha256sum", f"{MODELS}/plain/model.bin").stdout.startswith(SUM), "active, and not readable"
    shown = machine.show(unit, "StatusText", "ActiveState", "NotifyAccess", "Type")
    assert shown["StatusText"] == f"demo release 1 at {MODELS}/plain, 2 workers, lease granted"
    status = json.loads(machine.run("modelfs", "status", f"{MODELS}/plain", "--json").stdout)
    assert status["not_confined"] == [], "the unit keeps the workers from confining themselves"
    reader = hold("plain")
    assert reader.before["resident"] == len(PLAIN)
    machine.systemctl("stop", unit)
    assert machine.show(unit, "Result", "ActiveState") == {"Result": "success", "ActiveState": "inactive"}
    after = reader.finish()
    assert (after["resident"], after["touch"]) == (0, "SIGBUS")
    assert not host.is_mounted("plain")
    journal = machine.journal(unit)
    assert f"taking {MODELS}/plain down: unmount" in journal, "by ExecStop, not by a signal"
    assert "plaintext left in the page cache: 0 bytes" in journal


def test_reload_asks_the_key_service_now(machine: Machine) -> None:
    before = machine.main_pid(BOOT)
    grants = machine.journal(BOOT).count("lease granted after granted")
    machine.systemctl("reload", BOOT)
    assert machine.journal(BOOT).count("lease granted after granted") == grants + 1, "nothing else asks within the hour"
    assert machine.main_pid(BOOT) == before


def test_a_restart_takes_the_server_along(machine: Machine) -> None:
    machine.wait("boot.service", ActiveState="active")
    before, server = machine.main_pid(BOOT), machine.main_pid("boot.service")
    machine.systemctl("restart", BOOT)
    machine.wait("boot.service", ActiveState="active")
    assert machine.main_pid(BOOT) != before
    assert machine.main_pid("boot.service") != server
    assert machine.run("sha256sum", f"{MODELS}/boot/model.bin").stdout.startswith(SUM)


def test_a_mount_that_is_lost_takes_the_server_along_and_brings_it_back(host: Host) -> None:
    machine = host.machine
    machine.wait("boot.service", ActiveState="active")
    server = machine.main_pid("boot.service")
    os.kill(machine.main_pid(BOOT), signal.SIGKILL)
    wait_for(lambda: not is_running(server), "the server outlived its mount")
    machine.wait(BOOT, ActiveState="active", SubState="running")
    machine.wait("boot.service", ActiveState="active")
    host.wait_for_read("boot")


def test_stopping_the_target_stops_the_server_first(host: Host) -> None:
    """And starting the server starts the mount and waits for it."""
    machine = host.machine
    machine.wait("boot.service", ActiveState="active")
    machine.systemctl("stop", "modelfs.target")
    machine.wait(BOOT, ActiveState="inactive", Result="success")
    assert machine.show("boot.service", "ActiveState") == {"ActiveState": "inactive"}
    assert monotonic(machine, "boot.service", "InactiveEnterTimestampMonotonic") <= monotonic(machine, BOOT, "ActiveExitTimestampMonotonic")
    machine.systemctl("start", "boot.service")
    assert machine.show(BOOT, "ActiveState") == {"ActiveState": "active"}
    host.wait_for_read("boot")


def test_unmounting_by_hand_is_a_stop(host: Host) -> None:
    machine, unit = host.machine, host.instance("byhand")
    machine.systemctl("start", unit)
    machine.run("modelfs", "unmount", f"{MODELS}/byhand")
    machine.wait(unit, ActiveState="inactive", Result="success", NRestarts="0")


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


def test_without_root(host: Host) -> None:
    """The drop-in examples/unprivileged.conf: an ordinary user, no capability, no process with more."""
    machine = host.machine
    for source, name in ((host.sealed, "sealed"), (host.keys.public, "trust.pub")):
        machine.run("cp", "-r", source, f"/srv/{name}")
        machine.run("chmod", "-R", "a+rX", f"/srv/{name}")
    machine.write("/etc/credstore/modelfs.user.kek", host.keys.kek.read_bytes())
    drop_in = (REPOSITORY / "systemd/examples/unprivileged.conf").read_text()
    options = {"sealed": '"/srv/sealed"', "trust": '["/srv/trust.pub"]', "kek": '"file:/run/credentials/modelfs@user.service/kek"'}
    unit = host.instance("user", unit=drop_in, **options)
    machine.run("chown", "modelfs", f"{MODELS}/user")
    machine.run("chown", "root:modelfs", "/etc/modelfs/user.toml")
    machine.run("chmod", "640", "/etc/modelfs/user.toml")
    machine.systemctl("start", unit)
    as_user = ["setpriv", "--reuid=modelfs", "--regid=modelfs", "--clear-groups"]
    assert machine.run(*as_user, "sha256sum", f"{MODELS}/user/model.bin").stdout.startswith(SUM)
    pids = machine.pids(unit)
    assert len(pids) == 4
    for pid in pids:
        status = dict(line.split(":\t", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        assert int(status["CapEff"], 16) == 0
        assert set(status["Uid"].split()) == {machine.run("id", "-u", "modelfs").stdout.strip()}
    before = machine.main_pid(unit)
    os.kill(before, signal.SIGKILL)
    machine.wait(unit, ActiveState="active", SubState="running", NRestarts="1")
    assert machine.run(*as_user, "sha256sum", f"{MODELS}/user/model.bin").stdout.startswith(SUM)
    machine.systemctl("stop", unit)
    assert machine.show(unit, "Result") == {"Result": "success"}
