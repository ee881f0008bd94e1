"""A mounted model whose key is leased from a real server: what a denial, an outage and their end do to readers."""

import contextlib
import errno
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs.control.socket import request, socket_path
from tests.helpers import KeySet
from tests.leases.denials import end_by_denial
from tests.mount.conftest import Mounted, Program, wait_until
from tests.vault.leased import DENIALS, PLAIN, RENEW_S, TTL_S, Leased, Watcher
from tests.vault.server import Server


@pytest.fixture
def leased(server: Server, keys_dir: KeySet, tmp_path: Path) -> Leased:
    return Leased(server, keys_dir, tmp_path)


@pytest.fixture
def mounted(leased: Leased, mount: Callable[..., Mounted], tmp_path: Path) -> Mounted:
    made: Mounted = mount(leased.sealed, *leased.options(), "--audit", tmp_path / "audit")
    assert (made.path / "model.bin").read_bytes() == PLAIN
    return made


@pytest.mark.parametrize("denial", DENIALS)
def test_a_denial_ends_everything_within_the_bound(
    leased: Leased, mounted: Mounted, program: Callable[..., Program], denial: str, tmp_path: Path
) -> None:
    end_by_denial(mounted, program, lambda: DENIALS[denial].act(leased), DENIALS[denial].reason, tmp_path / "audit")


def read_errno(path: Path) -> int | None:
    try:
        with open(path, "rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert file.read(4096) == PLAIN[:4096]
    except OSError as exc:
        return exc.errno
    return None


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
    assert "locked, mounted " in (said := modelfs("status", mounted.path).stdout)
    assert "lease paused until `modelfs unlock`, last renewed " in said
    after = reader.finish()
    assert (after["read"], after["resident"], after["touch"]) == ("EKEYEXPIRED", 0, "SIGBUS")
    assert modelfs("unlock", mounted.path).returncode == 0
    assert (mounted.path / "model.bin").read_bytes() == PLAIN


def test_an_unlock_after_a_revocation_says_what_it_is(leased: Leased, mounted: Mounted) -> None:
    from tests.mount.conftest import modelfs

    assert modelfs("lock", mounted.path).returncode == 0
    DENIALS["accessor revoked"].act(leased)
    done = modelfs("unlock", mounted.path)
    assert (done.returncode, done.stderr.startswith("modelfs: revoked, and taken down: the key service ")) == (7, True), done.stderr


def test_readers_of_a_locked_mount_see_the_lock_and_nothing_else(mounted: Mounted) -> None:
    """Whatever a worker held when it was killed is answered by another: no read is lost on the way into the dark or out of it."""
    with contextlib.ExitStack() as stack:
        watchers = [stack.enter_context(Watcher(mounted, pause_s=0)) for _ in range(4)]
        for _ in range(10):
            for order in ("lock", "unlock"):
                request(socket_path(str(mounted.path)), {"do": order}, 30)
                seen = [len(watcher.samples) for watcher in watchers]
                wait_until(lambda seen=seen: all(len(w.samples) > n + 5 for w, n in zip(watchers, seen, strict=True)), 10, "more reads")
    found = [sample.errno for watcher in watchers for sample in watcher.samples]
    assert set(found) == {None, errno.EKEYEXPIRED}, {number: found.count(number) for number in set(found)}


def test_renewals_over_many_token_lives_cost_no_read(leased: Leased, mount: Callable[..., Mounted]) -> None:
    leased.server.root.auth.approle.create_or_update_approle(
        leased.role, token_policies=[leased.policy], token_ttl="5s", token_max_ttl="10s", token_no_default_policy=True
    )
    mark = leased.server.audit_mark()
    mounted = mount(leased.sealed, *leased.options())
    deadline = time.monotonic() + 32
    reads = 0
    while time.monotonic() < deadline:
        assert read_errno(mounted.path / "model.bin") is None
        reads += 1
    assert reads > 100
    assert leased.server.paths(mark).count("auth/approle/login") >= 4, "these were not many lives"
    assert mounted.status()["lease"] == "granted"
