"""One booted machine for all tests of this directory: systemd, the installed units, a mount `boot` and a server that needs it."""

import hashlib
import os
import random
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.helpers import MODEL, KeySet, seal, write_tree
from tests.mount import reader
from tests.mount.conftest import Program, mount
from tests.systemd.machine import Machine
from tests.vault.fixtures import server

__all__ = ["mount", "server"]

PLAIN = random.Random(7).randbytes(8 << 20)
SUM = hashlib.sha256(PLAIN).hexdigest()
MODELS = "/models"

AT_BOOT = ("modelfs@boot.service", "modelfs.target", "boot.service")

SERVER = """
[Service]
# Reads as an ordinary user, and from a mount namespace of its own.
User=daemon
PrivateTmp=yes
ExecStart=/bin/sh -c 'sha256sum </models/%N/model.bin >/run/%N/sum && exec sleep infinity'
RuntimeDirectory=%N
Restart=on-failure
"""
DROP_IN = """
[Unit]
BindsTo=modelfs@%N.service
After=modelfs@%N.service
[Service]
SupplementaryGroups=modelfs
"""

PREPARE = """
$MODELFS install-service --root "$ROOT"
# As an operator would have it: configuration, a KEK as a credential, a server with a drop-in; both are started at boot.
install -D -m 600 {keys}/kek "$ROOT/etc/credstore/modelfs.boot.kek"
mkdir -p "$ROOT/models/boot" "$ROOT/etc/systemd/system/boot.service.d" "$ROOT/etc/systemd/system/modelfs@boot.service.d"
printf '[Service]\\nRestartSec=100ms\\n' >"$ROOT/etc/systemd/system/modelfs@boot.service.d/test.conf"
gid=$(awk -F: '$1 == "modelfs" {{print $3}}' "$ROOT/etc/group")
cat >"$ROOT/etc/modelfs/boot.toml" <<END
{config}
kek = "file:/run/credentials/modelfs@boot.service/kek"
allow_other = true
gid = $gid
mode = "0440"
renew_every = 3000
ttl = 3600
END
cat >"$ROOT/etc/systemd/system/boot.service" <<END
{server}
END
cat >"$ROOT/etc/systemd/system/boot.service.d/modelfs.conf" <<END
{drop_in}
END
systemctl --root="$ROOT" enable --quiet modelfs@boot.service
systemctl --root="$ROOT" add-wants --quiet modelfs@boot.service boot.service
"""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The booted machine needs root and /dev/fuse; where CI has neither, that is a failure and not a skip."""
    missing = not os.path.exists("/dev/fuse") or os.geteuid() != 0
    for item in items:
        if "tests/systemd" in str(item.path) and missing and not os.environ.get("CI"):
            item.add_marker(pytest.mark.skip(reason="needs root and /dev/fuse"))


def configuration(name: str, sealed: Path, keys: KeySet, options: Mapping[str, object]) -> str:
    """A mount's configuration; `options` are TOML values."""
    fields: dict[str, object] = {
        "sealed": f'"{sealed}"',
        "mountpoint": f'"{MODELS}/{name}"',
        "model": f'"{MODEL}"',
        "trust": f'["{keys.public}"]',
        "workers": 2,
        **options,
    }
    return "".join(f"{key} = {value}\n" for key, value in fields.items())


class Host:
    """The machine, and instances of the unit in it."""

    def __init__(self, machine: Machine, sealed: Path, keys: KeySet) -> None:
        self.machine = machine
        self.sealed = sealed
        self.keys = keys
        self.made: list[str] = []

    def instance(self, name: str, *, unit: str = "", **options: object) -> str:
        """Configure a mount; the unit's name. It is not started.

        Args:
            name: Of the instance.
            unit: A drop-in for it.
            options: Further lines of its configuration, as TOML values.
        """
        text = configuration(name, self.sealed, self.keys, {"kek": f'"file:{self.keys.kek}"', **options})
        self.machine.write(f"/etc/modelfs/{name}.toml", text)
        (self.machine.root / "models" / name).mkdir(parents=True, exist_ok=True)
        self.made.append(f"modelfs@{name}.service")
        self.machine.write(f"/etc/systemd/system/modelfs@{name}.service.d/test.conf", f"[Service]\nRestartSec=100ms\n{unit}", 0o644)
        self.machine.systemctl("daemon-reload")
        return self.made[-1]

    def server(self, name: str) -> str:
        """A server that needs the mount of the same name and comes back with it; the unit's name."""
        self.machine.write(f"/etc/systemd/system/{name}.service", SERVER, 0o644)
        self.machine.write(f"/etc/systemd/system/{name}.service.d/modelfs.conf", DROP_IN, 0o644)
        self.made.append(f"{name}.service")
        self.machine.systemctl("daemon-reload")
        self.machine.systemctl("add-wants", "--quiet", f"modelfs@{name}.service", f"{name}.service")
        return self.made[-1]

    def wait_for_read(self, server: str) -> None:
        """Until a server has read its model, and right."""
        path = f"/run/{server}/sum"
        wait_for(
            lambda: self.machine.run("cat", path, check=False).stdout.startswith(SUM), lambda: self.machine.journal(f"{server}.service")
        )

    def is_mounted(self, name: str) -> bool:
        """In the machine's mount table; daemon is asked."""
        lines = Path(f"/proc/{self.machine.pid}/mounts").read_text().splitlines()
        return any(line.split()[1] == f"{MODELS}/{name}" for line in lines)

    def cleanup(self) -> None:
        """Stop what a test has made, and see that nothing is left of it."""
        for unit in reversed(self.made):
            self.machine.systemctl("stop", unit, check=False)
            self.machine.systemctl("reset-failed", unit, check=False)
        for unit in self.made:
            assert not self.machine.pids(unit), f"{unit} left processes"
            name = unit.removesuffix(".service").rpartition("@")[2]
            assert not self.is_mounted(name), f"{unit} left its mount"
        self.made.clear()


@pytest.fixture(scope="session")
def sealed_model(tmp_path_factory: pytest.TempPathFactory, keys_dir: KeySet) -> Path:
    base = tmp_path_factory.mktemp("sealed")
    seal(keys_dir, write_tree(base / "source", {"model.bin": PLAIN}), base / "sealed", block_size=131072)
    return base / "sealed"


@pytest.fixture(scope="session")
def machine(tmp_path_factory: pytest.TempPathFactory, sealed_model: Path, keys_dir: KeySet) -> Iterator[Machine]:
    """The booted machine, with everything enabled before its boot."""
    found = Machine(tmp_path_factory.mktemp("machine"), tmp_path_factory.getbasetemp())
    config = configuration("boot", sealed_model, keys_dir, {})
    found.boot(PREPARE.format(config=config, keys=keys_dir.directory, server=SERVER.strip(), drop_in=DROP_IN.strip()))
    try:
        for unit in AT_BOOT:
            found.wait(unit, ActiveState="active")
            found.at_boot[unit] = monotonic(found, unit, "ActiveEnterTimestampMonotonic")
        yield found
    finally:
        found.stop()


@pytest.fixture
def host(machine: Machine, sealed_model: Path, keys_dir: KeySet) -> Iterator[Host]:
    """Makes instances; everything a test has made is stopped after it, and must be gone then."""
    found = Host(machine, sealed_model, keys_dir)
    yield found
    found.cleanup()


class Holder(Program):
    """A reader in the machine, outside of every unit, that holds a file open and mapped (tests/mount/reader.py)."""

    def __init__(self, machine: Machine, path: str) -> None:
        command = machine.command(sys.executable, reader.__file__, "hold", path)
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.before = self.line()


@pytest.fixture
def hold(machine: Machine) -> Iterator[Callable[[str], Holder]]:
    """Starts holders; kills what is left of them."""
    started: list[Holder] = []

    def start(name: str) -> Holder:
        started.append(Holder(machine, f"{MODELS}/{name}/model.bin"))
        return started[-1]

    yield start
    for each in started:
        each.kill()


def wait_for(condition: Callable[[], bool], what: str | Callable[[], str], seconds: float = 60) -> None:
    """Poll; fail when it does not come true."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, what if isinstance(what, str) else what()
        time.sleep(0.02)


def monotonic(machine: Machine, unit: str, name: str) -> int:
    """One of a unit's timestamps, microseconds."""
    return int(machine.show(unit, name)[name])
