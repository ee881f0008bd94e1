"""A release that waits for signatures, in the hands of whoever writes the storage: what a second signer is never brought to sign."""

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from modelfs.crypto.digests import new_hasher
from modelfs.crypto.signatures import TrustedKeys, load_trusted_keys
from modelfs.crypto.signing import generate_signing_key, load_signer, sign_payload
from modelfs.errors import (
    ConfigError,
    ExpiredError,
    FormatError,
    ModelfsError,
    RollbackError,
    SignatureError,
    StoreError,
    VerificationError,
)
from modelfs.format.envelope import serialize_envelope
from modelfs.format.index import FileEntry
from modelfs.format.limits import MAX_MANIFEST_SIZE
from modelfs.format.manifest import MANIFEST_TYPE
from modelfs.seal import releasing
from modelfs.seal.countersign import SignReport, SignRequest, Waiting, sign_waiting
from modelfs.seal.encrypt import FinishedBlob
from modelfs.seal.retention import collect_garbage
from modelfs.seal.work import Surroundings
from modelfs.store.local import Store
from modelfs.trust.release import VerifiedRelease, read_release
from tests.helpers import BLOCK, MODEL, NOW, KeySet, Sealed, manifest_payload, rotate, seal, write_tree

FILES = {"a": os.urandom(20_000), "b": os.urandom(9000), "c": b""}


class Interrupted(Exception):
    """A crash."""


class Scene:
    """Release 1 is published, release 2 waits with the publisher's signature; two of three keys are to sign."""

    def __init__(self, keys: KeySet, root: Path) -> None:
        self.keys = keys
        self.directory = root
        self.source = write_tree(root / "src", FILES)
        self.path = root / "sealed"
        for name in ("second.pem", "third.pem"):
            generate_signing_key(root / name)
        self.trusted = load_trusted_keys([keys.public, root / "second.pem.pub", root / "third.pem.pub"], 2)
        self.any_of = TrustedKeys(self.trusted.keys, 1)
        seal(keys, self.source, self.path, trusted=self.any_of)
        (self.source / "a").write_bytes(b"new" * 5000)
        self.plain = {**FILES, "a": b"new" * 5000}
        seal(keys, self.source, self.path, release=2, trusted=self.any_of, pending=True)
        self.shown: list[Waiting] = []

    @property
    def waiting(self) -> Path:
        return self.path / "pending" / "manifest.json"

    @property
    def sealed(self) -> Sealed:
        return Sealed(self.path, self.source, self.keys)

    def signed_by(self) -> int:
        return len(json.loads(self.waiting.read_bytes())["signatures"])

    def sign(self, key: str = "second.pem", trusted: TrustedKeys | None = None, model: str = MODEL, **more: Any) -> SignReport:
        path = self.keys.signing if key == "publisher" else self.keys.stranger_signing if key == "stranger" else self.directory / key
        signer = load_signer(path) if key else None
        request = SignRequest(model, trusted or self.trusted, signer)
        if "payload_digest" in more:
            request = replace(request, payload_digest=str(more.pop("payload_digest")))
        return sign_waiting(self.path, request, replace(Surroundings(NOW), **more), self.shown.append)

    def refuses(self, error: type[ModelfsError], text: str, **options: Any) -> None:
        """Refused in one sentence, and nothing was changed."""
        before = {name: (self.path / name).read_bytes() for name in ("manifest.json", "pending/manifest.json")}
        with pytest.raises(error, match=text) as caught:
            self.sign(**options)
        assert "\n" not in str(caught.value)
        assert {name: (self.path / name).read_bytes() for name in before} == before


@pytest.fixture
def scene(keys_dir: KeySet, tmp_path: Path) -> Scene:
    return Scene(keys_dir, tmp_path)


def test_two_of_three_publish(scene: Scene) -> None:
    assert scene.sealed.manifest.release == 1
    assert scene.sign("second.pem").is_published
    (shown,) = scene.shown
    assert (shown.manifest.release, shown.replaces, len(shown.signed_by), len(shown.recipients)) == (2, 1, 1, 1)
    with Store(scene.path) as store:
        release = published(store, scene.trusted)
    assert release.manifest.release == 2
    assert release.payload_digest == shown.payload_digest
    assert len(release.signed_by) == 2
    assert scene.sealed.read() == scene.plain
    assert sorted(os.listdir(scene.path)) == ["blobs", "keys", "manifest.json", "manifests"]
    assert (scene.path / "manifests/2.json").read_bytes() == (scene.path / "manifest.json").read_bytes()
    with pytest.raises(ConfigError, match="no release waits"):
        scene.sign("third.pem")


def published(store: Store, trusted: TrustedKeys) -> VerifiedRelease:
    return read_release(store, trusted, model=MODEL, now=NOW)


def test_without_a_key_it_is_only_shown(scene: Scene) -> None:
    before = scene.waiting.read_bytes()
    report = scene.sign("")
    assert (report.is_new, report.is_published, len(report.signed_by)) == (False, False, 1)
    assert scene.waiting.read_bytes() == before
    assert len(scene.shown) == 1


def test_the_same_key_again_adds_nothing(scene: Scene) -> None:
    for _ in range(2):
        report = scene.sign("publisher")
        assert (report.is_new, report.is_published, len(report.signed_by)) == (False, False, 1)
    assert scene.signed_by() == 1
    assert scene.sealed.manifest.release == 1


def test_three_of_three_takes_three(scene: Scene) -> None:
    three = TrustedKeys(scene.trusted.keys, 3)
    assert not scene.sign("second.pem", three).is_published
    assert not scene.sign("second.pem", three).is_new
    assert scene.sealed.manifest.release == 1
    assert scene.sign("third.pem", three).is_published


def test_one_key_under_two_names_counts_once(scene: Scene, keys_dir: KeySet) -> None:
    """In two files, and in the envelope under two keyids."""
    copy = scene.directory / "copy.pub"
    shutil.copyfile(keys_dir.public, copy)
    with pytest.raises(ConfigError, match="cannot be met by 1 distinct"):
        load_trusted_keys([keys_dir.public, copy], 2)
    envelope = json.loads(scene.waiting.read_bytes())
    envelope["signatures"].append({**envelope["signatures"][0], "keyid": "another"})
    scene.waiting.write_bytes(json.dumps(envelope).encode())
    report = scene.sign("")
    assert len(report.signed_by) == 1
    assert not scene.sign("publisher").is_published
    (scene.path / "manifest.json").write_bytes(json.dumps(envelope).encode())
    with Store(scene.path) as store, pytest.raises(SignatureError, match="by 1 of the trusted keys and needs 2"):
        published(store, scene.trusted)


def test_signatures_of_strangers_are_dropped(scene: Scene, keys_dir: KeySet) -> None:
    """64 of them would leave no room for the right ones."""
    envelope = json.loads(scene.waiting.read_bytes())
    envelope["signatures"] = [{"keyid": f"{n}", "sig": "AAAA"} for n in range(63)] + envelope["signatures"]
    scene.waiting.write_bytes(json.dumps(envelope).encode())
    assert scene.sign("second.pem").is_published
    assert len(json.loads((scene.path / "manifest.json").read_bytes())["signatures"]) == 2


def test_a_key_that_is_not_trusted_does_not_sign(scene: Scene) -> None:
    scene.refuses(ConfigError, "none of the trusted ones", key="stranger")


def plant(scene: Scene, keys: KeySet, signing: Path, **options: Any) -> None:
    """Replace what waits, blobs and all, by a release that somebody else sealed."""
    other = scene.directory / "other"
    seal(keys, scene.source, other, pending=True, signing=signing, **options)
    shutil.copytree(other, scene.path, dirs_exist_ok=True)


def test_a_strangers_release_is_refused(scene: Scene, keys_dir: KeySet) -> None:
    plant(scene, keys_dir, keys_dir.stranger_signing, release=2)
    scene.refuses(SignatureError, "pending/manifest.json is signed by 0 of the trusted keys and needs 1")


def test_another_model_is_refused(scene: Scene, keys_dir: KeySet) -> None:
    plant(scene, keys_dir, keys_dir.signing, release=2, model="other")
    scene.refuses(VerificationError, "this is the model 'other', not 'demo'")


def test_an_older_release_is_refused(scene: Scene, keys_dir: KeySet) -> None:
    """What waited once and was superseded: it is by a trusted key and whole."""
    old = scene.directory / "old"
    shutil.copytree(scene.path, old)
    with Store(scene.path) as store, store.writer_lock():
        collect_garbage(store, 2, discard_pending=True)
    seal(keys_dir, scene.source, scene.path, release=3, trusted=scene.any_of)
    shutil.copytree(old / "blobs", scene.path / "blobs", dirs_exist_ok=True)
    shutil.copytree(old / "keys", scene.path / "keys", dirs_exist_ok=True)
    shutil.copytree(old / "pending", scene.path / "pending")
    scene.refuses(RollbackError, "release 2 does not grow")
    # Nor if the storage shows an older current release as well.
    shutil.copyfile(old / "manifest.json", scene.path / "manifest.json")
    scene.refuses(RollbackError, "release 2 does not grow")


def test_a_discarded_release_of_the_same_number_is_told_apart(scene: Scene, keys_dir: KeySet) -> None:
    """The storage brings back what was discarded and sealed anew: both are genuine, only the payload's digest tells."""
    old = scene.directory / "old"
    shutil.copytree(scene.path, old)
    with Store(scene.path) as store, store.writer_lock():
        collect_garbage(store, 2, discard_pending=True)
    seal(keys_dir, scene.source, scene.path, release=2, trusted=scene.any_of, pending=True)
    scene.sign("")
    wanted = scene.shown[-1].payload_digest
    shutil.copytree(old, scene.path, dirs_exist_ok=True)
    scene.refuses(VerificationError, f"and not {wanted}", payload_digest=wanted)


def test_an_expired_release_is_refused(keys_dir: KeySet, tmp_path: Path) -> None:
    scene = Scene(keys_dir, tmp_path)
    with Store(scene.path) as store, store.writer_lock():
        collect_garbage(store, 2, discard_pending=True)
    seal(keys_dir, scene.source, scene.path, release=2, pending=True, expires=NOW + timedelta(days=1))
    scene.refuses(ExpiredError, "expired", now=NOW + timedelta(days=2))


DAMAGE: dict[str, tuple[Callable[[Path], None], str]] = {
    "a blob is missing": (lambda blob: blob.unlink(), "expected .* bytes, found missing"),
    "a blob is shorter": (lambda blob: os.truncate(blob, blob.stat().st_size - 1), "blob size"),
    "a bit is flipped": (lambda blob: blob.write_bytes(bytes([blob.read_bytes()[0] ^ 1]) + blob.read_bytes()[1:]), "block"),
    "digests are missing": (lambda blob: blob.with_name(f"{blob.name}.digests").unlink(), "digests file"),
}


@pytest.mark.parametrize(("damage", "text"), DAMAGE.values(), ids=DAMAGE)
def test_what_is_not_whole_is_not_signed(scene: Scene, damage: Callable[[Path], None], text: str) -> None:
    named = [blob["id"] for blob in json.loads(manifest_payload(scene.waiting))["blobs"] if blob["size"] > BLOCK]
    damage(scene.path / "blobs" / named[0])
    scene.refuses(VerificationError, f"1 fault.*{text}.*nothing was signed")


def test_missing_keys_are_a_fault(scene: Scene) -> None:
    commitment = json.loads(manifest_payload(scene.waiting))["key_commitment"]
    (scene.path / f"keys/{commitment}.json").unlink()
    scene.refuses(VerificationError, "keys file: expected present, found missing")


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b"\xff", b'{"payload": "e30=", "payloadType": "x", "signatures": []}'])
def test_what_is_malformed_is_refused_and_stops_gc(scene: Scene, data: bytes) -> None:
    scene.waiting.write_bytes(data)
    scene.refuses(FormatError, "pending/manifest.json")
    before = sorted(os.listdir(scene.path / "blobs"))
    with Store(scene.path) as store, store.writer_lock(), pytest.raises(FormatError):
        collect_garbage(store, 1)
    assert sorted(os.listdir(scene.path / "blobs")) == before
    assert (scene.path / "manifests/1.json").exists()
    with Store(scene.path) as store, store.writer_lock():
        assert collect_garbage(store, 1, discard_pending=True).blobs == 2


def test_a_payload_that_no_key_signed_is_refused(scene: Scene, keys_dir: KeySet) -> None:
    """The publisher's signature over another payload, or of another kind."""
    envelope = json.loads(scene.waiting.read_bytes())
    other = json.loads((scene.path / "manifest.json").read_bytes())
    scene.waiting.write_bytes(json.dumps({**envelope, "signatures": other["signatures"]}).encode())
    scene.refuses(SignatureError, "signed by 0")
    payload = manifest_payload(scene.path / "manifest.json") + b" "
    scene.waiting.write_bytes(serialize_envelope(sign_payload(payload, MANIFEST_TYPE, load_signer(keys_dir.signing))))
    scene.refuses(FormatError, "manifest")


def test_gc_keeps_what_waits(scene: Scene) -> None:
    before = sorted(os.listdir(scene.path / "blobs")), sorted(os.listdir(scene.path / "keys"))
    with Store(scene.path) as store, store.writer_lock():
        assert collect_garbage(store, 1).blobs == 0
    assert (sorted(os.listdir(scene.path / "blobs")), sorted(os.listdir(scene.path / "keys"))) == before
    assert scene.sign("second.pem").is_published


def test_discarding_takes_it_all_away(scene: Scene) -> None:
    with Store(scene.path) as store, store.writer_lock():
        removed = collect_garbage(store, 2, discard_pending=True)
    assert removed.blobs == 2  # the changed file's, and the index
    assert sorted(os.listdir(scene.path)) == ["blobs", "keys", "manifest.json", "manifests"]
    assert len(os.listdir(scene.path / "keys")) == 1
    assert scene.sealed.faults() == []


def test_seal_and_rotate_wait(scene: Scene, keys_dir: KeySet) -> None:
    for call in (
        lambda: seal(keys_dir, scene.source, scene.path, release=3, trusted=scene.any_of),
        lambda: seal(keys_dir, scene.source, scene.path, release=2, trusted=scene.any_of, pending=True),
        lambda: rotate(keys_dir, scene.path, release=3, trusted=scene.any_of),
    ):
        with pytest.raises(ConfigError, match=r"a release waits .* sign it .* gc --discard-pending"):
            call()
    assert scene.sign("second.pem").is_published


@pytest.mark.parametrize("name", ["manifest.json", "2.json"])
def test_a_crash_between_publishing_and_clearing_up(scene: Scene, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    really = os.rename

    def rename(old: str, new: str, **kwargs: int) -> None:
        really(old, new, **kwargs)
        if new == name:
            raise Interrupted

    monkeypatch.setattr(os, "rename", rename)
    with pytest.raises(Interrupted):
        scene.sign("second.pem")
    monkeypatch.setattr(os, "rename", really)
    assert scene.sealed.manifest.release == 2
    assert scene.waiting.exists()
    report = scene.sign("second.pem")
    assert (report.is_new, report.is_published, report.notes) == (False, True, ["it was published already"])
    assert (scene.path / "manifests/2.json").exists()
    assert not (scene.path / "pending").exists()


def test_a_crash_before_publishing_leaves_the_old_release(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    before = scene.waiting.read_bytes()

    def publish(*_: object) -> list[str]:
        raise Interrupted

    monkeypatch.setattr("modelfs.seal.countersign.publish", publish)
    with pytest.raises(Interrupted):
        scene.sign("second.pem")
    assert scene.sealed.manifest.release == 1
    assert scene.waiting.read_bytes() == before
    monkeypatch.undo()
    assert scene.sign("second.pem").is_published


def test_a_crash_while_it_is_left_waiting(keys_dir: KeySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plan and journal are there as well as the release: it can be signed, and that clears all of it."""
    scene = Scene(keys_dir, tmp_path)
    with Store(scene.path) as store, store.writer_lock():
        collect_garbage(store, 2, discard_pending=True)

    def discard(*_: object, **__: object) -> None:
        raise Interrupted

    monkeypatch.setattr(releasing.journal, "discard", lambda store, keep="": discard() if keep else None)
    with pytest.raises(Interrupted):
        seal(keys_dir, scene.source, scene.path, release=2, trusted=scene.any_of, pending=True)
    monkeypatch.undo()
    assert (scene.path / "pending/plan.json").exists()
    assert scene.sign("second.pem").is_published
    assert scene.sealed.read() == scene.plain
    assert not (scene.path / "pending").exists()


def test_first_release_by_two(keys_dir: KeySet, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "src", FILES)
    generate_signing_key(tmp_path / "second.pem")
    trusted = load_trusted_keys([keys_dir.public, tmp_path / "second.pem.pub"], 2)
    seal(keys_dir, source, tmp_path / "sealed", pending=True)
    assert not (tmp_path / "sealed/manifest.json").exists()
    request = SignRequest(MODEL, trusted, load_signer(tmp_path / "second.pem"))
    assert sign_waiting(tmp_path / "sealed", request, Surroundings(NOW), lambda _: None).is_published
    assert Sealed(tmp_path / "sealed", source, keys_dir).read() == FILES


def test_moving_to_two_signatures(scene: Scene, keys_dir: KeySet) -> None:
    """What one person has published is followed by what two are to sign. His key alone vouches for its number, not for its blobs."""
    with Store(scene.path) as store, store.writer_lock():
        collect_garbage(store, 2, discard_pending=True)
    report = seal(keys_dir, scene.source, scene.path, release=2, trusted=scene.trusted, pending=True)
    assert (report.encrypted, report.reused) == (3, 0)
    assert report.notes == ["no blob of release 1 is reused: 1 of the trusted keys signed it, and 2 are demanded"]
    assert scene.sign("second.pem").is_published
    assert scene.sealed.read() == scene.plain
    report = seal(keys_dir, scene.source, scene.path, release=3, trusted=scene.trusted, pending=True)
    assert (report.encrypted, report.reused, report.notes) == (0, 3, [])


def test_moving_to_two_signatures_by_a_rotation(scene: Scene, keys_dir: KeySet) -> None:
    with Store(scene.path) as store, store.writer_lock():
        collect_garbage(store, 2, discard_pending=True)
    report = rotate(keys_dir, scene.path, release=2, trusted=scene.trusted, pending=True)
    assert report is not None
    assert report.notes == ["1 of the trusted keys signed release 1, and 2 are demanded: who signs release 2 vouches for what was in it"]
    assert scene.sign("second.pem").is_published
    assert scene.sealed.read() == FILES
    report = rotate(keys_dir, scene.path, release=3, trusted=scene.trusted, pending=True)
    assert report is not None
    assert report.notes == []


def test_one_stolen_key_does_not_bring_its_content_under_two_signatures(
    scene: Scene, keys_dir: KeySet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The thief publishes a release whose index says of his bytes that they are the right file: reused, both would sign them."""
    right, wrong = scene.plain["a"], b"bad" * 5000
    digest = new_hasher("blake3")
    digest.update(right)
    (scene.source / "a").write_bytes(wrong)
    with Store(scene.path) as store, store.writer_lock():
        collect_garbage(store, 2, discard_pending=True)
    really = releasing._file_entry

    def lie(blob: FinishedBlob) -> FileEntry:
        entry = really(blob)
        return entry.model_copy(update={"digest": digest.digest().hex()}) if entry.path == "a" else entry

    monkeypatch.setattr(releasing, "_file_entry", lie)
    seal(keys_dir, scene.source, scene.path, release=2, trusted=scene.any_of)
    monkeypatch.undo()
    (scene.source / "a").write_bytes(right)
    seal(keys_dir, scene.source, scene.path, release=3, trusted=scene.trusted, signing=scene.directory / "second.pem", pending=True)
    assert scene.sign("publisher").is_published
    assert scene.sealed.read() == scene.plain


def test_no_trusted_key_is_still_too_few(scene: Scene, keys_dir: KeySet) -> None:
    trusted = load_trusted_keys([scene.directory / "second.pem.pub", scene.directory / "third.pem.pub"], 2)
    with pytest.raises(SignatureError, match=r"manifest\.json is signed by 0 of the trusted keys and needs 1"):
        seal(keys_dir, scene.source, scene.path, release=3, trusted=trusted, pending=True)
    with pytest.raises(SignatureError, match=r"manifest\.json is signed by 0 of the trusted keys and needs 1"):
        rotate(keys_dir, scene.path, release=3, trusted=trusted, pending=True)


@pytest.mark.parametrize("names", [["manifest.json"], ["manifests/2.json"], ["manifest.json", "manifests/2.json"]])
def test_what_waits_copied_over_what_is_published(scene: Scene, names: list[str]) -> None:
    """The storage publishes it with one signature: no host takes it, and the second person can still sign."""
    for name in names:
        shutil.copyfile(scene.waiting, scene.path / name)
    if "manifest.json" in names:
        with Store(scene.path) as store, pytest.raises(SignatureError, match="by 1 of the trusted keys and needs 2"):
            published(store, scene.trusted)
    three = TrustedKeys(scene.trusted.keys, 3)
    assert not scene.sign("second.pem", three).is_published
    report = scene.sign("third.pem", three)
    assert report.is_published
    early = "manifest.json was this release already, with too few signatures: somebody put it there before it was released"
    assert report.notes == ([early] if "manifest.json" in names else [])
    with Store(scene.path) as store:
        assert len(published(store, three).signed_by) == 3
    assert (scene.path / "manifests/2.json").read_bytes() == (scene.path / "manifest.json").read_bytes()
    assert scene.sealed.read() == scene.plain
    assert not (scene.path / "pending").exists()


def test_a_first_release_copied_over_what_is_published(scene: Scene, keys_dir: KeySet, tmp_path: Path) -> None:
    scene.path = tmp_path / "first"
    seal(keys_dir, scene.source, scene.path, pending=True)
    shutil.copyfile(scene.waiting, scene.path / "manifests/1.json")
    assert scene.sign("second.pem").is_published


def test_another_release_of_the_same_number_does_not_grow(scene: Scene, keys_dir: KeySet) -> None:
    """What is published has to be the very payload that waits; a half-signed other one still counts."""
    other = scene.directory / "other"
    seal(keys_dir, scene.source, other, release=2)
    for name in ("manifest.json", "manifests/2.json"):
        before = (scene.path / name).read_bytes() if (scene.path / name).exists() else None
        shutil.copyfile(other / "manifest.json", scene.path / name)
        scene.refuses(RollbackError, "release 2 does not grow")
        (scene.path / name).write_bytes(before) if before else (scene.path / name).unlink()
    assert scene.sign("second.pem").is_published


def make_directory(path: Path) -> None:
    path.mkdir()
    (path / "x").touch()


JUNK: dict[str, Callable[[Path], object]] = {
    "garbage": lambda path: path.write_bytes(b"\xff\x00\n" * 100),
    "too long": lambda path: os.truncate(os.open(path, os.O_WRONLY | os.O_CREAT), MAX_MANIFEST_SIZE + 1),
    "a link": lambda path: path.symlink_to("/etc/passwd"),
    "a pipe": lambda path: os.mkfifo(path),
    "an empty directory": lambda path: path.mkdir(),
    "a directory": make_directory,
}


@pytest.mark.parametrize("junk", JUNK)
def test_junk_that_waits(scene: Scene, keys_dir: KeySet, junk: str) -> None:
    """Every command says what is there and how to be rid of it, in one sentence, and then it is gone."""
    scene.waiting.unlink()
    JUNK[junk](scene.waiting)
    before = sorted(os.listdir(scene.path / "blobs"))

    def collect() -> None:
        with Store(scene.path) as store, store.writer_lock():
            collect_garbage(store, 2)

    for call in (
        lambda: scene.sign("second.pem"),
        lambda: seal(keys_dir, scene.source, scene.path, release=3, trusted=scene.any_of),
        lambda: rotate(keys_dir, scene.path, release=3, trusted=scene.any_of),
        collect,
    ):
        with pytest.raises(ModelfsError, match=r"pending/manifest\.json.*`modelfs gc --discard-pending`") as caught:
            call()
        assert str(caught.value).isprintable()
    assert sorted(os.listdir(scene.path / "blobs")) == before
    with Store(scene.path) as store, store.writer_lock():
        if "directory" in junk:
            with pytest.raises(StoreError, match=r"pending/manifest\.json .* is a directory.*`rm -r .*/pending/manifest\.json`") as caught:
                collect_garbage(store, 2, discard_pending=True)
            shutil.rmtree(scene.waiting)
        assert collect_garbage(store, 2, discard_pending=True).blobs == 2
    assert scene.sealed.faults() == []
    seal(keys_dir, scene.source, scene.path, release=3, trusted=scene.any_of)


def test_nothing_waits(keys_dir: KeySet, tmp_path: Path) -> None:
    source = write_tree(tmp_path / "src", FILES)
    seal(keys_dir, source, tmp_path / "sealed")
    request = SignRequest(MODEL, keys_dir.trusted(), load_signer(keys_dir.signing))
    with pytest.raises(ConfigError, match="no release waits"):
        sign_waiting(tmp_path / "sealed", request, Surroundings(NOW), lambda _: None)
    assert sorted(os.listdir(tmp_path / "sealed")) == ["blobs", "keys", "manifest.json", "manifests"]
