"""The audit trail of a mount with its KEK in a Vault: every kind of event, with the version of the KEK, also after it has changed."""

import json
import os
import signal
from base64 import b64encode
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelfs.format.canonical import serialize
from modelfs.format.keysfile import keys_file, recipient, wrapping_context
from modelfs.store.local import Store
from modelfs.trust.release import read_keys
from tests.helpers import KeySet
from tests.mount.conftest import Mounted, modelfs, wait_until
from tests.vault.server import Server
from tests.vault.test_mounted_leases import PLAIN, Leased

FACTS = {"time", "event", "model", "release", "kek", "mountpoint", "key_version", "reason"}


@pytest.fixture
def leased(server: Server, keys_dir: KeySet, tmp_path: Path) -> Leased:
    return Leased(server, keys_dir, tmp_path)


def events(path: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in path.read_text().splitlines()]
    for event in found:
        assert set(event) - {"proof"} == FACTS
        assert ("proof" in event) == (event["event"] in ("revoked", "unmount"))
        assert event["reason"]
    return found


def test_every_kind_of_event(leased: Leased, mount: Callable[..., Mounted], tmp_path: Path) -> None:
    audit = tmp_path / "audit"
    mounted = mount(leased.sealed, *leased.options(), "--audit", audit)
    os.kill(leased.server.vault.pid, signal.SIGSTOP)
    try:
        wait_until(lambda: mounted.status()["lease"] == "locked", 15, "the lease's end")
    finally:
        os.kill(leased.server.vault.pid, signal.SIGCONT)
    wait_until(lambda: mounted.status()["lease"] == "granted", 15, "the unlock")
    leased.server.root.sys.delete_policy(leased.policy)
    wait_until(lambda: events(audit)[-1]["event"] == "revoked", 15, "the end in the audit trail")
    found = events(audit)
    kinds = [event["event"] for event in found]
    assert "renewal failed" in kinds
    assert [kind for kind in kinds if kind != "renewal failed"] == ["mount", "locked", "unlock", "denied", "revoked"]
    assert {(event["kek"], event["key_version"]) for event in found} == {(f"vault:{leased.key}", 1)}
    by_kind = {event["event"]: event for event in found}
    assert "did not answer" in by_kind["renewal failed"]["reason"] or "deadline" in by_kind["renewal failed"]["reason"]
    assert "refuses the login" in by_kind["denied"]["reason"]
    assert by_kind["revoked"]["reason"] == f"revoked: {by_kind['denied']['reason']}"
    assert by_kind["revoked"]["proof"]["resident_bytes"] == 0


def rewrap(leased: Leased) -> None:
    """A new version of the KEK, the release's DEK wrapped by it in the keys file, and the old version shut off."""
    transit, name = leased.server.root.secrets.transit, leased.key.rpartition("/")[2]
    manifest = leased.sealed.manifest
    with Store(leased.sealed.path) as store:
        (entry,) = read_keys(store, manifest).recipients
    transit.rotate_key(name)
    context = b64encode(wrapping_context(manifest.model, manifest.key_id)).decode()
    answer = transit.rewrap_data(name, ciphertext=entry.wrapped_key.decode(), context=context)
    new = recipient(entry.scheme, entry.key_ref, entry.label, answer["data"]["ciphertext"].encode())
    keys_path(leased).write_bytes(serialize(keys_file([new])))
    transit.update_key_configuration(name, min_decryption_version=2)


def keys_path(leased: Leased) -> Path:
    return leased.sealed.path / "keys" / f"{leased.sealed.manifest.key_commitment}.json"


def test_a_rewrapped_key_is_taken_up_and_its_version_shown(leased: Leased, mount: Callable[..., Mounted], tmp_path: Path) -> None:
    audit = tmp_path / "audit"
    mounted = mount(leased.sealed, *leased.options(), "--audit", audit)
    assert mounted.status()["key_version"] == 1
    rewrap(leased)
    wait_until(lambda: mounted.status()["key_version"] == 2, 10, "the new version in status")
    assert f"KEK vault:{leased.key} version 2" in modelfs("status", mounted.path).stdout
    # From here on the store is not needed for a proof: what has opened is what is asked about.
    mark = leased.server.audit_mark()
    hidden = keys_path(leased).rename(tmp_path / "away")
    wait_until(lambda: leased.server.paths(mark).count(f"transit/decrypt/{leased.key.rpartition('/')[2]}") >= 3, 15, "more proofs")
    refused = [line for line in leased.server.audited(mark) if line.get("error")]
    assert refused == [], "the old entry is not tried again"
    assert mounted.status()["lease"] == "granted"
    hidden.rename(keys_path(leased))
    assert modelfs("lock", mounted.path).returncode == 0
    assert modelfs("unlock", mounted.path).returncode == 0
    assert (mounted.path / "model.bin").read_bytes() == PLAIN
    mounted.unmount()
    found = [(event["event"], event["key_version"], event["reason"]) for event in events(audit)]
    assert found == [
        ("mount", 1, "mounted"),
        ("locked", 2, "an operator locked the mount (KEK version 2 now, 1 before)"),
        ("unlock", 2, "granted"),
        ("unmount", 2, "unmount"),
    ]


def test_an_unlock_names_the_version_that_it_came_with(leased: Leased, mount: Callable[..., Mounted], tmp_path: Path) -> None:
    audit = tmp_path / "audit"
    mounted = mount(leased.sealed, *leased.options(), "--audit", audit)
    assert modelfs("lock", mounted.path).returncode == 0
    rewrap(leased)
    assert modelfs("unlock", mounted.path).returncode == 0
    assert mounted.status()["key_version"] == 2
    assert (mounted.path / "model.bin").read_bytes() == PLAIN
    os.kill(mounted.status()["control"], signal.SIGKILL)
    wait_until(lambda: events(audit)[-1]["event"] == "revoked", 20, "the warden's end of the audit trail")
    found = [(event["event"], event["key_version"], event["reason"]) for event in events(audit)]
    assert found == [
        ("mount", 1, "mounted"),
        ("locked", 1, "an operator locked the mount"),
        ("unlock", 2, "granted (KEK version 2 now, 1 before)"),
        ("revoked", 2, "control died"),
    ]


def test_a_mount_that_is_denied_leaves_a_trace(leased: Leased, mount: Callable[..., Mounted], tmp_path: Path) -> None:
    leased.server.root.sys.create_or_update_policy(leased.policy, 'path "auth/token/lookup-self" { capabilities = ["read"] }')
    audit = tmp_path / "audit"
    with pytest.raises(AssertionError, match="denies"):
        mount(leased.sealed, *leased.options(), "--audit", audit)
    (event,) = events(audit)
    assert (event["event"], event["key_version"]) == ("denied", None)
    assert "denies" in event["reason"]
