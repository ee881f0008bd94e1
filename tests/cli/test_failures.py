"""What goes wrong for publishers and auditors: the exit code, one sentence that says what to do, no traceback."""

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest

from modelfs.cli import model as model_module
from modelfs.format import canonical
from modelfs.format.keysfile import keys_file, recipient
from modelfs.store.local import Store
from tests.cli.conftest import Cli, Result
from tests.helpers import MODEL, NOW, KeySet, Sealed, read_all, resign, seal, write_manifest, write_tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "src", {"a": b"a" * 9000, "b": b"b" * 100})


@pytest.fixture
def sealed(keys_dir: KeySet, source: Path, tmp_path: Path) -> Sealed:
    path = tmp_path / "sealed"
    seal(keys_dir, source, path)
    return Sealed(path, source, keys_dir, {"a": b"a" * 9000, "b": b"b" * 100})


# -- keys


def kek(cli: Cli, tmp_path: Path, kind: str) -> Path:
    path = tmp_path / "some.kek"
    if kind != "missing":
        path.write_bytes(bytes(33 if kind == "too long" else 31 if kind == "too short" else 32))
        path.chmod(0o640 if kind == "group may read" else 0o600)
    return path


KEKS = {
    "missing": "No such file or directory",
    "group may read": "chmod 600 it",
    "too long": "longer than 32 bytes",
    "too short": "modelfs keygen kek",
}


@pytest.mark.parametrize(("kind", "text"), KEKS.items(), ids=KEKS)
def test_unusable_kek(cli: Cli, source: Path, sealed: Sealed, tmp_path: Path, kind: str, text: str) -> None:
    uri = f"file:{kek(cli, tmp_path, kind)}"
    options = ("--model", MODEL, "--release", 1, "--sign-key", cli.keys.signing)
    cli.run("seal", source, tmp_path / "new", "--kek", uri, *options).fails(5, text, "some.kek")
    assert not (tmp_path / "new").exists()
    cli.run("inspect", sealed.path, "--trust", cli.keys.public, "--kek", uri).fails(5, text, "some.kek")


def test_foreign_kek(cli: Cli, sealed: Sealed) -> None:
    result = cli.run("inspect", sealed.path, "--trust", cli.keys.public, "--kek", f"file:{cli.keys.stranger_kek}")
    result.fails(5, "not wrapped for the KEK file:", "use the right KEK")
    assert result.out == ""


@pytest.mark.parametrize("uri", ["kek", "kms:transit/x", "file:"])
def test_kek_uri_that_names_none(cli: Cli, source: Path, tmp_path: Path, uri: str) -> None:
    options = ("--model", MODEL, "--release", 1, "--sign-key", cli.keys.signing)
    cli.run("seal", source, tmp_path / "new", "--kek", uri, *options).fails(2, "does not name a KEK", "file:/etc/modelfs/kek")


@pytest.mark.parametrize(
    ("key", "text"),
    [("missing", "cannot read the signing key"), ("public", "open to group or others"), ("kek", "not an unencrypted Ed25519")],
)
def test_unusable_signing_key(cli: Cli, source: Path, tmp_path: Path, key: str, text: str) -> None:
    path = {"missing": tmp_path / "none.pem", "public": cli.keys.public, "kek": cli.keys.kek}[key]
    options = ("--model", MODEL, "--release", 1, "--kek", f"file:{cli.keys.kek}", "--sign-key", path)
    cli.run("seal", source, tmp_path / "new", *options).fails(2, text)


# -- trust


def test_wrong_trust_key(cli: Cli, source: Path, sealed: Sealed) -> None:
    stranger = cli.keys.stranger_public
    cli.run("verify", sealed.path, "--trust", stranger).fails(4, "signed by 0 of the trusted keys", "--trust")
    cli.run("inspect", sealed.path, "--trust", stranger).fails(4, "signed by 0 of the trusted keys")
    cli.seal(source, sealed.path, "--trust", stranger, release=2).fails(4, "signed by 0 of the trusted keys")


def test_no_trust_key(cli: Cli, source: Path, sealed: Sealed) -> None:
    cli.run("verify", sealed.path).fails(2, "no trusted key", "--trust")
    cli.run("inspect", sealed.path, "--kek", f"file:{cli.keys.kek}").fails(2, "--trust")
    cli.seal(source, sealed.path, release=2).fails(2, "holds a release already", "--trust")


def test_private_key_given_to_trust(cli: Cli, sealed: Sealed) -> None:
    cli.run("verify", sealed.path, "--trust", cli.keys.signing).fails(2, "is a private key", ".pub")


def test_threshold_not_met(cli: Cli, sealed: Sealed) -> None:
    both = ("--trust", cli.keys.public, "--trust", cli.keys.stranger_public)
    assert cli.run("verify", sealed.path, *both, "--threshold", 1).code == 0
    cli.run("verify", sealed.path, *both, "--threshold", 2).fails(4, "by 1 of the trusted keys and needs 2")
    cli.run("verify", sealed.path, *both, "--threshold", 3).fails(2, "threshold of 3 cannot be met by 2")
    cli.run("verify", sealed.path, "--trust", cli.keys.public, "--trust", cli.keys.public, "--threshold", 2).fails(2, "by 1 distinct")


# -- releases


def test_expired_manifest(cli: Cli, source: Path, tmp_path: Path) -> None:
    seal(cli.keys, source, tmp_path / "old", expires=NOW + timedelta(days=1))
    cli.verify(tmp_path / "old").fails(4, "expired at 2025-06-02T12:00:00Z", "ask its publisher for a newer one")
    # Looking at it, and replacing it, is still allowed.
    assert cli.inspect(tmp_path / "old", "--json").json["expires"] == "2025-06-02T12:00:00Z"
    cli.seal(source, tmp_path / "old", release=2, trust=True).succeeds()
    assert cli.verify(tmp_path / "old").code == 0


@pytest.mark.parametrize("release", [1, 2])
def test_release_that_does_not_grow(cli: Cli, keys_dir: KeySet, source: Path, sealed: Sealed, release: int) -> None:
    seal(keys_dir, source, sealed.path, release=2)
    before = (sealed.path / "manifest.json").read_bytes()
    cli.seal(source, sealed.path, release=release, trust=True).fails(4, f"release {release} does not grow", "use 3 or more")
    assert (sealed.path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--release", 0), "from 1 to"),
        (("--release", 1 << 53), "from 1 to"),
        (("--model", "a/b"), "is no model name"),
        (("--model", ""), "is no model name"),
        (("--block-size", "5K"), "power of two from 4K to 4M"),
        (("--block-size", "8M"), "power of two from 4K to 4M"),
        (("--block-size", "x"), "power of two from 4K to 4M"),
        (("--expires", "soon"), "use YYYY-MM-DD"),
        (("--expires", ""), "use YYYY-MM-DD"),
        (("--expires", "2001-01-01"), "has passed already"),
        (("--expires", "9999-12-31T23:59:59-14:00"), "use YYYY-MM-DD"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_unusable_value(cli: Cli, source: Path, tmp_path: Path, options: tuple[str, object], text: str) -> None:
    cli.seal(source, tmp_path / "new", *options).fails(2, text)
    assert not (tmp_path / "new").exists()


# -- places


def test_destination_that_is_not_empty(cli: Cli, source: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_bytes(b"precious")
    cli.seal(source, tmp_path / "full").fails(2, "is not empty and holds no sealed model")
    assert os.listdir(tmp_path / "full") == ["thesis.txt"]


@pytest.mark.parametrize("kind", ["file", "no parent"])
def test_destination_that_cannot_be_one(cli: Cli, source: Path, tmp_path: Path, kind: str) -> None:
    (tmp_path / "file").write_bytes(b"precious")
    cli.seal(source, tmp_path / ("file" if kind == "file" else "no/such")).fails(2, "cannot use the destination")
    assert (tmp_path / "file").read_bytes() == b"precious"


def test_missing_source(cli: Cli, tmp_path: Path) -> None:
    cli.seal(tmp_path / "nothing", tmp_path / "new").fails(2, "cannot read the source", "nothing: No such file or directory")
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("case", ["same", "source inside", "destination inside", "through a symlink"])
def test_source_and_destination_within_each_other(cli: Cli, source: Path, tmp_path: Path, case: str) -> None:
    (tmp_path / "link").symlink_to(source)
    (source / "sub").mkdir()
    one, two = {
        "same": (source, source),
        "source inside": (source / "sub", source),
        "destination inside": (source, source / "sub"),
        "through a symlink": (source, tmp_path / "link" / "sub"),
    }[case]
    cli.seal(one, two).fails(2, "lie within each other")
    assert sorted(os.listdir(source)) == ["a", "b", "sub"]


@pytest.mark.parametrize("command", ["verify", "inspect", "gc"])
@pytest.mark.parametrize("kind", ["missing", "empty"])
def test_no_sealed_model(cli: Cli, tmp_path: Path, command: str, kind: str) -> None:
    path = tmp_path / "place"
    if kind == "empty":
        path.mkdir()
    trust = ("--trust", cli.keys.public) if command == "verify" else ()
    result = cli.run(command, path, *trust)
    result.fails(6 if kind == "missing" or command == "verify" else 2, str(path))
    assert not path.exists() or os.listdir(path) == []


def test_hugging_face_snapshot_names_the_flag(cli: Cli, tmp_path: Path) -> None:
    write_tree(tmp_path / "hub", {"blobs/123": b"{}"}, {"snapshots/abc/config.json": "../../blobs/123"})
    snapshot = tmp_path / "hub" / "snapshots" / "abc"
    cli.seal(snapshot, tmp_path / "new").fails(2, "config.json", "--follow-symlinks")
    cli.seal(snapshot, tmp_path / "new", "--follow-symlinks").succeeds()
    assert read_all(tmp_path / "new", cli.keys).files["config.json"].data == b"{}"


def test_another_writer(cli: Cli, source: Path, sealed: Sealed) -> None:
    with Store(sealed.path) as store, store.writer_lock():
        cli.seal(source, sealed.path, release=2, trust=True).fails(6, "another modelfs command is writing")
        cli.run("gc", sealed.path).fails(6, "another modelfs command is writing")
        assert cli.verify(sealed.path).code == 0


# -- while it seals


@pytest.fixture
def during_seal(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], None]], None]:
    """Have something done once, when the first bytes of the source have been read."""

    def install(action: Callable[[], None]) -> None:
        todo = [action]

        @contextlib.contextmanager
        def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
            yield lambda count: todo.pop()() if todo else None

        monkeypatch.setattr(model_module, "progress_bar", progress_bar)

    return install


def append_to(source: Path) -> None:
    for path in source.iterdir():
        with open(path, "ab") as file:
            file.write(b"more")


def shorten(source: Path) -> None:
    for path in source.iterdir():
        os.truncate(path, 1)


def rewrite_in_place(source: Path) -> None:
    """Same size, same mtime: only ctime tells."""
    for path in source.iterdir():
        info = path.stat()
        path.write_bytes(b"z" * info.st_size)
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns))


def replace_by_rename(source: Path) -> None:
    for path in list(source.iterdir()):
        shutil.copy2(path, source.parent / "copy")
        os.rename(source.parent / "copy", path)


def remove(source: Path) -> None:
    for path in list(source.iterdir()):
        path.unlink()


CHANGES = {"append": append_to, "shorten": shorten, "rewrite in place": rewrite_in_place, "replace": replace_by_rename, "remove": remove}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_source_that_changes_while_it_is_sealed(
    cli: Cli, source: Path, tmp_path: Path, during_seal: Callable[[Callable[[], None]], None], change: Callable[[Path], None]
) -> None:
    during_seal(lambda: change(source))
    result = cli.seal(source, tmp_path / "new")
    # Whoever finds a file missing that was scanned cannot open it: the same advice under another code.
    if change is remove and result.code == 2:
        result.fails(2, "cannot read the source file")
    else:
        result.fails(6, "while it was sealed", "seal again when it is at rest")
    assert not (tmp_path / "new" / "manifest.json").exists()
    assert list((tmp_path / "new" / "blobs").iterdir()) == []
    write_tree(source, {"a": b"final"})
    cli.seal(source, tmp_path / "new").succeeds()
    assert read_all(tmp_path / "new", cli.keys).files["a"].data == b"final"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_seal_goes_on(
    cli: Cli, source: Path, tmp_path: Path, during_seal: Callable[[Callable[[], None]], None], number: int
) -> None:
    for index in range(20):
        (source / f"more{index}").write_bytes(os.urandom(20_000))
    during_seal(lambda: os.kill(os.getpid(), number))
    cli.seal(source, tmp_path / "new").fails(1, "interrupted; run the same command again")
    report = cli.seal(source, tmp_path / "new", "--json").succeeds().json
    assert report["encrypted"] + report["resumed"] == 22
    assert cli.verify(tmp_path / "new").code == 0


# -- a full disk


def mount_tmpfs(path: Path, options: str) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting a tmpfs needs privileges: {done.stderr.strip()}")


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB."""
    path = tmp_path / "disk"
    path.mkdir()
    mount_tmpfs(path, "size=2m")
    yield path
    subprocess.run(["umount", path], check=True)


def whole(result: Result) -> None:
    assert (result.code, result.err) == (0, "")


def test_full_disk_keeps_the_old_release_and_seal_goes_on_when_there_is_room(cli: Cli, source: Path, disk: Path) -> None:
    cli.seal(source, disk / "sealed").succeeds()
    for index in range(30):
        (source / f"big{index:02}").write_bytes(os.urandom(100_000))
    for _ in range(2):
        cli.seal(source, disk / "sealed", release=2, trust=True).fails(6, "the disk is full; make room and run the command again")
        whole(cli.verify(disk / "sealed"))
        assert cli.inspect(disk / "sealed", "--json").json["release"] == 1
    subprocess.run(["mount", "-o", "remount,size=20m", disk], check=True)
    report = cli.seal(source, disk / "sealed", "--json", release=2, trust=True).succeeds().json
    assert report["encrypted"] + report["resumed"] == 30
    assert report["reused"] == 2
    whole(cli.verify(disk / "sealed"))
    assert read_all(disk / "sealed", cli.keys).files["big29"].data == (source / "big29").read_bytes()


def again(cli: Cli, source: Path, destination: Path, make_room: Callable[[], object]) -> Result:
    """Seal, make room, and seal again unless the release came out; the first result."""
    result = cli.seal(source, destination)
    if result.code:
        result.fails(6, "the disk is full; make room and run the command again")
        assert not (destination / "manifest.json").exists()
        make_room()
        cli.seal(source, destination).succeeds()
    elif result.err:
        result.fails(0, "the release is published, but clearing up is left to the next seal")
    whole(cli.verify(destination))
    make_room()
    cli.seal(source, destination, release=2, trust=True).succeeds()
    whole(cli.verify(destination))
    assert sorted(os.listdir(destination / "manifests")) == ["1.json", "2.json"]
    assert not (destination / "pending").exists()
    return result


@pytest.mark.parametrize("free", [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 14, 16])
def test_disk_that_is_full_at_any_moment(cli: Cli, source: Path, disk: Path, free: int) -> None:
    """Only so many pages are free: each step of a seal meets the full disk once."""
    (disk / "sealed").mkdir()
    with open(disk / "filler", "wb") as file:
        file.write(bytes((2 << 20) - free * os.sysconf("SC_PAGE_SIZE")))
    again(cli, source, disk / "sealed", lambda: (disk / "filler").unlink(missing_ok=True))


def test_full_disk_is_met_at_both_ends(cli: Cli, source: Path, disk: Path) -> None:
    """Else the test above might not have met one at all."""
    (disk / "filler").write_bytes(bytes(2 << 20))
    assert cli.seal(source, disk / "sealed").code == 6
    (disk / "filler").write_bytes(bytes((2 << 20) - 24 * os.sysconf("SC_PAGE_SIZE")))
    assert cli.seal(source, disk / "sealed").code == 0


@pytest.mark.parametrize("inodes", range(3, 19))
def test_file_system_without_inodes(cli: Cli, source: Path, tmp_path: Path, inodes: int) -> None:
    path = tmp_path / "disk"
    path.mkdir()
    mount_tmpfs(path, f"size=2m,nr_inodes={inodes}")
    try:
        (path / "sealed").mkdir()
        more = ["mount", "-o", "remount,nr_inodes=100", path]
        result = again(cli, source, path / "sealed", lambda: subprocess.run(more, check=True))
        assert result.code == 6 or inodes > 10
    finally:
        subprocess.run(["umount", path], check=True)


# -- malformed sealed models


def grow(path: Path, size: int) -> None:
    with open(path, "r+b") as file:
        file.truncate(size)  # sparse


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "is not a DSSE envelope"),
        (b"{}", "is not a DSSE envelope"),
        (b"\xff\xfe", "is not a DSSE envelope"),
        (b'{"payload":"","payload":""}', "a field appears twice"),
        (b"[" * 100_000, "is not a DSSE envelope"),
        (None, "more than the limit of 67108864"),
    ],
    ids=["empty", "no fields", "not UTF-8", "duplicate field", "deep", "oversized"],
)
def test_malformed_manifest(cli: Cli, source: Path, sealed: Sealed, content: bytes | None, text: str) -> None:
    path = sealed.path / "manifest.json"
    if content is None:
        grow(path, (64 << 20) + 1)
    else:
        path.write_bytes(content)
    cli.verify(sealed.path).fails(3, "manifest.json", text)
    cli.inspect(sealed.path).fails(3, "manifest.json", text)
    cli.run("inspect", sealed.path).fails(3, "manifest.json", text)
    cli.run("gc", sealed.path).fails(3, "manifest.json", text)
    cli.seal(source, sealed.path, release=2, trust=True).fails(3, "manifest.json", text)
    assert len(os.listdir(sealed.path / "blobs")) == 4


def test_manifest_of_another_version(cli: Cli, sealed: Sealed) -> None:
    resign(sealed, lambda fields: fields.update(format="modelfs/2", novelty=True))
    cli.verify(sealed.path).fails(3, "is of format 'modelfs/2'", "use a newer modelfs")


def test_well_signed_manifest_that_is_none(cli: Cli, sealed: Sealed) -> None:
    write_manifest(sealed.path, b'{"a":1}', cli.keys.signing)
    cli.verify(sealed.path).fails(3, "the manifest is malformed")


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (b"", "malformed"),
        (b"{}", "malformed"),
        (b'{"format":"modelfs/2/keys"}', "use a newer modelfs"),
        (None, "more than the limit of 1048576"),
    ],
    ids=["empty", "no fields", "another version", "oversized"],
)
def test_malformed_keys(cli: Cli, source: Path, sealed: Sealed, content: bytes | None, text: str) -> None:
    path = sealed.path / f"keys/{sealed.manifest.key_commitment}.json"
    if content is None:
        grow(path, (1 << 20) + 1)
    else:
        path.write_bytes(content)
    cli.inspect(sealed.path).fails(3, text)
    result = cli.verify(sealed.path)
    result.fails(4, "1 fault(s)")
    assert f"FAULT keys/{sealed.manifest.key_commitment}.json: keys file: expected well-formed" in result.out
    assert text in result.out
    # A new release does not need the old one's keys; it says why nothing is reused.
    result = cli.seal(source, sealed.path, release=2, trust=True)
    result.fails(0, "no blob of release 1 is reused", text)
    assert cli.verify(sealed.path).code == 0


@pytest.mark.timeout(20)
@pytest.mark.parametrize("name", ["manifest.json", "keys", "blob"])
def test_fifo_in_the_sealed_model_does_not_hang(cli: Cli, sealed: Sealed, name: str) -> None:
    manifest = sealed.manifest
    path = sealed.path / {"manifest.json": name, "keys": f"keys/{manifest.key_commitment}.json", "blob": f"blobs/{manifest.index}"}[name]
    path.unlink()
    os.mkfifo(path)
    cli.inspect(sealed.path).fails(6, "is not a regular file")
    cli.verify(sealed.path).fails(6 if name == "manifest.json" else 4)


# -- terminals

CLEAR = "\x1b[2J\x1b]0;owned\x07\u202e\nmodelfs: all is well"


def harmless(result: Result) -> Result:
    """Nothing but printable characters and line feeds has reached the terminal."""
    for line in (result.out + result.err).split("\n"):
        assert line.isprintable(), repr(line)
    assert "modelfs: all is well" not in (result.out + result.err).splitlines()
    return result


def test_file_names_do_not_drive_the_terminal(cli: Cli, tmp_path: Path) -> None:
    write_tree(tmp_path / "src", {CLEAR: b"x", "d/" + CLEAR: b"y"}, {"link": CLEAR})
    harmless(cli.seal(tmp_path / "src", tmp_path / "sealed").succeeds())
    text = harmless(cli.inspect(tmp_path / "sealed").succeeds()).out
    assert text.count(r"\x1b[2J\x1b]0;owned\x07\u202e\nmodelfs: all is well") == 3
    paths = [entry["path"] for entry in cli.inspect(tmp_path / "sealed", "--json").json["entries"]]
    assert CLEAR in paths  # JSON gives the name as it is, escaped by JSON's own rules
    assert "\x1b" not in cli.inspect(tmp_path / "sealed", "--json").out


def test_file_names_in_errors_do_not_drive_the_terminal(cli: Cli, tmp_path: Path) -> None:
    write_tree(tmp_path / "src", {"a": b"x"})
    os.mkfifo(tmp_path / "src" / CLEAR)
    harmless(cli.seal(tmp_path / "src", tmp_path / "new")).fails(2, r"\x1b[2J")
    harmless(cli.verify(tmp_path / CLEAR)).fails(6, r"\x1b[2J")


@pytest.mark.parametrize("place", ["unknown field", "unknown format", "key_ref", "label"])
def test_unsigned_keys_file_does_not_drive_the_terminal(cli: Cli, source: Path, sealed: Sealed, place: str) -> None:
    path = sealed.path / f"keys/{sealed.manifest.key_commitment}.json"
    if place == "unknown field":
        entries = [recipient("file", "", "", b"").model_dump()]  # so that the field is the only fault, and is named
        path.write_bytes(canonical.serialize_value({CLEAR: 1, "format": "modelfs/1/keys", "recipients": entries}))
        assert r"\x1b[2J" in cli.verify(sealed.path).out
    elif place == "unknown format":
        path.write_bytes(canonical.serialize_value({"format": "modelfs/2" + CLEAR}))
    else:
        entry = recipient("file", CLEAR if place == "key_ref" else "", CLEAR if place == "label" else "", b"")
        path.write_bytes(canonical.serialize(keys_file([entry])))
    for result in (cli.verify(sealed.path), cli.inspect(sealed.path), cli.run("inspect", sealed.path)):
        harmless(result)
    assert cli.inspect(sealed.path).code in (3, 5)
    harmless(cli.seal(source, sealed.path, release=2, trust=True)).fails(0, "no blob of release 1 is reused")


def test_unsigned_manifest_does_not_drive_the_terminal(cli: Cli, sealed: Sealed) -> None:
    path = sealed.path / "manifest.json"
    for content in (
        canonical.serialize_value({CLEAR: 1}),
        canonical.serialize_value({"payload": "", "payloadType": CLEAR, "signatures": [{"keyid": CLEAR, "sig": ""}]}),
    ):
        path.write_bytes(content)
        harmless(cli.verify(sealed.path)).fails(3)
        harmless(cli.run("inspect", sealed.path)).fails(3)
