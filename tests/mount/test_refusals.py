"""What `modelfs mount` refuses: one sentence, the documented exit code, no mount, no process, nothing remembered."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from modelfs.control.socket import runtime_dir, socket_path
from modelfs.keys.file import generate_kek
from modelfs.mount.mountinfo import top_mount
from tests.conftest import SealedBuilder
from tests.helpers import MODEL, REPOSITORY, KeySet, Sealed, resign, seal
from tests.mount.conftest import Mounted, modelfs, mount_command, python_for_users, wait_until


@pytest.fixture
def model(sealed: SealedBuilder) -> Sealed:
    return sealed({"model.bin": b"weights" * 1000})


Change = Callable[[Sealed, list[object], Path], None]


def option(name: str, value: object) -> Change:
    """Replace the value of an option."""

    def change(model: Sealed, command: list[object], mountpoint: Path) -> None:
        command[command.index(name) + 1] = value

    return change


def extra(*options: object) -> Change:
    return lambda model, command, mountpoint: command.extend(options)


def kek_of(make: Callable[[Path], object]) -> Change:
    def change(model: Sealed, command: list[object], mountpoint: Path) -> None:
        path = mountpoint.parent / "other.kek"
        make(path)
        command[command.index("--kek") + 1] = f"file:{path}"

    return change


def open_kek_file(path: Path) -> None:
    generate_kek(path)
    path.chmod(0o644)


def expire(model: Sealed, command: list[object], mountpoint: Path) -> None:
    resign(model, lambda fields: fields.update(expires="2020-01-01T00:00:00Z"))


def stranger_trust(model: Sealed, command: list[object], mountpoint: Path) -> None:
    command[command.index("--trust") + 1] = model.keys.stranger_public


def private_trust(model: Sealed, command: list[object], mountpoint: Path) -> None:
    command[command.index("--trust") + 1] = model.keys.signing


def without_trust(model: Sealed, command: list[object], mountpoint: Path) -> None:
    at = command.index("--trust")
    del command[at : at + 2]


def two_of_two(model: Sealed, command: list[object], mountpoint: Path) -> None:
    command += ["--trust", model.keys.stranger_public, "--threshold", 2]


def same_key_twice(model: Sealed, command: list[object], mountpoint: Path) -> None:
    copy = mountpoint.parent / "copy.pub"
    shutil.copyfile(model.keys.public, copy)
    command += ["--trust", copy, "--threshold", 2]


def replace_file(name: str, content: bytes) -> Change:
    def change(model: Sealed, command: list[object], mountpoint: Path) -> None:
        for path in model.path.glob(name):
            path.write_bytes(content)

    return change


def occupied(model: Sealed, command: list[object], mountpoint: Path) -> None:
    (mountpoint / "something").touch()


def missing_mountpoint(model: Sealed, command: list[object], mountpoint: Path) -> None:
    mountpoint.rmdir()


def file_mountpoint(model: Sealed, command: list[object], mountpoint: Path) -> None:
    mountpoint.rmdir()
    mountpoint.touch()


def within_sealed(model: Sealed, command: list[object], mountpoint: Path) -> None:
    (model.path / "mnt").mkdir()
    command[2] = model.path / "mnt"


def foreign_keys(model: Sealed, command: list[object], mountpoint: Path) -> None:
    """Another model's wrapped key, for the same KEK, under this release's name."""
    seal(model.keys, model.source, mountpoint.parent / "other", model="other")
    (theirs,) = (mountpoint.parent / "other" / "keys").iterdir()
    (ours,) = (model.path / "keys").iterdir()
    shutil.copyfile(theirs, ours)


def unwritable_state(model: Sealed, command: list[object], mountpoint: Path) -> None:
    (mountpoint.parent / "file").touch()
    command[command.index("--state-dir") + 1] = mountpoint.parent / "file" / "state"
    command += ["--log", mountpoint.parent / "log"]


REFUSALS: dict[str, tuple[Change, int, str]] = {
    "foreign KEK": (kek_of(generate_kek), 5, "not wrapped for the KEK"),
    "missing KEK": (option("--kek", "file:/nonexistent/kek"), 5, "/nonexistent/kek"),
    "KEK open to others": (kek_of(open_kek_file), 5, "chmod 600"),
    "KEK of another size": (kek_of(lambda path: (path.write_bytes(b"short"), path.chmod(0o600))), 5, "32 bytes"),
    "unknown KEK scheme": (option("--kek", "nokms:x"), 2, "does not name a KEK"),
    "unknown KEK scheme of a second KEK": (extra("--kek", "nokms:x"), 2, "'nokms:x' does not name a KEK"),
    "one KEK twice": (extra("--kek", "file:/k", "--kek", "file:/k"), 2, "named twice"),
    "nine KEKs": (extra(*(part for number in range(8) for part in ("--kek", f"file:/{number}"))), 2, "9 KEKs are named"),
    "wrong trust key": (stranger_trust, 4, "signed by 0 of the trusted keys"),
    "private trust key": (private_trust, 2, "is a private key"),
    "no trust key": (without_trust, 2, "--trust"),
    "threshold not met": (two_of_two, 4, "needs 2"),
    "one key twice is not two": (same_key_twice, 2, "1 distinct"),
    "expired": (expire, 4, "expired at 2020-01-01"),
    "another model": (option("--model", "other"), 4, "is the model 'demo', not 'other'"),
    "no model name": (option("--model", "../x"), 2, "no model name"),
    "older than the minimum": (extra("--minimum-release", 2), 4, "older than the required 2"),
    "malformed manifest": (replace_file("manifest.json", b"{"), 3, "not a DSSE envelope"),
    "oversized manifest": (replace_file("manifest.json", bytes((64 << 20) + 1)), 3, "more than the limit"),
    "malformed keys": (replace_file("keys/*.json", b"[]"), 3, "is malformed"),
    "oversized keys": (replace_file("keys/*.json", bytes((1 << 20) + 1)), 3, "more than the limit"),
    "another model's keys": (foreign_keys, 5, "committed to"),
    "mountpoint not empty": (occupied, 2, "not empty"),
    "mountpoint missing": (missing_mountpoint, 2, "No such file"),
    "mountpoint a file": (file_mountpoint, 2, "not a directory"),
    "mountpoint in the sealed model": (within_sealed, 2, "lies in the sealed model"),
    "workers": (extra("--workers", "0"), 2, "no number of workers"),
    "mode": (extra("--mode", "rw"), 2, "no mode"),
    "state directory": (unwritable_state, 2, "--state-dir"),
}


@pytest.mark.parametrize("way", ["daemon", "foreground"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_refused_in_one_sentence(model: Sealed, tmp_path: Path, refusal: str, way: str) -> None:
    change, code, text = REFUSALS[refusal]
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    command = mount_command(model, mountpoint, tmp_path / "state")
    change(model, command, mountpoint)
    if way == "foreground":
        command.append("--foreground")
    done = modelfs(*command)
    assert done.returncode == code, done.stderr
    assert text in done.stderr
    assert "Traceback" not in done.stderr
    if way == "daemon":
        assert done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ""
    assert top_mount(os.fsencode(mountpoint)) is None
    assert not (tmp_path / "state" / f"{MODEL}.json").exists(), "a refused release must not be remembered"


def with_own_dev(setup: str, command: list[str], uid: int, base: Path) -> "subprocess.CompletedProcess[str]":
    """Run modelfs in a mount namespace whose /dev holds only what `setup` makes, as a user of our choice."""
    python, place = (sys.executable, "true") if uid == 0 else python_for_users(base)
    path = os.pathsep.join([str(REPOSITORY), *sys.path[1:]])
    script = (
        f"mount -t tmpfs -o mode=755 none /dev && mknod -m 666 /dev/null c 1 3 && mknod -m 666 /dev/urandom c 1 9 && {place} && {setup}"
    )
    user = f'exec setpriv --reuid={uid} --regid={uid} --clear-groups {python} -m modelfs "$@"'
    full = ["unshare", "-m", "sh", "-c", f"{script} && {user}", "sh", *command]
    env = {**os.environ, "PYTHONPATH": path}
    return subprocess.run(full, capture_output=True, text=True, check=False, timeout=60, env=env, cwd="/")


def test_a_missing_device_is_named(model: Sealed, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    command = [str(part) for part in mount_command(model, tmp_path / "mnt", tmp_path / "state")]
    done = with_own_dev("true", command, 0, tmp_path)
    assert done.returncode == 7, done.stderr
    assert "there is no /dev/fuse" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("setup", "text"),
    [
        ("mknod -m 600 /dev/fuse c 10 229", "no permission for /dev/fuse"),
        ("mknod -m 666 /dev/fuse c 10 229 && mount --bind /dev/null /usr/bin/fusermount3", "fusermount3"),
    ],
    ids=["device", "fusermount3"],
)
def test_a_user_is_told_what_is_missing(setup: str, text: str) -> None:
    """A directory that every user may enter, because pytest's own is private."""
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        base.chmod(0o755)
        keys = KeySet.generate(base)
        (base / "source").mkdir()
        (base / "source" / "f").write_bytes(b"1")
        seal(keys, base / "source", base / "sealed")
        (base / "mnt").mkdir()
        for path in (base / "mnt", keys.kek):
            os.chown(path, 1234, 1234)
        (base / "run").mkdir()
        os.chown(base / "run", 1234, 1234)
        sealed = Sealed(base / "sealed", base / "source", keys)
        command = [str(part) for part in mount_command(sealed, base / "mnt", base / "run" / "state")]
        done = with_own_dev(f"{setup} && export XDG_RUNTIME_DIR={base / 'run'}", command, 1234, base)
        assert done.returncode == 7, done.stderr
        assert text in done.stderr
        assert done.stderr.count("\n") == 1


def test_an_older_release_than_seen_is_refused_until_forgotten(model: Sealed, mount: Callable[..., Mounted], tmp_path: Path) -> None:
    old = model.copy(tmp_path / "old")
    seal(model.keys, model.source, model.path, release=2)
    mounted = mount(model)
    assert mounted.facts["release"] == 2
    mounted.unmount()
    command = mount_command(old, mounted.path, mounted.state_dir)
    done = modelfs(*command)
    assert done.returncode == 4
    assert "older than release 2" in done.stderr
    assert modelfs("forget", MODEL, "--state-dir", mounted.state_dir).returncode == 0
    done = modelfs(*command, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["release"] == 1
    assert modelfs("unmount", mounted.path).returncode == 0


def test_the_same_release_with_another_payload_is_refused(model: Sealed, mount: Callable[..., Mounted]) -> None:
    mounted = mount(model)
    mounted.unmount()
    later = (datetime.now(UTC) + timedelta(days=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    resign(model, lambda fields: fields.update(expires=later))
    done = modelfs(*mount_command(model, mounted.path, mounted.state_dir))
    assert done.returncode == 4
    assert "another content" in done.stderr


def test_a_second_mount_at_the_same_place_is_refused(model: Sealed, mount: Callable[..., Mounted]) -> None:
    mounted = mount(model)
    done = modelfs(*mount_command(model, mounted.path, mounted.state_dir))
    assert done.returncode == 7
    assert "already" in done.stderr
    assert (mounted.path / "model.bin").read_bytes() == b"weights" * 1000


def test_a_socket_left_by_a_dead_mount_is_no_obstacle(model: Sealed, mount: Callable[..., Mounted]) -> None:
    path = socket_path(str(model.path.parent / "mnt0"))
    runtime_dir().mkdir(mode=0o700, exist_ok=True)
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(str(path))
    assert path.exists()
    mounted = mount(model)
    assert mounted.status()["state"] == "serving"


def test_unmount_and_status_of_what_is_not_mounted(tmp_path: Path) -> None:
    for command in ("unmount", "status"):
        done = modelfs(command, tmp_path)
        assert done.returncode == 7
        assert "no modelfs mount" in done.stderr
        assert done.stderr.count("\n") == 1


def test_foreground_prints_ready_and_ends_on_sigint(model: Sealed, tmp_path: Path) -> None:
    (tmp_path / "mnt").mkdir()
    command = [str(part) for part in mount_command(model, tmp_path / "mnt", tmp_path / "state", "--foreground")]
    process = subprocess.Popen([sys.executable, "-m", "modelfs", *command], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("mounted demo release 1")
    assert (tmp_path / "mnt" / "model.bin").read_bytes() == b"weights" * 1000
    process.send_signal(signal.SIGINT)
    rest = process.communicate(timeout=20)[0]
    assert process.returncode == 0
    assert "plaintext left in the page cache: 0 bytes" in rest
    assert top_mount(os.fsencode(tmp_path / "mnt")) is None


def test_waiting_for_a_key_service_holds_nothing_more_with_each_attempt(model: Sealed, tmp_path: Path) -> None:
    """A service that is down for days: what an attempt has opened is given back before the next."""
    (tmp_path / "mnt").mkdir()
    (tmp_path / "token").write_text("s.token")
    (tmp_path / "token").chmod(0o600)
    command = mount_command(model, tmp_path / "mnt", tmp_path / "state")
    command[command.index("--kek") + 1] = "vault:transit/models"
    vault = ["--vault-address", "https://127.0.0.1:1", "--vault-auth", f"token:{tmp_path / 'token'}"]
    log, audit = tmp_path / "log", tmp_path / "audit"
    process = subprocess.Popen(
        [sys.executable, "-m", "modelfs", *map(str, command), *vault, "--foreground", "--wait", "--log", log, "--audit", audit]
    )
    try:
        counts = []
        for attempt in (1, 3):
            wait_until(lambda attempt=attempt: log.exists() and log.read_text().count("asking again") >= attempt, 60, "an attempt")
            counts.append(len(os.listdir(f"/proc/{process.pid}/fd")))
        assert counts[0] == counts[1]
    finally:
        process.kill()
        process.wait()
