"""What the processes of a real mount still have, as the kernel says, and that they do with it all that they must."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path

from modelfs.control.process import is_running
from modelfs.control.socket import socket_path
from tests.conftest import SealedBuilder
from tests.mount.conftest import Mounted, modelfs, wait_until

NONE, READ_SEARCH, SYS_ADMIN = 0, 1 << 2, 1 << 21
FILES = {"a/weights.bin": os.urandom(700_000), "config.json": b"{}\n"}


def confinement(pid: int) -> tuple[int, int, str, str]:
    """Capabilities, those to be had by executing a program, NoNewPrivs, Seccomp."""
    status = dict(re.findall(r"^(\w+):\t(.*)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE))
    assert status["CapEff"] == status["CapPrm"]
    assert int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    return int(status["CapEff"], 16), int(status["CapBnd"], 16), status["NoNewPrivs"], status["Seccomp"]


def has_socket(pid: int) -> bool:
    links = [os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir()]
    assert any(link == "/dev/fuse" for link in links), links
    return any(link.startswith("socket:") for link in links)


def check_all(mounted: Mounted, worker: int) -> None:
    status = mounted.status()
    assert status["workers"]
    assert confinement(status["control"]) == (SYS_ADMIN | READ_SEARCH, NONE, "1", "0")
    assert confinement(status["warden"]) == (SYS_ADMIN | READ_SEARCH, NONE, "1", "2")
    for pid in status["workers"]:
        assert confinement(pid) == (worker, NONE, "1", "2")
        assert not has_socket(pid), "a worker can speak to nobody"


def test_every_process_serving_locked_replaced_and_revoked(sealed: SealedBuilder, mount: Callable[..., Mounted]) -> None:
    model = sealed(FILES)
    mounted = mount(model)
    assert mounted.status()["not_confined"] == []
    check_all(mounted, NONE)
    with_keys = set(mounted.status()["workers"])
    assert modelfs("lock", mounted.path).returncode == 0
    wait_until(lambda: not with_keys & set(mounted.status()["workers"]), what="keyless workers")
    check_all(mounted, NONE)
    assert modelfs("unlock", mounted.path).returncode == 0
    wait_until(lambda: mounted.status()["state"] == "serving")
    before = mounted.status()["workers"]
    os.kill(before[0], signal.SIGKILL)
    wait_until(lambda: mounted.status()["worker_deaths"] == 1 and len(mounted.status()["workers"]) == len(before))
    check_all(mounted, NONE)
    for name, content in FILES.items():
        assert (mounted.path / name).read_bytes() == content
    proof = mounted.unmount()
    assert (proof["evicted"], proof["detached"], proof["resident_bytes"]) == (True, True, 0)


def test_a_store_that_root_may_not_read_without_a_capability(sealed: SealedBuilder, mount: Callable[..., Mounted]) -> None:
    model = sealed(FILES)
    for path in (model.path / "blobs").iterdir():
        os.chown(path, 1234, 1234)
        path.chmod(0o400)
    mounted = mount(model)
    check_all(mounted, READ_SEARCH)
    assert "chown it to root" in modelfs("status", mounted.path).stdout
    for name, content in FILES.items():
        assert (mounted.path / name).read_bytes() == content


def test_a_warden_without_control_unmounts_and_clears_away(sealed: SealedBuilder, mount: Callable[..., Mounted]) -> None:
    mounted = mount(sealed(FILES))
    path = socket_path(os.path.realpath(mounted.path))
    assert path.exists()
    os.kill(mounted.facts["control"], signal.SIGKILL)
    wait_until(lambda: not is_running(mounted.facts["warden"]), 20, "the end of the warden")
    assert not mounted.is_attached()
    assert not path.exists()
    assert not path.with_suffix(".lock").exists()
    assert "Traceback" not in mounted.log


def test_control_without_a_warden_unmounts(sealed: SealedBuilder, mount: Callable[..., Mounted]) -> None:
    mounted = mount(sealed(FILES))
    assert (mounted.path / "config.json").read_bytes() == b"{}\n"
    os.kill(mounted.facts["warden"], signal.SIGKILL)
    wait_until(lambda: not is_running(mounted.facts["control"]), 20, "the end of control")
    assert not mounted.is_attached()
    assert '"detached": true' in mounted.log or "'detached': True" in mounted.log
    assert "'resident_bytes': 0" in mounted.log
