"""What a storage writer does to keys.json: it is not signed, so every entry is refused that does not open to the committed key."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelfs.format import canonical
from modelfs.format.keysfile import KeysFile, Recipient, keys_file, recipient, wrapping_context
from modelfs.keys.file import generate_kek, open_provider
from modelfs.store.local import Store
from modelfs.trust.release import read_keys
from tests.cli.conftest import Cli, cli, run
from tests.helpers import MODEL, KeySet, Sealed, seal, write_tree

__all__ = ["cli", "run"]

FILES = {"a": b"a" * 9000, "b": b"b" * 100}


@dataclass
class Scene:
    """A model for two KEKs; a release before it; another model for the same KEKs."""

    sealed: Sealed
    before: list[Recipient]
    other: list[Recipient]
    second_kek: Path

    @property
    def path(self) -> Path:
        return self.sealed.path / f"keys/{self.sealed.manifest.key_commitment}.json"

    def entries(self) -> list[Recipient]:
        with Store(self.sealed.path) as store:
            return read_keys(store, self.sealed.manifest).recipients

    def write(self, entries: list[Recipient]) -> None:
        # Not by the constructor, which refuses what a reader must refuse.
        self.path.write_bytes(canonical.serialize(KeysFile.model_construct(format="modelfs/1/keys", recipients=entries)))

    def planted(self, count: int) -> list[Recipient]:
        """By somebody who may encrypt with the KEK, for this very release, each with another key."""
        manifest, provider = self.sealed.manifest, self.sealed.keys.provider()
        context = wrapping_context(manifest.model, manifest.key_id)
        return [provider.wrap_key(os.urandom(32), context) for _ in range(count)]


def recipients_of(path: Path, source: Path, keys: KeySet) -> list[Recipient]:
    sealed = Sealed(path, source, keys)
    with Store(path) as store:
        return read_keys(store, sealed.manifest).recipients


@pytest.fixture
def scene(keys_dir: KeySet, cli: Cli, tmp_path: Path) -> Scene:
    generate_kek(tmp_path / "second.kek")
    source = write_tree(tmp_path / "src", FILES)
    second = ["--kek", f"file:{tmp_path}/second.kek"]
    cli.seal(source, tmp_path / "sealed", *second).succeeds()
    before = recipients_of(tmp_path / "sealed", source, keys_dir)
    cli.seal(source, tmp_path / "sealed", *second, release=2, trust=True).succeeds()
    seal(keys_dir, source, tmp_path / "other", model="other")
    other = recipients_of(tmp_path / "other", source, keys_dir)
    return Scene(Sealed(tmp_path / "sealed", source, keys_dir, FILES), before, other, tmp_path / "second.kek")


def replaced(entry: Recipient, wrapped: bytes) -> Recipient:
    return recipient(entry.scheme, entry.key_ref, entry.label, wrapped)


def flipped(entry: Recipient, at: int) -> Recipient:
    wrapped = bytearray(entry.wrapped_key)
    wrapped[at] ^= 1
    return replaced(entry, bytes(wrapped))


def swapped(entries: list[Recipient]) -> list[Recipient]:
    one, two = entries
    return [replaced(one, two.wrapped_key), replaced(two, one.wrapped_key)]


ALTERED = "no wrapped key for the KEK"
PLANTS: dict[str, tuple[Callable[[Scene, list[Recipient]], list[Recipient]], int, str]] = {
    "foreign": (lambda scene, own: [recipient("file", "0" * 16, "", b"x" * 60)], 5, "the model is not wrapped for the KEK"),
    "of other schemes": (lambda scene, own: [replaced(own[0], b"x").model_copy(update={"scheme": "awskms"})], 5, "is not wrapped for"),
    "renamed": (lambda scene, own: [own[1].model_copy(update={"key_ref": own[0].key_ref})], 5, ALTERED),
    "swapped": (lambda scene, own: swapped(own), 5, ALTERED),
    "tampered: nonce": (lambda scene, own: [flipped(own[0], 0)], 5, ALTERED),
    "tampered: key": (lambda scene, own: [flipped(own[0], 20)], 5, ALTERED),
    "tampered: tag": (lambda scene, own: [flipped(own[0], 59)], 5, ALTERED),
    "shorter": (lambda scene, own: [replaced(own[0], own[0].wrapped_key[:-1])], 5, ALTERED),
    "longer": (lambda scene, own: [replaced(own[0], own[0].wrapped_key + b"x")], 5, ALTERED),
    "of the release before": (lambda scene, own: scene.before, 5, ALTERED),
    "of another model": (lambda scene, own: scene.other, 5, ALTERED),
    "of another key": (lambda scene, own: scene.planted(1), 5, ALTERED),
    "repeated": (lambda scene, own: [*own, own[0]], 3, "a wrapped key is there twice"),
    "repeated under another label": (lambda scene, own: [own[0].model_copy(update={"label": "x"}), *own], 3, "is there twice"),
    "repeated under another name": (lambda scene, own: [own[0], own[0].model_copy(update={"key_ref": "0" * 16})], 3, "is there twice"),
    "behind more than are tried": (
        lambda scene, own: [*scene.planted(16), *own], 5, "17 entries claim this KEK, of which 16 are tried",
    ),
    "nobody": (lambda scene, own: [], 3, "recipients"),
    "65": (lambda scene, own: [*own, *(recipient("file", f"{n:016x}", "", bytes([n])) for n in range(63))], 3, "recipients"),
    "a wrapped key that is too long": (lambda scene, own: [*own, recipient("x", "y", "", b"x")], 3, "wrapped"),
}  # fmt: skip


@pytest.mark.parametrize("case", PLANTS)
def test_refused_with_the_reason(scene: Scene, cli: Cli, case: str) -> None:
    plant, code, text = PLANTS[case]
    entries = plant(scene, scene.entries())
    if case.startswith("a wrapped key"):
        entries[-1] = Recipient.model_construct(scheme="x", key_ref="y", label="", wrapped="A" * 22000)
    scene.write(entries)
    cli.inspect(scene.sealed.path).fails(code, text)
    cli.run("rewrap", scene.sealed.path, "--model", MODEL, "--trust", cli.keys.public, "--kek", f"file:{cli.keys.kek}").fails(code)
    if case == "swapped":
        base = ["inspect", scene.sealed.path, "--trust", cli.keys.public]
        cli.run(*base, "--kek", f"file:{scene.second_kek}").fails(5, ALTERED)


def test_what_opens_is_found_among_what_does_not(scene: Scene, cli: Cli) -> None:
    """As many as may be tried, and foreign ones in any number."""
    own = scene.entries()
    foreign = [recipient("file", f"{n:016x}", "", bytes([n])) for n in range(40)]
    scene.write([*foreign, *scene.planted(14), flipped(own[0], 3), *own])
    assert scene.sealed.read() == FILES
    done = cli.run("rewrap", scene.sealed.path, "--model", MODEL, "--trust", cli.keys.public, "--kek", f"file:{cli.keys.kek}")
    assert done.code == 0, done
    assert done.err.count("is left as it is: it does not open to the key that the publisher committed to") == 15
    after = scene.entries()
    changed = [
        place for place, (old, new) in enumerate(zip([*foreign, *([None] * 15), *own], after, strict=True)) if old not in (None, new)
    ]
    assert changed == [55], "only the entry that opens was made new"
    assert scene.sealed.read() == FILES


def test_a_huge_file_is_not_read(scene: Scene, cli: Cli) -> None:
    os.truncate(scene.path, 1 << 40)
    cli.inspect(scene.sealed.path).fails(3, "more than the limit of 1048576")
    cli.run("recipients", scene.sealed.path).fails(3, "more than the limit of 1048576")


def test_a_link_or_a_pipe_in_its_place(scene: Scene, cli: Cli, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(scene.path.read_bytes())
    add = ["recipients", "add", scene.sealed.path, "--model", MODEL, "--trust", cli.keys.public, "--kek", f"file:{cli.keys.stranger_kek}"]
    scene.path.unlink()
    scene.path.symlink_to(secret)
    cli.run(*add, "--with", f"file:{cli.keys.kek}").fails(6, "not a regular file")
    scene.path.unlink()
    os.mkfifo(scene.path)
    cli.run(*add, "--with", f"file:{cli.keys.kek}").fails(6, "not a regular file")
    assert secret.read_bytes().count(b"wrapped") == 2


def test_names_and_labels_do_not_drive_the_terminal(scene: Scene, cli: Cli) -> None:
    scene.write([*scene.entries(), recipient("file", "\x1b[2J\n", "\x1b]0;x\x07", b"x")])
    for out in (cli.run("recipients", scene.sealed.path).succeeds().out, cli.inspect(scene.sealed.path).succeeds().out):
        assert all(line.isprintable() for line in out.splitlines())
        assert "\\x1b[2J\\n" in out


def test_a_removed_recipient_no_longer_opens_and_who_kept_the_file_does(scene: Scene, cli: Cli) -> None:
    """As docs/DESIGN.md says: removing is no revocation."""
    kept = scene.path.read_bytes()
    base = ["recipients", "remove", scene.sealed.path, "--model", MODEL, "--trust", cli.keys.public]
    assert cli.run(*base, "--kek", f"file:{scene.second_kek}", "--with", f"file:{cli.keys.kek}").code == 0
    look = ["inspect", scene.sealed.path, "--trust", cli.keys.public, "--kek", f"file:{scene.second_kek}"]
    cli.run(*look).fails(5, "not wrapped for the KEK", open_provider(str(scene.second_kek)).describe())
    scene.path.write_bytes(kept)
    cli.run(*look).succeeds()


def test_a_keys_file_of_this_version_has_no_entry_twice(scene: Scene) -> None:
    with pytest.raises(ValueError, match="twice"):
        keys_file([scene.entries()[0]] * 2)
