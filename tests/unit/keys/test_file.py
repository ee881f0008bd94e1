"""The `file:` provider, and how a DEK is found among recipients."""

import os
from pathlib import Path

import pytest

from modelfs.crypto.kdf import key_commitment
from modelfs.errors import ConfigError, KeyAccessError, KeyDeniedError
from modelfs.format.keysfile import Recipient, keys_file, recipient, wrapping_context
from modelfs.format.manifest import Plan
from modelfs.keys import open_kek
from modelfs.keys.file import FileProvider, generate_kek, open_provider
from modelfs.keys.interface import KeyProvider, unwrap_dek

KEK, DEK, KEY_ID = b"K" * 32, b"D" * 32, "ab" * 16
CONTEXT = wrapping_context("demo", KEY_ID)


def plan(dek: bytes = DEK, model: str = "demo", key_id: str = KEY_ID) -> Plan:
    commitment = key_commitment(dek).hex()
    named = {"key_commitment": commitment, "key_id": key_id, "model": model, "release": 1}
    return Plan(block_size=4096, digest="blake3", format="modelfs/1", recipients="00" * 32, rotates=None, **named)


def test_round_trip() -> None:
    provider = FileProvider(KEK)
    entry = provider.wrap_key(DEK, CONTEXT)
    assert (entry.scheme, entry.label, len(entry.wrapped_key)) == ("file", "", 60)
    assert FileProvider(KEK).unwrap_key(entry, CONTEXT) == DEK
    assert unwrap_dek(provider, keys_file([entry]), plan()) == DEK


def test_wrapping_twice_uses_two_nonces() -> None:
    provider = FileProvider(KEK)
    assert provider.wrap_key(DEK, CONTEXT).wrapped_key[:12] != provider.wrap_key(DEK, CONTEXT).wrapped_key[:12]


def test_entry_holds_neither_key_nor_path(tmp_path: Path) -> None:
    path = tmp_path / "very-secret-name"
    name = generate_kek(path)
    provider = open_provider(str(path))
    assert provider.describe() == name
    for text in (provider.wrap_key(DEK, CONTEXT).model_dump_json(), provider.describe()):
        assert "very-secret-name" not in text
        assert path.read_bytes().hex() not in text


def altered(entry: Recipient, wrapped: bytes) -> Recipient:
    return recipient(entry.scheme, entry.key_ref, entry.label, wrapped)


def test_unwrap_refuses_every_other_kek_context_and_length() -> None:
    provider = FileProvider(KEK)
    entry = provider.wrap_key(DEK, CONTEXT)
    wrapped = entry.wrapped_key
    assert FileProvider(b"k" * 32).unwrap_key(entry, CONTEXT) is None
    for other in (wrapping_context("other", KEY_ID), wrapping_context("demo", "cd" * 16), b""):
        assert provider.unwrap_key(entry, other) is None
    for length in range(len(wrapped)):
        assert provider.unwrap_key(altered(entry, wrapped[:length]), CONTEXT) is None
    assert provider.unwrap_key(altered(entry, wrapped + b"\0"), CONTEXT) is None
    for position in range(len(wrapped)):
        changed = bytearray(wrapped)
        changed[position] ^= 1
        assert provider.unwrap_key(altered(entry, bytes(changed)), CONTEXT) is None


def test_unwrap_dek_names_the_keks_that_could() -> None:
    entry = FileProvider(KEK).wrap_key(DEK, CONTEXT)
    stranger = FileProvider(b"k" * 32)
    with pytest.raises(KeyDeniedError, match=f"not wrapped for the KEK {stranger.describe()}, only for file:{entry.key_ref}"):
        unwrap_dek(stranger, keys_file([entry]), plan())


@pytest.mark.parametrize(
    "wanted",
    [plan(dek=b"E" * 32), plan(model="other"), plan(key_id="cd" * 16)],
    ids=["another DEK is committed to", "another model", "another key id"],
)
def test_unwrap_dek_accepts_only_the_committed_key(wanted: Plan) -> None:
    entry = FileProvider(KEK).wrap_key(DEK, CONTEXT)
    with pytest.raises(KeyDeniedError, match="committed to"):
        unwrap_dek(FileProvider(KEK), keys_file([entry]), wanted)


class Counting(FileProvider):
    """Counts what it is asked to unwrap."""

    asked = 0

    def _unwrap_key(self, recipient: Recipient, context: bytes) -> bytes | None:
        self.asked += 1
        return super()._unwrap_key(recipient, context)


@pytest.mark.parametrize(("before", "found"), [(0, True), (15, True), (16, False), (63, False)])
def test_unwrap_dek_tries_at_most_sixteen_entries(before: int, found: bool) -> None:
    provider = Counting(KEK)
    good = provider.wrap_key(DEK, CONTEXT)
    decoys = [provider.wrap_key(b"E" * 32, CONTEXT) for _ in range(before)]
    keys = keys_file([*decoys, good])
    if found:
        assert unwrap_dek(provider, keys, plan()) == DEK
    else:
        with pytest.raises(KeyDeniedError):
            unwrap_dek(provider, keys, plan())
    assert provider.asked == min(before + 1, 16)


def test_unwrap_dek_skips_other_schemes_and_keks_without_counting_them() -> None:
    provider = Counting(KEK)
    good = provider.wrap_key(DEK, CONTEXT)
    others = [FileProvider(os.urandom(32)).wrap_key(DEK, CONTEXT) for _ in range(30)]
    others += [recipient("vault", good.key_ref, "", good.wrapped_key + bytes([number])) for number in range(30)]
    assert unwrap_dek(provider, keys_file([*others, good]), plan()) == DEK
    assert provider.asked == 1


def test_unwrap_dek_takes_no_key_of_another_length() -> None:
    class Short(FileProvider):
        def _unwrap_key(self, recipient: Recipient, context: bytes) -> bytes | None:
            return b"short"

    with pytest.raises(KeyDeniedError):
        unwrap_dek(Short(KEK), keys_file([FileProvider(KEK).wrap_key(DEK, CONTEXT)]), plan())


class Broken(KeyProvider):
    """Raises what a library might, with a secret in its text."""

    scheme = "broken"

    def describe(self) -> str:
        return "broken:1"

    def is_recipient(self, recipient: Recipient) -> bool:
        return True

    def _wrap_key(self, dek: bytes, context: bytes) -> Recipient:
        raise RuntimeError("answer was s.SECRET")

    def _unwrap_key(self, recipient: Recipient, context: bytes) -> bytes | None:
        raise KeyError("answer was s.SECRET")


def test_only_key_access_errors_escape_a_provider() -> None:
    entry = FileProvider(KEK).wrap_key(DEK, CONTEXT)
    for call in (lambda: Broken().wrap_key(DEK, CONTEXT), lambda: Broken().unwrap_key(entry, CONTEXT)):
        with pytest.raises(KeyAccessError) as caught:
            call()
        assert "SECRET" not in str(caught.value)
        assert caught.value.__cause__ is None
        assert caught.value.__suppress_context__


def test_generate_kek_never_overwrites(tmp_path: Path) -> None:
    generate_kek(tmp_path / "kek")
    before = (tmp_path / "kek").read_bytes()
    with pytest.raises(ConfigError, match="not overwritten"):
        generate_kek(tmp_path / "kek")
    assert (tmp_path / "kek").read_bytes() == before
    assert len(before) == 32
    assert (tmp_path / "kek").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("size", [0, 31, 33, 64])
def test_open_provider_refuses_another_size(tmp_path: Path, size: int) -> None:
    (tmp_path / "kek").write_bytes(bytes(size))
    (tmp_path / "kek").chmod(0o600)
    with pytest.raises(KeyAccessError):
        open_provider(str(tmp_path / "kek"))


@pytest.mark.parametrize("mode", [0o644, 0o660])
def test_open_provider_refuses_a_file_open_to_others(tmp_path: Path, mode: int) -> None:
    (tmp_path / "kek").write_bytes(bytes(32))
    (tmp_path / "kek").chmod(mode)
    with pytest.raises(KeyAccessError, match="chmod 600"):
        open_provider(str(tmp_path / "kek"))


@pytest.mark.parametrize("uri", ["", "file", "file:", ":x", "kms:a/b", "FILE:x", "/etc/kek"])
def test_open_kek_refuses(uri: str) -> None:
    with pytest.raises(ConfigError, match="does not name a KEK"):
        open_kek(uri)


def test_open_kek(tmp_path: Path) -> None:
    name = generate_kek(tmp_path / "a:b")
    assert open_kek(f"file:{tmp_path / 'a:b'}").describe() == name
