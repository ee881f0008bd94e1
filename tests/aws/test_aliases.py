"""What an alias names, only the service knows: no entry of another key is taken away, kept out or believed for it."""

import json
from base64 import b64decode
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelfs.crypto.signatures import load_trusted_keys
from modelfs.errors import ConfigError, KeyAccessError, KeyDeniedError
from modelfs.format import canonical
from modelfs.format.keysfile import Recipient, keys_file, recipient
from modelfs.format.limits import MAX_UNWRAP_TRIES
from modelfs.keys.aws import AwsProvider
from modelfs.keys.file import open_provider
from modelfs.keys.interface import KeyProvider, unwrap_dek
from modelfs.keys.several import unwrap_by_any
from modelfs.seal.recipients import Change, Subject, add_recipients, remove_recipients, rewrap
from modelfs.store.local import Store
from modelfs.trust.release import read_keys
from tests.aws.emulators import Emulator, credentials_file, environment, provider, use
from tests.aws.impostor import KEY_ARN, Impostor, error
from tests.helpers import MODEL, KeySet, Sealed, write_tree
from tests.leases.impostor import Request
from tests.leases.watching import seal_for
from tests.mount.conftest import modelfs
from tests.vault.server import DEK, manifest

FILES = {"weights": b"w" * 5000}


class Host:
    """Two keys with an alias each, on an emulator, and a model for a KEK file."""

    def __init__(self, emulator: Emulator, keys: KeySet, base: Path) -> None:
        self.a, self.b = emulator.key(), emulator.key()
        kms = emulator.admin()
        for key in (self.a, self.b):
            kms.create_alias(AliasName=self.alias(key), TargetKeyId=key)
        self.variables = environment(emulator.address, credentials_file(base / "credentials"))
        self.keys, self.file = keys, open_provider(str(keys.kek))
        self.sealed = seal_for(self.file, keys, base)

    @staticmethod
    def alias(key: str) -> str:
        return f"alias/{key.rpartition('/')[2]}"

    def change(self, action: Callable[[Subject], Change]) -> Change:
        with Store(self.sealed.path) as store:
            return action(Subject(store, load_trusted_keys([self.keys.public], 1), "demo"))

    def add(self, *references: str, opener: KeyProvider | None = None) -> list[str]:
        """Names of those that were added."""
        providers = [provider(reference) for reference in references]
        change = self.change(lambda subject: add_recipients(subject, [opener or self.file], providers, ""))
        return [entry.key_ref for entry in change.changed]

    def remove(self, reference: str) -> list[str]:
        meant, named = provider(reference), f"awskms:{reference}"
        change = self.change(lambda subject: remove_recipients(subject, [self.file], meant, named, None))
        return [entry.key_ref for entry in change.changed]

    def entries(self) -> list[Recipient]:
        with Store(self.sealed.path) as store:
            return read_keys(store, self.sealed.manifest).recipients

    def plant(self, entries: list[Recipient]) -> None:
        path = self.sealed.path / f"keys/{self.sealed.manifest.key_commitment}.json"
        path.write_bytes(canonical.serialize(keys_file(entries)))

    def opens(self, reference: str) -> bool:
        return len(unwrap_dek(provider(reference), keys_file(self.entries()), self.sealed.manifest)) == 32


@pytest.fixture(params=["moto", "ministack"])
def host(request: pytest.FixtureRequest, keys_dir: KeySet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Host:
    made = Host(request.getfixturevalue(request.param), keys_dir, tmp_path)
    use(monkeypatch, made.variables)
    return made


def test_an_alias_is_added_beside_another_key_of_the_account(host: Host) -> None:
    assert host.add(host.a) == [host.a]
    assert host.add(host.alias(host.b)) == [host.b]
    assert [entry.key_ref for entry in host.entries()][1:] == [host.a, host.b]
    assert host.opens(host.b)


def test_the_key_that_an_alias_names_is_not_added_twice(host: Host) -> None:
    host.add(host.a)
    with pytest.raises(ConfigError, match="is a recipient already"):
        host.add(host.alias(host.a))
    assert host.add(host.alias(host.a), host.b) == [host.b]
    with pytest.raises(ConfigError, match="is a recipient already"):
        host.add(host.alias(host.b))
    assert len(host.entries()) == 3


def test_one_key_by_two_names_is_not_added_twice(host: Host) -> None:
    before = host.entries()
    with pytest.raises(ConfigError, match=f"the KEK awskms:{host.a} is named twice: name it once"):
        host.add(host.alias(host.a), host.a)
    assert host.entries() == before


def test_an_entry_of_the_alias_s_own_key_that_does_not_open_is_complained_about(host: Host) -> None:
    planted = recipient("awskms", host.a, "", b"planted")
    host.plant([*host.entries(), planted])
    with pytest.raises(ConfigError, match=f"an entry claims the KEK awskms:{host.a}, and does not open.*remove it first"):
        host.add(host.alias(host.a))
    assert host.entries()[1:] == [planted]
    assert host.remove(host.a) == [host.a]
    assert host.add(host.alias(host.a)) == [host.a]


def test_removing_an_alias_takes_away_its_own_key_alone(host: Host) -> None:
    host.add(host.a, host.b)
    assert host.remove(host.alias(host.b)) == [host.b]
    assert [entry.key_ref for entry in host.entries()][1:] == [host.a]
    assert host.opens(host.a)


def test_an_alias_whose_key_has_no_entry_takes_nothing_away(host: Host) -> None:
    host.add(host.a)
    before = host.entries()
    with pytest.raises(ConfigError, match=r"an alias may name any of these entries: give the ARN as `modelfs recipients` lists it"):
        host.remove(host.alias(host.b))
    assert host.entries() == before
    assert host.remove(host.a) == [host.a]


def test_the_command_takes_no_other_host_s_entry_away(host: Host) -> None:
    host.add(host.a, host.b)
    subject = [host.sealed.path, "--model", "demo", "--trust", host.keys.public, "--with", f"file:{host.keys.kek}"]
    done = modelfs("recipients", "remove", *subject, "--insecure-http", "--kek", f"awskms:{host.alias(host.a)}", environment=host.variables)
    assert done.returncode == 0, done.stderr
    assert [entry.key_ref for entry in host.entries()][1:] == [host.b]


def test_seal_refuses_one_key_by_two_names(host: Host, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "again", FILES)
    keks = ["--kek", f"awskms:{host.alias(host.a)}", "--kek", f"awskms:{host.a}"]
    options = ["--model", MODEL, "--release", 1, "--insecure-http", "--sign-key", host.keys.signing]
    done = modelfs("seal", source, tmp_path / "out", *options, *keks, environment=host.variables)
    assert (done.returncode, f"the KEK awskms:{host.a} is named twice: name it once" in done.stderr) == (2, True), done.stderr


@pytest.mark.parametrize("first", [True, False])
def test_another_key_s_entry_does_not_end_the_search(host: Host, first: bool) -> None:
    """Nor where the emulator denies it (moto) or opens it to other bytes (ministack)."""
    host.add(*([host.b, host.a] if first else [host.a, host.b]))
    assert host.opens(host.alias(host.a))


# What the service itself says of another key's entry, neither emulator says: the impostor's part.

OTHER_ARN = KEY_ARN.replace("1234abcd", "ffffffff")
KEY_OF = {"alias/a": KEY_ARN, KEY_ARN: KEY_ARN}


class TwoKeys(Impostor):
    """Entries begin with their key's ARN; `denied` are keys that nobody may use, `confused` what it says of another key's entry."""

    denied: tuple[str, ...] = ()
    confused = "IncorrectKeyException"

    def usual(self, request: Request) -> bytes:
        fields = json.loads(request.body)
        key = KEY_OF[fields.get("KeyId", fields.get("SourceKeyId"))]
        if key in self.denied:
            return error("AccessDeniedException")
        if not b64decode(fields["CiphertextBlob"]).startswith(key.encode()):
            return error(self.confused)
        return super().usual(request)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[TwoKeys]:
    made = TwoKeys(None, DEK)
    use(monkeypatch, environment(made.address, credentials_file(tmp_path / "credentials")))
    yield made
    made.close()


def wrapped(key: str, number: int = 0) -> Recipient:
    return recipient("awskms", key, "", f"{key} {number}".encode())


def alias() -> AwsProvider:
    return provider("alias/a")


@pytest.mark.parametrize("confused", ["IncorrectKeyException", "AccessDeniedException"])
def test_a_host_finds_its_own_behind_another_s(service: TwoKeys, confused: str) -> None:
    service.confused = confused
    keys = keys_file([wrapped(OTHER_ARN), wrapped(KEY_ARN)])
    assert alias().prove(keys, manifest(), None, True, 10).dek == DEK
    assert unwrap_by_any([alias()], keys, manifest())[0] == DEK
    assert len(service.sent("Decrypt")) == 4


def test_a_denial_stays_one_whatever_comes_after_it(service: TwoKeys) -> None:
    """Who plants entries must not turn a denial into a wait."""
    service.denied = (KEY_ARN,)
    keys = keys_file([wrapped(OTHER_ARN), *(wrapped(KEY_ARN, number) for number in range(30))])
    for opened_before in (True, False):
        with pytest.raises(KeyDeniedError, match="AccessDeniedException"):
            alias().prove(keys, manifest(), None, opened_before, 10)
    assert len(service.sent("Decrypt")) == 2 * MAX_UNWRAP_TRIES
    answers = iter([error("AccessDeniedException")])
    service.overrides["Decrypt"] = lambda connection: connection.sendall(next(answers, error("ThrottlingException")))
    with pytest.raises(KeyDeniedError, match="AccessDeniedException"):
        alias().prove(keys, manifest(), None, True, 10)


def test_by_its_arn_one_denial_is_enough(service: TwoKeys) -> None:
    service.denied = (KEY_ARN,)
    keys = keys_file([wrapped(OTHER_ARN), wrapped(KEY_ARN), wrapped(KEY_ARN, 1)])
    with pytest.raises(KeyDeniedError):
        provider(KEY_ARN).prove(keys, manifest(), None, True, 10)
    assert len(service.sent("Decrypt")) == 1


@pytest.mark.parametrize("confused", ["IncorrectKeyException", "AccessDeniedException"])
def test_rewrapping_by_an_alias_leaves_another_s_entry(service: TwoKeys, keys_dir: KeySet, tmp_path: Path, confused: str) -> None:
    service.confused = confused
    sealed: Sealed = seal_for(open_provider(str(keys_dir.kek)), keys_dir, tmp_path)
    path = sealed.path / f"keys/{sealed.manifest.key_commitment}.json"
    path.write_bytes(canonical.serialize(keys_file([wrapped(OTHER_ARN), wrapped(KEY_ARN)])))
    with Store(sealed.path) as store:
        subject = Subject(store, load_trusted_keys([keys_dir.public], 1), "demo")
        change = rewrap(subject, [alias()])
        assert change.recipients == [wrapped(OTHER_ARN), recipient("awskms", KEY_ARN, "", b"again")]
        assert any(OTHER_ARN in text and confused in text for text in change.notes)
        service.denied = (KEY_ARN,)
        with pytest.raises(KeyAccessError, match=r"nothing was changed.*AccessDeniedException"):
            rewrap(subject, [alias()])
