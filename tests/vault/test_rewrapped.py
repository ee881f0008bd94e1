"""A keys file that is rewrapped while the model is mounted: raising min_decryption_version afterwards costs no read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs.format.keysfile import parse_keys
from modelfs.keys.vault_session import boottime
from tests.helpers import KeySet
from tests.mount.conftest import Mounted, wait_until
from tests.vault.leased import RENEW_S, Leased, Watcher, status
from tests.vault.server import Server


@pytest.fixture
def leased(server: Server, keys_dir: KeySet, tmp_path: Path) -> Leased:
    return Leased(server, keys_dir, tmp_path)


def rewrap(leased: Leased) -> None:
    done = leased.rewrap()
    assert done.returncode == 0, done.stderr
    assert [entry["key_version"] for entry in json.loads(done.stdout)["rewrapped"]] == [2]


def test_a_rewrapped_model_does_not_go_dark(leased: Leased, mount: Callable[..., Mounted], tmp_path: Path) -> None:
    transit = leased.server.root.secrets.transit
    mounted = mount(leased.sealed, *leased.options(), "--audit", tmp_path / "audit")
    with Watcher(mounted) as watcher:
        transit.rotate_key(leased.key_name)
        rewrap(leased)
        assert b"vault:v2:" in _wrapped(leased)
        transit.update_key_configuration(leased.key_name, min_decryption_version=2)
        raised = boottime()
        # Three proofs at the least were sent since.
        wait_until(lambda: boottime() - raised > 3 * RENEW_S + 1.0, 10, "some proofs")
        answer = status(mounted)
        assert (answer["lease"], answer["key_version"]) == ("granted", 2)
        assert answer["last_granted_s_ago"] < 2 * RENEW_S
    assert watcher.bad() == []
    assert len(watcher.samples) > 50
    events = [json.loads(line)["event"] for line in (tmp_path / "audit").read_text().splitlines()]
    assert set(events) <= {"mount", "renewal failed"}


def test_the_rewrapped_entry_is_kept_when_the_store_goes_away(leased: Leased, mount: Callable[..., Mounted]) -> None:
    """What has opened once is what the next proofs ask for: they read the keys file, and are refused, no second time."""
    transit = leased.server.root.secrets.transit
    mounted = mount(leased.sealed, *leased.options())
    transit.rotate_key(leased.key_name)
    rewrap(leased)
    transit.update_key_configuration(leased.key_name, min_decryption_version=2)
    wait_until(lambda: status(mounted)["key_version"] == 2, 10, "the rewrapped entry")
    for path in (leased.sealed.path / "keys").iterdir():
        path.unlink()
    mark, removed = leased.server.audit_mark(), boottime()
    wait_until(lambda: boottime() - removed > 3 * RENEW_S, 10, "some proofs")
    assert status(mounted)["lease"] == "granted"
    asked = [line for line in leased.server.audited(mark) if line["request"]["path"].endswith(f"decrypt/{leased.key_name}")]
    assert len(asked) >= 2
    assert not any(line.get("error") for line in asked), "an entry that was refused once was tried again"


def _wrapped(leased: Leased) -> bytes:
    manifest = leased.sealed.manifest
    return parse_keys((leased.sealed.path / "keys" / f"{manifest.key_commitment}.json").read_bytes()).recipients[0].wrapped_key
