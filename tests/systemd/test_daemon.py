"""`modelfs mount` without --foreground under any service manager that speaks sd_notify: it names the process that stays."""

import os
import socket
from collections.abc import Callable

import pytest

from tests.conftest import SealedBuilder
from tests.mount.conftest import Mounted


def test_the_daemon_says_who_it_is(sealed: SealedBuilder, mount: Callable[..., Mounted], monkeypatch: pytest.MonkeyPatch) -> None:
    name = f"modelfs-test-{os.getpid()}"
    heard: list[dict[str, str]] = []
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        manager.settimeout(30)

        def hear(until: str) -> dict[str, str]:
            while not heard or until not in heard[-1]:
                heard.append(dict(line.split("=", 1) for line in manager.recv(4096).decode().splitlines()))
            return heard[-1]

        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        mounted = mount(sealed({"model.bin": b"weights"}))
        monkeypatch.delenv("NOTIFY_SOCKET")
        assert int(hear("READY")["MAINPID"]) == mounted.facts["control"]
        assert "EXTEND_TIMEOUT_USEC" in heard[0], "the first word is that it is not stuck"
        mounted.unmount()
        assert hear("STOPPING")["STATUS"] == "unmounting: unmount"
