"""After a lock no process that is left holds a key: their whole memory is searched, as root."""

import base64
import mmap
import os
import random
import re
from collections.abc import Callable

from modelfs.control.socket import request, socket_path
from modelfs.mount.session import cached_pages
from tests.conftest import SealedBuilder
from tests.mount.conftest import Mounted, modelfs, wait_until


def memory(pid: int) -> bytes:
    """Everything that a process could have written: all mappings but those of files that it can only read."""
    found = []
    with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as mem:
        for line in maps:
            match = re.match(r"([0-9a-f]+)-([0-9a-f]+) r(.)\S+ \S+ \S+ (\d+)", line)
            if match is None or "[vvar" in line or "[vsyscall" in line or (match[3] == "-" and match[4] != "0"):
                continue
            start, end = int(match[1], 16), int(match[2], 16)
            try:
                mem.seek(start)
                found.append(mem.read(end - start))
            except (OSError, OverflowError):
                continue  # a secret page, or a device: not even root reads it so
    return b"".join(found)


def forms(secret: bytes) -> list[bytes]:
    """How a key could lie in memory. Of base64, in both alphabets, only the part that does not depend on what follows."""
    encoded = [base64.b64encode(secret)[:40], base64.urlsafe_b64encode(secret)[:40]]
    return [secret, secret.hex().encode(), secret.hex().upper().encode(), *encoded]


def test_no_key_is_left_in_memory_after_a_lock(sealed: SealedBuilder, mount: Callable[..., Mounted]) -> None:
    model = sealed({"model.bin": random.Random(12).randbytes(1 << 20), "other": b"x"}, block_size=131072)
    keys = {"DEK": model.dek(), **{entry.path: entry.blob_key for entry in model.index().files}}
    mounted = mount(model, "--workers", 2)
    assert (mounted.path / "model.bin").stat().st_size == 1 << 20
    (mounted.path / "model.bin").read_bytes()
    (mounted.path / "other").read_bytes()
    status = mounted.status()
    served = b"".join(memory(pid) for pid in status["workers"])
    assert any(form in served for form in forms(keys["model.bin"])), "the search must find a key where there is one"
    before = status["workers"]
    assert modelfs("lock", mounted.path).returncode == 0
    wait_until(lambda: not set(mounted.status()["workers"]) & set(before), 10, "the end of the workers with keys")
    wait_until(lambda: bool(mounted.status()["workers"]), 10, "workers without keys")
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in before), 10, "their reaping")
    for pid in mounted.pids():
        held = memory(pid)
        assert len(held) > 1 << 20
        for name, key in keys.items():
            for form in forms(key):
                assert form not in held, f"{name} is in the memory of process {pid}"


def test_a_lock_answers_when_the_cache_is_empty_and_an_unlock_when_reads_work(sealed: SealedBuilder, mount: Callable[..., Mounted]) -> None:
    """And not when they are about to: whoever has asked relies on it."""
    mounted = mount(sealed({"model.bin": bytes(16 << 20)}))
    with open(mounted.path / "model.bin", "rb") as file:
        for _ in range(5):
            with mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
                mapped.read()
                assert cached_pages(file.fileno()) * mmap.PAGESIZE == 16 << 20
                answer = request(socket_path(str(mounted.path)), {"do": "lock"}, 30)
                assert (answer["lease"], cached_pages(file.fileno())) == ("paused", 0)
            request(socket_path(str(mounted.path)), {"do": "unlock"}, 30)
            file.seek(0)
            assert file.read() == bytes(16 << 20)
