"""`modelfs rewrap` and `modelfs recipients` with a real server: what goes over the wire, what is refused, and what opens afterwards."""

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs.errors import KeyDeniedError
from modelfs.format.keysfile import Recipient, keys_file, parse_keys, recipient, wrapping_context
from modelfs.keys.file import generate_kek, open_provider
from modelfs.keys.interface import EntryRefusedError, agrees_with, unwrap_dek
from modelfs.keys.vault_settings import TokenFile
from modelfs.mount.mountinfo import top_mount
from tests.helpers import KeySet
from tests.mount.conftest import Mounted, modelfs
from tests.vault.leased import PLAIN, Leased, Watcher
from tests.vault.server import CONTEXT, DEK, KEY_ID, MODEL, SELF, Server, manifest, write_secret

AGREES = agrees_with(manifest())


@pytest.fixture
def leased(server: Server, keys_dir: KeySet, tmp_path: Path) -> Leased:
    return Leased(server, keys_dir, tmp_path)


def keys_path(leased: Leased) -> Path:
    return leased.sealed.path / "keys" / f"{leased.sealed.manifest.key_commitment}.json"


def entries(leased: Leased) -> list[Recipient]:
    return parse_keys(keys_path(leased).read_bytes()).recipients


def root(server: Server) -> TokenFile:
    return TokenFile(path=write_secret(server.directory / server.name("root"), server.vault.root_token))


def rotated(server: Server, key: str) -> None:
    server.root.secrets.transit.rotate_key(key.rpartition("/")[2])


def test_inside_the_service_and_nothing_else(leased: Leased) -> None:
    """The DEK does not leave it: nobody asks for a decryption or an encryption, and the login may do neither."""
    rotated(leased.server, leased.key)
    mark = leased.server.audit_mark()
    done = leased.rewrap()
    assert done.returncode == 0, done.stderr
    asked = [path for path in leased.server.paths(mark) if path.startswith("transit/")]
    assert set(asked) == {f"transit/rewrap/{leased.key_name}"}
    assert [entry.key_version for entry in entries(leased)] == [2]
    assert json.loads(done.stdout)["untouched"] == []


def test_the_old_file_no_longer_mounts_and_the_new_one_does(leased: Leased, mount: Callable[..., Mounted], tmp_path: Path) -> None:
    """A reader reads all the time, and is not disturbed. How long it takes is measured (tests/vault/measure_rewrap.py)."""
    old = keys_path(leased).read_bytes()
    mounted = mount(leased.sealed, *leased.options())
    with Watcher(mounted) as watcher:
        rotated(leased.server, leased.key)
        assert leased.rewrap().returncode == 0
        leased.server.root.secrets.transit.update_key_configuration(leased.key_name, min_decryption_version=2)
        time.sleep(3)
    assert watcher.bad() == []
    mounted.unmount()
    new = keys_path(leased).read_bytes()
    keys_path(leased).write_bytes(old)
    (tmp_path / "refused").mkdir()
    what = ["mount", leased.sealed.path, tmp_path / "refused", "--model", "demo", "--trust", leased.sealed.keys.public]
    done = modelfs(*what, "--state-dir", tmp_path / "state", *leased.options())
    assert (done.returncode, "min_decryption_version is above the version" in done.stderr) == (5, True), done.stderr
    assert top_mount(os.fsencode(tmp_path / "refused")) is None
    keys_path(leased).write_bytes(new)
    again = mount(leased.sealed, *leased.options())
    assert (again.path / "model.bin").read_bytes() == PLAIN
    assert again.status()["key_version"] == 2


def test_what_is_missing_is_named(leased: Leased) -> None:
    server, vault = leased.server, leased.server.vault
    for rules, text in (("", "`update` on transit/rewrap/"), (None, "`update` on transit/rewrap/")):
        auth = server.token_file(server.policy(leased.key, rules))
        what = ["rewrap", leased.sealed.path, "--model", "demo", "--trust", leased.sealed.keys.public, "--kek", f"vault:{leased.key}"]
        before = keys_path(leased).read_bytes()
        done = modelfs(*what, "--vault-address", vault.address, "--vault-ca-file", vault.ca.path, "--vault-auth", f"token:{auth.path}")
        assert (done.returncode, text in done.stderr, done.stderr.count("\n")) == (5, True, 1), done.stderr
        assert keys_path(leased).read_bytes() == before


def test_a_version_that_is_shut_off_is_refused_with_the_reason(leased: Leased) -> None:
    rotated(leased.server, leased.key)
    leased.server.root.secrets.transit.update_key_configuration(leased.key_name, min_decryption_version=2)
    before = keys_path(leased).read_bytes()
    done = leased.rewrap()
    assert (done.returncode, done.stderr.count("\n")) == (5, 1)
    assert "min_decryption_version is above the version that wrapped it" in done.stderr
    assert "nothing was changed" in done.stderr
    assert keys_path(leased).read_bytes() == before


# What a storage writer plants.


def test_another_release_s_wrapped_key_is_not_made_new(server: Server) -> None:
    """Whoever writes the storage could save it so from a min_decryption_version that is about to be raised."""
    key = server.key()
    provider = server.provider(root(server), key)
    theirs = provider.wrap_key(b"E" * 32, wrapping_context(MODEL, "cd" * 16))
    rotated(server, key)
    with pytest.raises(EntryRefusedError, match="altered, or wrapped by another key or for another model"):
        provider.rewrap_key(theirs, CONTEXT, AGREES)


def test_a_key_that_binds_nothing_is_noticed_and_the_dek_compared(server: Server) -> None:
    """Such a key ignores the context: the service itself would make anything new."""
    key = server.key(derived=False)
    provider = server.provider(root(server), key)
    theirs, ours = (provider.wrap_key(dek, context) for dek, context in ((b"E" * 32, wrapping_context(MODEL, "cd" * 16)), (DEK, CONTEXT)))
    rotated(server, key)
    name = key.rpartition("/")[2]
    assert server.root.secrets.transit.rewrap_data(name, ciphertext=theirs.wrapped_key.decode(), context="AAAA")["data"]["ciphertext"]
    assert provider.rewrap_key(theirs, CONTEXT, AGREES) is None
    mark = server.audit_mark()
    fresh = provider.rewrap_key(ours, CONTEXT, AGREES)
    assert fresh is not None
    assert fresh.key_version == 2
    assert [path for path in server.paths(mark) if "transit" in path] == [
        f"transit/{verb}/{name}" for verb in ("rewrap", "decrypt", "encrypt")
    ]
    assert unwrap_dek(provider, keys_file([fresh]), manifest()) == DEK
    alone = server.policy(rules=f'path "transit/rewrap/{name}" {{ capabilities = ["update"] }}\n')
    with pytest.raises(KeyDeniedError, match=f"`update` on transit/decrypt/{name}"):
        server.provider(server.token_file(alone), key).rewrap_key(ours, CONTEXT, AGREES)


def test_a_label_stays(server: Server) -> None:
    provider = server.provider(root(server), server.key())
    fresh = provider.rewrap_key(provider.wrap_key(DEK, CONTEXT).model_copy(update={"label": "eu"}), CONTEXT, AGREES)
    assert fresh is not None
    assert fresh.label == "eu"


@pytest.mark.parametrize("wrapped", [b"", b"vault:v1:AAAA", b"vault:v9:" + b"A" * 80, b"\xff" * 200])
def test_garbage_is_refused(server: Server, wrapped: bytes) -> None:
    provider = server.provider(root(server), server.key())
    entry = recipient("vault", "x", "", wrapped)
    fresh = None
    with contextlib.suppress(EntryRefusedError):  # what looks like a wrapped key, the service is asked about
        fresh = provider.rewrap_key(entry, CONTEXT, AGREES)
    assert fresh is None


# Recipients.


def test_a_model_for_a_file_and_a_vault(leased: Leased, mount: Callable[..., Mounted], tmp_path: Path) -> None:
    """Added to a sealed copy, mounted through each in turn, byte-identical; removed, it no longer opens."""
    generate_kek(tmp_path / "new.kek")
    base = ["--model", "demo", "--trust", leased.sealed.keys.public]
    where = [option for option in leased.options() if option not in ("--renew-every", "--ttl")][2:8]
    assert [where[0], where[2], where[4]] == ["--vault-address", "--vault-ca-file", "--vault-auth"]
    opener = ["--with", f"vault:{leased.key}", *where]
    done = modelfs("recipients", "add", leased.sealed.path, *base, "--kek", f"file:{tmp_path}/new.kek", *opener)
    assert done.returncode == 0, done.stderr
    shown = modelfs("recipients", leased.sealed.path, "--trust", leased.sealed.keys.public)
    assert f"vault:{leased.key}, version 1" in shown.stdout
    for options in (leased.options(), ["--kek", f"file:{tmp_path}/new.kek"]):
        mounted = mount(leased.sealed, *options)
        assert (mounted.path / "model.bin").read_bytes() == PLAIN
        mounted.unmount()
    done = modelfs("recipients", "remove", leased.sealed.path, *base, "--kek", f"vault:{leased.key}", "--with", f"file:{tmp_path}/new.kek")
    assert done.returncode == 0, done.stderr
    assert [entry.name for entry in entries(leased)] == [open_provider(f"{tmp_path}/new.kek").describe()]
    (tmp_path / "refused").mkdir()
    what = ["mount", leased.sealed.path, tmp_path / "refused", "--model", "demo", "--trust", leased.sealed.keys.public]
    done = modelfs(*what, "--state-dir", tmp_path / "state", *leased.options())
    assert (done.returncode, "not wrapped for the KEK" in done.stderr) == (5, True), done.stderr


def test_nobody_can_add_who_cannot_open(leased: Leased, tmp_path: Path) -> None:
    """Encrypting is a publisher's right, and not enough."""
    server, vault = leased.server, leased.server.vault
    generate_kek(tmp_path / "stranger.kek")
    auth = server.token_file(server.policy(rules=f'path "transit/encrypt/{leased.key_name}" {{ capabilities = ["update"] }}\n' + SELF))
    what = ["recipients", "add", leased.sealed.path, "--model", "demo", "--trust", leased.sealed.keys.public]
    vault_options = ["--vault-address", vault.address, "--vault-ca-file", vault.ca.path, "--vault-auth", f"token:{auth.path}"]
    done = modelfs(*what, "--kek", f"file:{tmp_path}/stranger.kek", "--with", f"vault:{leased.key}", *vault_options)
    assert (done.returncode, "`update` on transit/decrypt/" in done.stderr) == (5, True), done.stderr
    assert len(entries(leased)) == 1


def test_the_context_is_this_release_s_alone() -> None:
    """What keeps a rewrapped key where it is."""
    assert len({wrapping_context(MODEL, KEY_ID), wrapping_context("other", KEY_ID), wrapping_context(MODEL, "cd" * 16)}) == 3
