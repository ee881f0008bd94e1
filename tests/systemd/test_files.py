"""The unit files: verified, scored, complete in an installed package; and `modelfs install-service`, which puts them in place."""

import json
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers import REPOSITORY
from tests.mount.conftest import modelfs
from tests.systemd.machine import Machine

SOURCE = REPOSITORY / "systemd"
FILES = ["modelfs.sysusers.conf", "modelfs.target", "modelfs.tmpfiles.conf", "modelfs@.service"]
UNIT = "usr/local/lib/systemd/system/modelfs@.service"
MOUNT_NAMESPACE = {
    "PrivateTmp",
    "PrivateDevices",
    "PrivateMounts",
    "PrivateIPC",
    "PrivateUsers",
    "ProtectSystem",
    "ProtectHome",
    "ProtectKernelTunables",
    "ProtectKernelModules",
    "ProtectKernelLogs",
    "ProtectControlGroups",
    "ProtectProc",
    "ProcSubset",
    "ReadWritePaths",
    "ReadOnlyPaths",
    "InaccessiblePaths",
    "ExecPaths",
    "NoExecPaths",
    "BindPaths",
    "BindReadOnlyPaths",
    "TemporaryFileSystem",
    "RootDirectory",
    "RootImage",
    "MountImages",
    "ExtensionImages",
    "MountFlags",
    "DynamicUser",
    "LogNamespace",
}
"""Settings that make one, as systemd 252 to 257 have them."""


def settings(text: str) -> list[str]:
    return [line for line in text.splitlines() if line and line[0] not in "#["]


def test_nothing_gives_the_unit_a_mount_namespace() -> None:
    for path in (SOURCE / "modelfs@.service", SOURCE / "examples/unprivileged.conf"):
        names = {line.partition("=")[0] for line in settings(path.read_text())}
        assert len(names) > 10
        assert not names & MOUNT_NAMESPACE, path


def test_verify_is_silent(machine: Machine) -> None:
    """systemd-analyze exits with 0 whatever it finds: one printed line is a fault."""
    for unit in ("modelfs@boot.service", "modelfs.target"):
        done = machine.run("systemd-analyze", "verify", unit)
        assert done.stdout + done.stderr == "", done
    machine.write("/etc/systemd/system/planted.service", "[Service]\nExecStart=/bin/true\nWatchdogSecs=3\n")
    assert "WatchdogSecs" in machine.run("systemd-analyze", "verify", "planted.service").stderr


@pytest.mark.parametrize(
    ("example", "unit", "program"),
    [
        ("vllm", "vllm.service", "/opt/vllm/bin/vllm"),
        ("llama-cpp", "llama-server.service", "/usr/local/bin/llama-server"),
        ("encrypted-credentials", "modelfs@llama.service", ""),
        ("unprivileged", "modelfs@llama.service", ""),
    ],
)
def test_examples_verify(machine: Machine, example: str, unit: str, program: str) -> None:
    text = (SOURCE / f"examples/{example}.conf").read_text()
    assert f"/etc/systemd/system/{unit}.d/" in text, "the example says where it goes"
    if program:
        machine.write(program, "#!/bin/sh\n", 0o755)
        machine.write(f"/etc/systemd/system/{unit}", f"[Service]\nExecStart={program}\n", 0o644)
    machine.write(f"/etc/systemd/system/{unit}.d/example.conf", text, 0o644)
    try:
        done = machine.run("systemd-analyze", "verify", unit)
        assert done.stdout + done.stderr == ""
    finally:
        machine.run("rm", "-r", f"/etc/systemd/system/{unit}.d")


def exposures(unit: Path) -> dict[str, float]:
    """What systemd-analyze finds wanting, and how much each weighs."""
    command = ["systemd-analyze", "security", "--offline=yes", "--json=short", unit]
    rows = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return {row["name"]: float(row["exposure"]) for row in rows if row["set"] is False and row["exposure"]}


def test_security_is_five_or_better_and_every_exposure_has_its_reason(tmp_path: Path) -> None:
    unit = tmp_path / "modelfs@x.service"
    shutil.copy(SOURCE / "modelfs@.service", unit)
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=50", unit], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-300:]
    left = exposures(unit)
    assert left
    text = (REPOSITORY / "docs/SYSTEMD.md").read_text()
    explained = {row.replace("\\|", "|") for row in re.findall(r"^\| `(.+?)` \|", text[text.index("## Hardening") :], re.MULTILINE)}
    assert explained == set(left)
    score = re.search(r"exposure level[^:]*: ([\d.]+)", done.stdout)
    assert score
    assert f"scores {score[1]}" in text


def test_an_installed_package_has_the_files(tmp_path: Path) -> None:
    """A wheel, built from a copy of this checkout."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for name in ("modelfs", "systemd"):
        shutil.copytree(REPOSITORY / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, copy)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, copy]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (wheel,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        for source in [path for path in SOURCE.rglob("*") if path.is_file()]:
            assert archive.read(f"modelfs/cli/units/{source.relative_to(SOURCE)}") == source.read_bytes()
    assert sorted(path.name for path in SOURCE.iterdir() if path.is_file()) == FILES


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "root" / "etc").mkdir(parents=True)
    return tmp_path / "root"


def install(root: Path, *options: str) -> "subprocess.CompletedProcess[str]":
    return modelfs("install-service", "--root", root, *options)


def test_install_and_remove(root: Path) -> None:
    done = install(root)
    assert done.returncode == 0, done.stderr
    text = (root / UNIT).read_text()
    assert len(done.stdout.splitlines()) == len(FILES)
    assert "/usr/bin/modelfs" not in text, "the unit starts this program, wherever it is"
    assert text.count(f"{sys.executable} -m modelfs ") == 4
    assert (root / "etc/systemd/system/multi-user.target.wants/modelfs.target").is_symlink()
    assert (root / "etc/modelfs").stat().st_mode & 0o777 == 0o750
    assert re.search(r"^modelfs:", (root / "etc/passwd").read_text(), re.MULTILINE)
    assert install(root).returncode == 0, "again changes nothing"
    assert (root / UNIT).read_text() == text
    done = install(root, "--remove")
    assert done.returncode == 0, done.stderr
    assert not [path for path in root.rglob("*modelfs*") if not path.is_dir()]
    assert (root / "etc/modelfs").is_dir(), "configuration stays"
    assert install(root, "--remove").returncode == 0, "nothing to do"


def test_an_older_version_s_file_is_replaced(root: Path) -> None:
    from modelfs.cli.service import _digest

    install(root)
    old = "[Unit]\nDescription=as an older version had it\n"
    (root / UNIT).write_text(f"# Installed by modelfs; sha256 of what follows: {_digest(old)}\n{old}")
    assert install(root).returncode == 0
    assert "older version" not in (root / UNIT).read_text()


@pytest.mark.parametrize("option", [(), ("--remove",)])
def test_an_operator_s_change_is_kept_unless_forced(root: Path, option: tuple[str, ...]) -> None:
    install(root)
    others = root / "usr/local/lib/tmpfiles.d/modelfs.conf"
    (root / UNIT).write_text((root / UNIT).read_text().replace("WatchdogSec=60", "WatchdogSec=600"))
    before = others.read_text()
    done = install(root, *option)
    assert done.returncode == 2
    assert str(root / UNIT) in done.stderr
    assert done.stderr.count("\n") == 1
    assert "WatchdogSec=600" in (root / UNIT).read_text()
    assert others.read_text() == before, "all or nothing"
    done = install(root, *option, "--force")
    assert done.returncode == 0, done.stderr
    assert "was changed by somebody" in done.stderr
    assert not (root / UNIT).exists() or "WatchdogSec=60\n" in (root / UNIT).read_text()


def test_an_enabled_instance_keeps_the_units(root: Path) -> None:
    install(root)
    subprocess.run(["systemctl", f"--root={root}", "--quiet", "enable", "modelfs@llama.service"], check=True)
    done = install(root, "--remove")
    assert done.returncode == 2
    assert "modelfs@llama.service" in done.stderr
    assert (root / UNIT).exists()


def test_refusals_are_one_sentence(root: Path) -> None:
    done = install(root / "nowhere")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


def test_in_a_running_system(machine: Machine) -> None:
    """Removal is refused while a mount runs; afterwards systemd knows the unit no more; and installing starts from nothing."""
    machine.wait("boot.service", ActiveState="active")
    refused = machine.run("modelfs", "install-service", "--remove", check=False)
    assert refused.returncode == 2
    assert "systemctl disable --now modelfs@boot.service" in refused.stderr
    machine.systemctl("disable", "--now", "--quiet", "modelfs@boot.service")
    machine.run("modelfs", "install-service", "--remove")
    assert machine.systemctl("start", "modelfs@boot.service", check=False).returncode != 0
    assert machine.show("modelfs.target", "LoadState") == {"LoadState": "not-found"}
    machine.run("modelfs", "install-service")
    machine.systemctl("enable", "--now", "--quiet", "modelfs@boot.service")
    machine.wait("modelfs@boot.service", ActiveState="active")
    machine.wait("boot.service", ActiveState="active")
    user = machine.run("setpriv", "--reuid=daemon", "--clear-groups", "modelfs", "install-service", check=False)
    assert (user.returncode, user.stderr) == (2, "modelfs: installing a service needs root: run it with sudo\n")
