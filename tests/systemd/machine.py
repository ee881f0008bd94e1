"""This host's systemd, booted as PID 1 of namespaces of its own on a throw-away overlay of this host's root (boot.sh)."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from modelfs.control.process import is_running
from tests.helpers import REPOSITORY

BOOT_SECONDS = 30
PROGRAM = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(REPOSITORY)!r})
from modelfs.cli.app import main
main()
"""
"""`modelfs` as it would be installed, of this checkout."""

_CGROUP = """
mount -t cgroup2 none {place}
for attempt in $(seq 100); do
  find {place}/{name} -depth -type d -exec rmdir {{}} + 2>/dev/null
  [ -d {place}/{name} ] || exit 0
  sleep 0.05
done
exit 1
"""


class Machine:
    """A booted system. What tests write below `root` is gone afterwards."""

    def __init__(self, work: Path, shared: Path) -> None:
        self.work = work
        self._shared = shared
        self._name = f"modelfs-test-{os.getpid()}"
        self._process: subprocess.Popen[bytes] | None = None
        self.pid = 0
        self.at_boot: dict[str, int] = {}
        """When units became active, microseconds."""

    def boot(self, prepare: str) -> None:
        """Boot.

        Args:
            prepare: A shell script that is run before the boot, with $ROOT as the new root and $MODELFS as the program.
        """
        (self.work / "modelfs").write_text(PROGRAM)
        (self.work / "modelfs").chmod(0o755)
        script = self.work / "prepare.sh"
        exports = f"export ROOT=$1 MODELFS=$1/usr/local/bin/modelfs\ninstall -m 755 {self.work}/modelfs $ROOT/usr/local/bin/modelfs"
        script.write_text(f"#!/bin/sh\nset -eu\n{exports}\n{prepare}")
        script.chmod(0o755)
        binds = {str(Path(path).resolve()) for path in (REPOSITORY, sys.prefix, sys.base_prefix)}
        command = [str(Path(__file__).with_name("boot.sh")), str(self.work), str(self._shared), self._name, *sorted(binds - {"/", "/usr"})]
        with open(self.work / "boot.log", "wb") as log:
            self._process = subprocess.Popen(["unshare", "--mount", *command], stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            self._wait(lambda: (self.work / "pid").exists(), "the boot")
            self.pid = int((self.work / "pid").read_text())
            self._wait(lambda: self.run("systemctl", "is-system-running", check=False).stdout in ("running\n", "degraded\n"), "the boot")
        except BaseException:
            self.stop()
            raise

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + BOOT_SECONDS
        while not condition():
            assert self._process is not None
            is_over = self._process.poll() is not None or time.monotonic() > deadline
            assert not is_over, f"{what} failed:\n{(self.work / 'boot.log').read_text()}{self._journal()}"
            time.sleep(0.05)

    def _journal(self) -> str:
        return self.run("journalctl", "--no-pager", "--output=short-monotonic", check=False).stdout if self.pid else ""

    def stop(self) -> None:
        """End every process of it; its mounts, and everything written, go with them."""
        if self._process is not None:
            if self.pid:
                os.kill(self.pid, signal.SIGKILL)
            self._process.kill()
            self._process.wait(20)
        place = self.work / "cgroup"
        place.mkdir(exist_ok=True)
        script = _CGROUP.format(place=shlex.quote(str(place)), name=self._name)
        subprocess.run(["unshare", "--mount", "sh", "-c", script], check=True, timeout=30)

    @property
    def root(self) -> Path:
        """Its root directory, seen from here."""
        return Path(f"/proc/{self.pid}/root")

    def command(self, *command: object) -> list[str]:
        """The same command, in the machine."""
        enter = ["nsenter", f"--target={self.pid}", "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--root", "--wd"]
        return [*enter, *map(str, command)]

    def run(self, *command: object, check: bool = True, timeout: float = 60) -> subprocess.CompletedProcess[str]:
        """Run a command in the machine."""
        env = {"PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"}
        done = subprocess.run(self.command(*command), capture_output=True, text=True, timeout=timeout, check=False, env=env)
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def systemctl(self, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return self.run("systemctl", *arguments, check=check)

    def show(self, unit: str, *names: str) -> dict[str, str]:
        """Properties of a unit."""
        lines = self.systemctl("show", unit, f"--property={','.join(names)}").stdout.splitlines()
        return dict(line.split("=", 1) for line in lines)

    def is_in(self, unit: str, wanted: Mapping[str, str]) -> bool:
        return self.show(unit, *wanted) == wanted

    def wait(self, unit: str, seconds: float = 60, **wanted: str) -> None:
        """Until the properties of a unit are so."""
        deadline = time.monotonic() + seconds
        while not self.is_in(unit, wanted):
            assert time.monotonic() < deadline, f"{unit}: {self.show(unit, *wanted)}, wanted {wanted}\n{self.journal(unit)}"
            time.sleep(0.02)

    def main_pid(self, unit: str) -> int:
        """The main process, as this side counts."""
        inside = self.show(unit, "MainPID")["MainPID"]
        found = [pid for pid in self.pids(unit) if _inner_pid(pid) == inside]
        assert len(found) == 1, f"{unit} has no main process {inside}"
        return found[0]

    def pids(self, unit: str) -> list[int]:
        """Running processes in a unit's control group, as this side counts."""
        name = f"/{unit}"
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdecimal()]
        return [pid for pid in pids if any(line.endswith(name) for line in _control_group(pid)) and is_running(pid)]

    def journal(self, unit: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=short-monotonic", f"--unit={unit}").stdout

    def write(self, path: str, text: str | bytes, mode: int = 0o600) -> None:
        """Write a file of the machine."""
        target = self.root / path.lstrip("/")
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(text.encode() if isinstance(text, str) else text)
        target.chmod(mode)


def _control_group(pid: int) -> list[str]:
    try:
        return Path(f"/proc/{pid}/cgroup").read_text().splitlines()
    except OSError:
        return []


def _inner_pid(pid: int) -> str:
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return ""
    return next(line.split()[-1] for line in lines if line.startswith("NSpid:"))
