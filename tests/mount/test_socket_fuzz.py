"""Whatever is sent to the control socket of a real mount gets an error, and the mount goes on as if nothing had been."""

import json
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfs.control.socket import request, socket_path
from tests.conftest import SealedBuilder
from tests.mount.conftest import Mounted

KNOWN = {"status", "lock", "unlock", "renew", "unmount"}
odd = st.sampled_from([10**4000, "x" * 3000, "\0", "\x1b[2J"])
values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=30) | st.integers() | odd,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=10), inner, max_size=5),
    max_leaves=8,
)
orders = st.dictionaries(st.text(max_size=10) | st.just("do"), values, max_size=5).map(json.dumps).map(str.encode)
lines = st.binary(max_size=300) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")) | orders
sizes = st.sampled_from([0, 1, 4095, 4096, 4097, 20_000]).map(lambda size: b'{"do":"' + b"s" * size + b'"}')


def send(path: Path, data: bytes, parts: int, is_read: bool) -> dict[str, Any] | None:
    """One client's whole life: its bytes in some parts, the end of them, and the answer, if he waits for it."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(20)
        client.connect(str(path))
        step = max(1, -(-len(data) // parts))
        try:
            for at in range(0, len(data), step):
                client.sendall(data[at : at + step])
            client.shutdown(socket.SHUT_WR)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it was too long, and has its answer already
        if not is_read:
            return None
        answer = b""
        try:
            while part := client.recv(65536):
                answer += part
        except ConnectionResetError:
            pass  # what was sent and not read, the kernel says so
    return dict(json.loads(answer)) if answer else {"error": ""}


def means_something(data: bytes) -> bool:
    """Whether it is an order that a mount carries out."""
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(found, dict) and isinstance(found.get("do"), str) and found["do"] in KNOWN


def resident_kib(pid: int) -> int:
    return int(next(line.split()[1] for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmRSS")))


def test_a_mount_survives_every_request(sealed: SealedBuilder, mount: Callable[..., Mounted]) -> None:
    mounted = mount(sealed({"model.bin": b"weights"}))
    path, control = socket_path(str(mounted.path)), mounted.facts["control"]
    before = request(path, {"do": "status"}, 20)
    send(path, b"{}\n", 1, True)
    held, descriptors = resident_kib(control), len(os.listdir(f"/proc/{control}/fd"))

    @settings(max_examples=100, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(lines | sizes, st.sampled_from([b"\n", b"\n", b"", b"\n{}\n"]), st.integers(1, 4), st.booleans())
    def run(data: bytes, end: bytes, parts: int, is_read: bool) -> None:
        if means_something(data + end):
            return
        answer = send(path, data + end, parts, is_read)
        assert answer is None or list(answer) == ["error"], answer
        assert answer is None or len(answer["error"]) < 300

    run()
    after = request(path, {"do": "status"}, 20)
    for name in ("control", "warden", "workers", "worker_deaths", "state", "lease"):
        assert after[name] == before[name], name
    assert (mounted.path / "model.bin").read_bytes() == b"weights"
    assert resident_kib(control) - held < 16 * 1024
    assert len(os.listdir(f"/proc/{control}/fd")) <= descriptors + 2
