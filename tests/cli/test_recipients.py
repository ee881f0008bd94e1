"""`modelfs recipients` and `modelfs rewrap` with KEK files, and `seal` for several: what they print, refuse and leave behind."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs.format import canonical
from modelfs.format.keysfile import Recipient, keys_file, parse_keys, recipient, wrapping_context
from modelfs.format.limits import MAX_KEYS_SIZE
from modelfs.keys.file import generate_kek, open_provider
from modelfs.keys.interface import unwrap_dek
from modelfs.store.local import Store
from modelfs.trust.release import read_keys
from tests.cli.conftest import Cli, Result
from tests.helpers import MODEL, REPOSITORY, KeySet, Sealed, resign, seal, store_files, write_tree

FILES = {"a": b"a" * 9000, "b": b"b" * 100}


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "src", FILES)


@pytest.fixture
def sealed(keys_dir: KeySet, source: Path, tmp_path: Path) -> Sealed:
    seal(keys_dir, source, tmp_path / "sealed")
    return Sealed(tmp_path / "sealed", source, keys_dir, FILES)


@pytest.fixture
def new(tmp_path: Path) -> Path:
    generate_kek(tmp_path / "new.kek")
    return tmp_path / "new.kek"


def entries(sealed: Sealed) -> list[Recipient]:
    with Store(sealed.path) as store:
        return read_keys(store, sealed.manifest).recipients


def keys_path(sealed: Sealed) -> Path:
    return sealed.path / f"keys/{sealed.manifest.key_commitment}.json"


def change(cli: Cli, sealed: Sealed, what: str, *more: object, model: str = MODEL) -> Result:
    command = ("rewrap",) if what == "rewrap" else ("recipients", what)
    return cli.run(*command, sealed.path, "--model", model, "--trust", cli.keys.public, *more)


def opens(sealed: Sealed, kek: Path) -> bool:
    with Store(sealed.path) as store:
        keys = read_keys(store, sealed.manifest)
    provider = open_provider(str(kek))
    return any(map(provider.is_recipient, keys.recipients)) and len(unwrap_dek(provider, keys, sealed.manifest)) == 32


def others(sealed: Sealed) -> dict[str, bytes]:
    """Everything but the keys file."""
    return {name: (sealed.path / name).read_bytes() for name in store_files(sealed.path) if not name.startswith("keys/")}


def test_seal_for_several_and_list_them(cli: Cli, source: Path, new: Path, tmp_path: Path) -> None:
    cli.seal(source, tmp_path / "two", "--kek", f"file:{new}").succeeds()
    two = Sealed(tmp_path / "two", source, cli.keys)
    assert [entry.name for entry in entries(two)] == [cli.keys.provider().describe(), open_provider(str(new)).describe()]
    assert opens(two, cli.keys.kek)
    assert opens(two, new)
    for spelling in (("recipients",), ("recipients", "list")):
        shown = cli.run(*spelling, two.path).succeeds().out
        assert "NOT VERIFIED" in shown
        assert all(entry.name in shown for entry in entries(two))
    shown = cli.run("recipients", "--trust", cli.keys.public, two.path).succeeds().out
    assert ("signed by" in shown, "NOT VERIFIED" in shown) == (True, False)
    answer = cli.run("recipients", two.path, "--json").succeeds().json
    assert (answer["model"], answer["release"], answer["verified"], answer["signed_by"]) == (MODEL, 1, False, None)
    assert [(each["scheme"], each["label"], each["key_version"]) for each in answer["recipients"]] == 2 * [("file", "", None)]
    assert cli.run("recipients", two.path, "--trust", cli.keys.public, "--json").succeeds().json["verified"] is True
    cli.run("recipients", two.path, "--trust", cli.keys.stranger_public).fails(4, "signed by 0 of the trusted keys")
    cli.run("recipients", tmp_path).fails(2, "holds no sealed model")
    cli.run("recipients", tmp_path / "none").fails(6, "none")


def test_seal_refuses_one_kek_twice(cli: Cli, source: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(cli.keys.kek)
    cli.seal(source, tmp_path / "two", "--kek", f"file:{tmp_path}/link").fails(2, "named twice")
    assert not (tmp_path / "two").exists()


def test_a_later_release_is_reused_by_whichever_kek_opens_the_one_before(cli: Cli, source: Path, sealed: Sealed, new: Path) -> None:
    options = ["--model", MODEL, "--release", 2, "--sign-key", cli.keys.signing, "--trust", cli.keys.public, "--block-size", "4K", "--json"]
    keks = ["--kek", f"file:{new}", "--kek", f"file:{cli.keys.kek}"]
    answer = cli.run("seal", source, sealed.path, *options, *keks).succeeds().json
    assert (answer["reused"], answer["encrypted"]) == (2, 0)
    assert len(entries(sealed)) == 2


def test_add_and_remove(cli: Cli, sealed: Sealed, new: Path) -> None:
    before, first = others(sealed), entries(sealed)
    told = change(cli, sealed, "add", "--kek", f"file:{new}", "--with", f"file:{cli.keys.kek}", "--label", "spare").succeeds().out
    assert "labelled 'spare'" in told
    assert opens(sealed, new)
    assert entries(sealed)[:1] == first, "what was there is kept byte for byte"
    assert entries(sealed)[1].label == "spare"
    assert others(sealed) == before
    assert sealed.read() == FILES
    removed = change(cli, sealed, "remove", "--kek", f"file:{cli.keys.kek}", "--with", f"file:{new}", "--json")
    assert removed.code == 0
    assert "still opens this release" in removed.err
    assert "rotate" in removed.err
    assert "was seen to open" not in removed.err, "the other one has just opened it"
    assert [each["scheme"] for each in removed.json["removed"]] == ["file"]
    assert not opens(sealed, cli.keys.kek)
    cli.inspect(sealed.path).fails(5, "not wrapped for the KEK", open_provider(str(new)).describe())
    assert opens(sealed, new)


def test_the_kek_that_is_added_may_stand_beside_one_that_opens_it(cli: Cli, sealed: Sealed, new: Path) -> None:
    done = change(cli, sealed, "add", "--kek", f"file:{cli.keys.kek}", "--kek", f"file:{new}")
    assert done.code == 0, done.err
    assert "is a recipient already" in done.err
    assert opens(sealed, new)
    assert len(entries(sealed)) == 2


def test_a_configuration_s_keks_open_it(cli: Cli, sealed: Sealed, new: Path, tmp_path: Path) -> None:
    config = tmp_path / "host.toml"
    config.write_text(f'sealed = "{sealed.path}"\nmodel = "demo"\ntrust = ["{cli.keys.public}"]\nkek = ["file:{cli.keys.kek}"]\n')
    cli.run("recipients", "add", "--config", config, "--kek", f"file:{new}").succeeds()
    assert opens(sealed, new)
    answer = cli.run("rewrap", "--config", config, "--json").succeeds().json
    assert [len(answer[name]) for name in ("rewrapped", "untouched")] == [1, 1]


def test_the_removed_kek_may_open_it_itself_or_be_lost(cli: Cli, sealed: Sealed, new: Path) -> None:
    change(cli, sealed, "add", "--kek", f"file:{new}", "--with", f"file:{cli.keys.kek}").succeeds()
    name = open_provider(str(new)).describe()
    done = change(cli, sealed, "remove", "--kek", f"file:{new}")
    assert (done.code, "none of the recipients that are left was seen to open the model" in done.err) == (0, True)
    change(cli, sealed, "add", "--kek", f"file:{new}", "--with", f"file:{cli.keys.kek}").succeeds()
    new.unlink()
    change(cli, sealed, "remove", "--kek", name).fails(2, "--with URI")
    assert change(cli, sealed, "remove", "--kek", name, "--with", f"file:{cli.keys.kek}").code == 0
    assert [entry.name for entry in entries(sealed)] == [cli.keys.provider().describe()]


def test_rewrap_a_kek_file_and_leave_the_others(cli: Cli, sealed: Sealed, new: Path) -> None:
    change(cli, sealed, "add", "--kek", f"file:{new}", "--with", f"file:{cli.keys.kek}", "--label", "spare").succeeds()
    before, untouched = entries(sealed), others(sealed)
    told = change(cli, sealed, "rewrap", "--kek", f"file:{new}").succeeds().out
    after = entries(sealed)
    assert after[0] == before[0]
    assert (after[1].name, after[1].label) == (before[1].name, "spare")
    assert after[1].wrapped != before[1].wrapped
    assert f"untouched: {before[0].name}" in told
    assert others(sealed) == untouched
    assert opens(sealed, new)


REFUSED: dict[str, tuple[str, Callable[[Cli, Path], list[object]], int, str]] = {
    "add: no KEK opens it": ("add", lambda cli, new: ["--kek", f"file:{new}"], 2, "--with URI"),
    "add: the wrong KEK": ("add", lambda cli, new: ["--kek", f"file:{new}", "--with", f"file:{cli.keys.stranger_kek}"], 5, "not wrapped"),
    "add: twice": ("add", lambda cli, new: ["--kek", f"file:{cli.keys.kek}"], 2, "is a recipient already"),
    "add: twice under another label": ("add", lambda cli, new: ["--kek", f"file:{cli.keys.kek}", "--label", "x"], 2, "recipient already"),
    "add: no such KEK": ("add", lambda cli, new: ["--kek", f"file:{new}x", "--with", f"file:{cli.keys.kek}"], 5, "No such file"),
    "add: a long label": (
        "add", lambda cli, new: ["--kek", f"file:{new}", "--with", f"file:{cli.keys.kek}", "--label", "x" * 1025], 2, "a label is at most",
    ),
    "add: a label of two lines": (
        "add", lambda cli, new: ["--kek", f"file:{new}", "--with", f"file:{cli.keys.kek}", "--label", "a\nb"], 2, "a label is at most",
    ),
    "remove: the last": ("remove", lambda cli, new: ["--kek", f"file:{cli.keys.kek}"], 2, "the last recipient"),
    "remove: no recipient": ("remove", lambda cli, new: ["--kek", f"file:{new}", "--with", f"file:{cli.keys.kek}"], 2, "is no recipient"),
    "remove: two": ("remove", lambda cli, new: ["--kek", "file:a", "--kek", "file:b", "--with", f"file:{cli.keys.kek}"], 2, "one KEK"),
    "rewrap: no recipient": ("rewrap", lambda cli, new: ["--kek", f"file:{new}"], 5, "not wrapped for the KEK"),
    "rewrap: one of two": ("rewrap", lambda cli, new: ["--kek", f"file:{cli.keys.kek}", "--kek", f"file:{new}"], 5, "not wrapped for"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_in_one_sentence_and_nothing_changed(cli: Cli, sealed: Sealed, new: Path, case: str) -> None:
    what, options, code, text = REFUSED[case]
    before = {name: (sealed.path / name).read_bytes() for name in store_files(sealed.path)}
    change(cli, sealed, what, *options(cli, new)).fails(code, text)
    assert {name: (sealed.path / name).read_bytes() for name in store_files(sealed.path)} == before


def another_model(sealed: Sealed) -> None:
    resign(sealed, lambda payload: payload.update(model="other"))


def a_stranger(sealed: Sealed) -> None:
    resign(sealed, lambda payload: None, sealed.keys.stranger_signing)


def another_dek(sealed: Sealed) -> None:
    """Under the right KEK, by somebody who may encrypt with it."""
    manifest = sealed.manifest
    entry = sealed.keys.provider().wrap_key(b"\xee" * 32, wrapping_context(manifest.model, manifest.key_id))
    keys_path(sealed).write_bytes(canonical.serialize(keys_file([entry])))


@pytest.mark.parametrize(
    ("plant", "code", "text"),
    [
        (another_model, 4, "this is the model 'other'"),
        (a_stranger, 4, "signed by 0 of the trusted keys"),
        (another_dek, 5, "the keys file was altered"),
    ],
)
@pytest.mark.parametrize("what", ["add", "remove", "rewrap"])
def test_nothing_is_wrapped_for_what_a_storage_writer_planted(
    cli: Cli, sealed: Sealed, new: Path, what: str, plant: Callable[[Sealed], None], code: int, text: str
) -> None:
    if what == "remove":
        change(cli, sealed, "add", "--kek", f"file:{new}", "--with", f"file:{cli.keys.kek}").succeeds()
    plant(sealed)
    if what == "remove" and plant is another_dek:
        text, code = "the last recipient", 2
    before = {name: (sealed.path / name).read_bytes() for name in store_files(sealed.path)}
    meant = cli.keys.kek if what != "add" else new
    more = ["--with", f"file:{cli.keys.kek}"] if what != "rewrap" else []
    if code == 5 and what == "rewrap":
        text = "does not open to the key that the publisher committed to"
    change(cli, sealed, what, "--kek", f"file:{meant}", *more).fails(code, text)
    assert {name: (sealed.path / name).read_bytes() for name in store_files(sealed.path)} == before


def test_all_need_trust_and_the_threshold(cli: Cli, sealed: Sealed, new: Path) -> None:
    for what in (("recipients", "add"), ("recipients", "remove"), ("rewrap",)):
        base = [*what, sealed.path, "--model", MODEL, "--kek", f"file:{cli.keys.kek}"]
        cli.run(*base).fails(2, "--trust")
        both = ["--trust", cli.keys.public, "--trust", cli.keys.stranger_public, "--threshold", 2]
        result = cli.run(*base, *both)
        assert result.code == 4, result


def test_no_more_than_64_and_no_more_than_hosts_try(cli: Cli, sealed: Sealed, new: Path) -> None:
    own, foreign = entries(sealed)[0], [recipient("file", f"{n:016x}", "", n.to_bytes(60)) for n in range(63)]
    keys_path(sealed).write_bytes(canonical.serialize(keys_file([own, *foreign])))
    options = ["--kek", f"file:{new}", "--with", f"file:{cli.keys.kek}"]
    change(cli, sealed, "add", *options).fails(2, "at most 64 recipients")
    name = open_provider(str(new)).describe().removeprefix("file:")
    keys_path(sealed).write_bytes(canonical.serialize(keys_file([own, recipient("file", name, "", b"planted")])))
    change(cli, sealed, "add", *options).fails(2, "an entry claims", "does not open", "remove it first")
    large = keys_file([own, *(recipient("x", "y", str(n), bytes([n]) * 16384) for n in range(47))])
    room = MAX_KEYS_SIZE - len(canonical.serialize(large)) - 100  # less than an entry takes
    filler = recipient("x", "z", "", bytes((room - 60) // 4 * 3))
    data = canonical.serialize(keys_file([*large.recipients, filler]))
    assert 0 < MAX_KEYS_SIZE - len(data) < 150
    keys_path(sealed).write_bytes(data)
    change(cli, sealed, "add", *options).fails(3, "remove recipients first")


def test_another_writer_is_waited_for_by_the_person(cli: Cli, sealed: Sealed, new: Path) -> None:
    with Store(sealed.path) as store, store.writer_lock():
        for what, options in (
            ("add", ["--kek", f"file:{new}", "--with", f"file:{cli.keys.kek}"]),
            ("rewrap", ["--kek", f"file:{cli.keys.kek}"]),
        ):
            change(cli, sealed, what, *options).fails(6, "another modelfs command is writing")


@pytest.mark.parametrize("at", ["write", "fsync", "rename", "fsync of the directory"])
def test_killed_at_any_step_the_old_file_or_the_new_one_is_whole(cli: Cli, sealed: Sealed, new: Path, at: str) -> None:
    """SIGKILL inside the command, right before each step that makes the new file durable."""
    program = f"""
import os, signal, sys
count = 0
def die(really, name, wanted):
    def call(*args, **options):
        global count
        if name == "fsync":
            count += 1
        if wanted == name or (wanted == "fsync of the directory" and name == "fsync" and count == 3):
            os.kill(os.getpid(), signal.SIGKILL)
        return really(*args, **options)
    return call
from modelfs.store import local
really = local.Store.write_file
def write_file(self, path, data):
    assert path.startswith("keys/")
    os.fsync, os.rename = die(os.fsync, "fsync", {at!r}), die(os.rename, "rename", {at!r})
    global count
    count = 1
    if {at!r} == "write":
        os.kill(os.getpid(), signal.SIGKILL)
    return really(self, path, data)
local.Store.write_file = write_file
from modelfs.cli.app import main
main()
"""
    command = ["recipients", "add", sealed.path, "--model", MODEL, "--trust", cli.keys.public]
    command += ["--kek", f"file:{new}", "--with", f"file:{cli.keys.kek}"]
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", program, *map(str, command)], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr
    parse_keys(keys_path(sealed).read_bytes())
    assert opens(sealed, cli.keys.kek)
    assert opens(sealed, new) == (at == "fsync of the directory")
    if at != "fsync of the directory":
        change(cli, sealed, "add", "--kek", f"file:{new}", "--with", f"file:{cli.keys.kek}").succeeds()
    assert opens(sealed, new)
    assert sealed.read() == FILES


def test_what_lies_in_pending_is_not_whom_a_resumed_seal_wraps_for(cli: Cli, source: Path, new: Path, tmp_path: Path) -> None:
    """Whose KEK opens an unfinished seal could add a stranger to its keys."""
    from tests.adversarial.test_planted import interrupted_seal

    path = tmp_path / "sealed"
    interrupted_seal(cli.keys, source, path, keks=[cli.keys.kek, new])
    pending = path / "pending/keys.json"
    own = parse_keys(pending.read_bytes()).recipients
    stranger = open_provider(str(cli.keys.stranger_kek)).wrap_key(b"\xee" * 32, b"x")
    pending.write_bytes(canonical.serialize(keys_file([*own, stranger])))
    done = cli.seal(source, path, "--kek", f"file:{new}", "--json")
    assert done.json["resumed"] == 2, done
    sealed = Sealed(path, source, cli.keys)
    assert [entry.name for entry in entries(sealed)] == [cli.keys.provider().describe(), open_provider(str(new)).describe()]
    assert opens(sealed, new)
