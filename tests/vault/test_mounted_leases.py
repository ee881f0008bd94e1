"""A mounted model whose key is leased from a real server: what a denial, an outage and their end do to readers."""

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfs.control.process import is_running
from modelfs.keys import open_kek
from modelfs.keys.vault_settings import AppRole
from tests.helpers import NOW, KeySet, Sealed, load_signer, write_tree
from tests.mount.conftest import Mounted, Program, wait_until
from tests.mount.conftest import mount as mount  # noqa: PLC0414  a fixture
from tests.mount.conftest import program as program  # noqa: PLC0414  a fixture
from tests.vault.server import Server

RENEW_S, TTL_S = 1.0, 4.0
PLAIN = os.urandom(3_000_000)


class Leased:
    """A model sealed for a KEK of its own in the server, and the login of the host that mounts it."""

    def __init__(self, server: Server, keys: KeySet, base: Path) -> None:
        from modelfs.seal.publish import SealRequest, Surroundings, seal_model
        from modelfs.seal.scan import scan_source

        self.server = server
        self.key = server.key()
        self.policy = server.policy(self.key)
        self.role = server.role(self.policy)
        self.auth: AppRole = server.approle(self.role)
        source = write_tree(base / "source", {"model.bin": PLAIN})
        provider = open_kek(f"vault:{self.key}", server.settings(self.auth))
        request = SealRequest("demo", 1, provider, load_signer(keys.signing), "blake3", 131072, None, None)
        seal_model(scan_source(source, False), base / "sealed", request, Surroundings(now=NOW))
        self.sealed = Sealed(base / "sealed", source, keys)

    def options(self) -> list[object]:
        vault = self.server.vault
        login = f"approle:role_id_file={self.auth.role_id_file},secret_id_file={self.auth.secret_id_file}"
        lease = ["--renew-every", RENEW_S, "--ttl", TTL_S]
        return [
            "--kek",
            f"vault:{self.key}",
            "--vault-address",
            vault.address,
            "--vault-ca-file",
            vault.ca.path,
            "--vault-auth",
            login,
            *lease,
        ]

    def accessors(self) -> list[str]:
        """Of every token that has this model's policy."""
        auth = self.server.root.auth.token
        found = []
        for accessor in auth.list_accessors()["data"]["keys"]:
            with contextlib.suppress(Exception):
                if self.policy in auth.lookup_accessor(accessor)["data"]["policies"]:
                    found.append(accessor)
        assert found
        return found


@pytest.fixture
def leased(server: Server, keys_dir: KeySet, tmp_path: Path) -> Leased:
    return Leased(server, keys_dir, tmp_path)


@pytest.fixture
def mounted(leased: Leased, mount: Callable[..., Mounted]) -> Mounted:
    made: Mounted = mount(leased.sealed, *leased.options())
    assert (made.path / "model.bin").read_bytes() == PLAIN
    return made


def revoke_accessor(leased: Leased) -> None:
    for accessor in leased.accessors():
        leased.server.root.auth.token.revoke_accessor(accessor)


def remove_policy(leased: Leased) -> None:
    leased.server.root.sys.delete_policy(leased.policy)


def raise_minimum(leased: Leased) -> None:
    transit, name = leased.server.root.secrets.transit, leased.key.rpartition("/")[2]
    transit.rotate_key(name)
    transit.update_key_configuration(name, min_decryption_version=2)


def delete_key(leased: Leased) -> None:
    transit, name = leased.server.root.secrets.transit, leased.key.rpartition("/")[2]
    transit.update_key_configuration(name, deletion_allowed=True)
    transit.delete_key(name)


DENIALS = {"accessor revoked": revoke_accessor, "policy removed": remove_policy, "minimum raised": raise_minimum, "key deleted": delete_key}


@pytest.mark.parametrize("denial", DENIALS)
def test_a_denial_ends_everything_within_the_bound(leased: Leased, mounted: Mounted, program: Callable[..., Program], denial: str) -> None:
    reader = program("hold", mounted.path / "model.bin")
    assert reader.line()["resident"] >= len(PLAIN)
    pids = mounted.pids()
    DENIALS[denial](leased)
    started = time.monotonic()
    wait_until(lambda: not mounted.is_attached(), RENEW_S + 2.0, "the end of the mount")
    assert time.monotonic() - started <= RENEW_S + 2.0
    after = reader.finish()
    assert (after["resident"], after["touch"]) == (0, "SIGBUS"), after
    assert after["read"] in ("EKEYREVOKED", "ENOTCONN", "ECONNABORTED"), after
    wait_until(lambda: not any(map(is_running, pids)), 10, "the end of every process")
    assert "revoked: " in mounted.log
    assert '"resident_bytes": 0' in mounted.log


@contextlib.contextmanager
def stopped(server: Server) -> Iterator[None]:
    os.kill(server.vault.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.vault.pid, signal.SIGCONT)


@contextlib.contextmanager
def sealed_server(server: Server) -> Iterator[None]:
    server.root.sys.seal()
    try:
        yield
    finally:
        server.vault.unseal()


OUTAGES: dict[str, Callable[[Server], Any]] = {"stopped": stopped, "sealed": sealed_server}


def read_errno(path: Path) -> int | None:
    try:
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert file.read(4096) == PLAIN[:4096]
    except OSError as exc:
        return exc.errno
    return None


@pytest.mark.parametrize("outage", OUTAGES)
def test_an_outage_locks_at_the_lease_s_end_and_not_before(leased: Leased, mounted: Mounted, outage: str) -> None:
    import errno

    path = mounted.path / "model.bin"
    with OUTAGES[outage](leased.server):
        started = time.monotonic()
        while time.monotonic() - started < TTL_S - RENEW_S - 0.7:
            assert read_errno(path) is None, "an outage must not end a lease that still runs"
            time.sleep(0.05)
        wait_until(lambda: read_errno(path) == errno.EKEYEXPIRED, TTL_S + 2.0, "the lock")
        assert time.monotonic() - started <= TTL_S + 2.0
        assert mounted.status()["lease"] == "locked"
    wait_until(lambda: read_errno(path) is None, 10, "the unlocking by itself")
    assert path.read_bytes() == PLAIN
    assert mounted.status()["lease"] == "granted"


def test_a_stopped_control_process_cannot_stretch_a_lease(leased: Leased, mounted: Mounted) -> None:
    path = mounted.path / "model.bin"
    os.kill(mounted.facts["control"], signal.SIGSTOP)
    try:
        time.sleep(TTL_S + 0.5)
        assert read_errno(path) is not None
        assert '"resident_bytes": 0' in mounted.log, "the warden evicts by itself"
    finally:
        os.kill(mounted.facts["control"], signal.SIGCONT)
    wait_until(lambda: read_errno(path) is None, 10, "the unlocking by itself")


def test_an_operators_lock_stays_until_unlocked(mounted: Mounted, program: Callable[..., Program]) -> None:
    from tests.mount.conftest import modelfs

    reader = program("hold", mounted.path / "model.bin")
    reader.line()
    assert modelfs("lock", mounted.path).returncode == 0
    time.sleep(RENEW_S * 2)
    assert mounted.status()["lease"] == "paused"
    after = reader.finish()
    assert (after["read"], after["resident"], after["touch"]) == ("EKEYEXPIRED", 0, "SIGBUS")
    assert modelfs("unlock", mounted.path).returncode == 0
    assert (mounted.path / "model.bin").read_bytes() == PLAIN


def test_renewals_over_many_token_lives_cost_no_read(leased: Leased, mount: Callable[..., Mounted]) -> None:
    leased.server.root.auth.approle.create_or_update_approle(
        leased.role, token_policies=[leased.policy], token_ttl="3s", token_max_ttl="6s", token_no_default_policy=True
    )
    mounted = mount(leased.sealed, *leased.options())
    deadline = time.monotonic() + 20
    reads = 0
    while time.monotonic() < deadline:
        assert read_errno(mounted.path / "model.bin") is None
        reads += 1
    assert reads > 100
    assert mounted.status()["lease"] == "granted"
