"""What a storage writer plants in a sealed model's directory: nothing of it is wrapped, reused or signed."""

import os
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from modelfs.crypto.kdf import key_commitment
from modelfs.crypto.signing import load_signer
from modelfs.errors import ModelfsError, SignatureError, StoreError, VerificationError
from modelfs.format import canonical
from modelfs.format.keysfile import keys_file, names_digest, wrapping_context
from modelfs.format.manifest import Plan, parse_plan
from modelfs.seal import journal
from modelfs.seal.encrypt import FinishedBlob, SealPass
from modelfs.seal.scan import scan_source
from modelfs.store.local import Store
from tests.helpers import BLOCK, MODEL, KeySet, Sealed, read_all, seal, unverified_manifest, write_tree

EVIL = b"attacker " * 1000
"""As long as each genuine file: the source has not changed, so its size is right."""
FILES = {"a": b"genuine a" * 1000, "b": b"genuine b" * 1000, "c": b"genuine c" * 1000}


class Interrupted(Exception):
    """Ends a seal before it publishes."""


def interrupted_seal(keys: KeySet, source: Path, destination: Path, **options: Any) -> None:
    """A seal that died with all files finished and nothing published."""
    really = os.rename

    def rename(old: str, new: str, **kwargs: Any) -> None:
        if new == "manifest.json":
            raise Interrupted
        really(old, new, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "rename", rename)
        with pytest.raises(Interrupted):
            seal(keys, source, destination, **options)
    assert (destination / "pending" / "plan.json").exists()


@dataclass
class Attacker:
    """Writes the storage, may encrypt under the publisher's KEK, has a signing key that nobody trusts, and a DEK of his own."""

    keys: KeySet
    store: Path
    source: Path
    dek: bytes = b"\xee" * 32
    key_id: str = "ee" * 16

    def __post_init__(self) -> None:
        self.chosen: set[str] = {key_commitment(self.dek).hex(), self.key_id, self.dek.hex()}
        """Every id, key and root that must not appear in anything that the publisher signs."""

    def plan(self, **change: Any) -> Plan:
        genuine = {"block_size": BLOCK, "digest": "blake3", "format": "modelfs/1", "model": MODEL, "release": 1, "rotates": None}
        recipients = names_digest(keys_file([self.keys.provider().wrap_key(self.dek, b"")]))
        own = {"key_commitment": key_commitment(self.dek).hex(), "key_id": self.key_id, "recipients": recipients}
        return Plan(**{**genuine, **own, **change})

    def plant_plan(self, signing: Path, **change: Any) -> None:
        with Store(self.store) as store:
            entry = self.keys.provider().wrap_key(self.dek, wrapping_context(MODEL, self.key_id))
            journal.begin(store, self.plan(**change), keys_file([entry]), load_signer(signing))

    def plant_keys(self, key_id: str) -> None:
        entry = self.keys.provider().wrap_key(self.dek, wrapping_context(MODEL, key_id))
        (self.store / "pending/keys.json").write_bytes(canonical.serialize(keys_file([entry])))

    def plant_journal(self, dek: bytes, plan: Plan | None = None, signing: Path | None = None) -> None:
        """A journal whose blobs hold EVIL, claimed to come from the publisher's own, unchanged source files.

        The attacker has every key but the publisher's signing key, so his batches are signed by another.
        """
        evil = write_tree(self.store.parent / "evil", dict.fromkeys(FILES, EVIL))
        genuine = {file.path: file for file in scan_source(self.source, False).files}
        made: list[FinishedBlob] = []
        with Store(self.store) as store, ThreadPoolExecutor(1) as pool:
            seal_pass = SealPass(store, BLOCK, "blake3", os.urandom, lambda _: None, Event(), pool)
            for file in scan_source(evil, False).files:
                blob = seal_pass.encrypt_file(file)
                made.append(replace(blob, source=genuine[file.path]))
                self.chosen |= {blob.entry.id, blob.entry.root, blob.key.hex()}
            entry = self.keys.provider().wrap_key(dek, b"")
            pending = journal.Pending(plan or self.plan(), dek, keys_file([entry]), [])
            signer = load_signer(signing or self.keys.stranger_signing)
            with journal.JournalWriter(store, pending, signer, os.urandom) as writer:
                writer.append(made)


@dataclass
class Scene:
    """A source, an unfinished seal of it as release 1, and the attacker."""

    keys: KeySet
    source: Path
    path: Path
    attacker: Attacker

    @property
    def plan(self) -> Plan:
        with Store(self.path) as store:
            plan = journal.read_plan(store, load_signer(self.keys.signing))
        assert plan is not None
        return plan

    def check(self, release: int = 1) -> None:
        """What is published is the publisher's source, whole, and nothing that the attacker chose."""
        sealed = Sealed(self.path, self.source, self.keys)
        assert sealed.manifest.release == release
        assert sealed.faults() == []
        assert sealed.read() == FILES
        signed = canonical.serialize(sealed.manifest).decode() + canonical.serialize(sealed.index()).decode()
        for secret in self.attacker.chosen:
            assert secret not in signed
        with Store(self.path) as store:
            keys = store.read_file(f"keys/{sealed.manifest.key_commitment}.json", 1 << 20)
        (entry,) = journal.parse_keys(keys).recipients
        assert key_commitment(sealed.dek()).hex() == sealed.manifest.key_commitment
        assert self.keys.provider().unwrap_key(entry, wrapping_context(MODEL, sealed.manifest.key_id)) == sealed.dek()
        assert not (self.path / "pending").exists()


@pytest.fixture
def scene(keys_dir: KeySet, tmp_path: Path) -> Scene:
    source = write_tree(tmp_path / "src", FILES)
    path = tmp_path / "sealed"
    interrupted_seal(keys_dir, source, path)
    return Scene(keys_dir, source, path, Attacker(keys_dir, path, source))


def test_without_an_attacker_the_pending_work_is_used(scene: Scene) -> None:
    """Else the tests below prove nothing."""
    before = scene.plan.key_commitment
    report = seal(scene.keys, scene.source, scene.path)
    assert (report.resumed, report.encrypted, report.notes) == (3, 0, [])
    assert unverified_manifest(scene.path / "manifest.json").key_commitment == before
    scene.check()


def test_the_attackers_journal_would_be_used_if_it_were_believed(scene: Scene) -> None:
    """Signed by the publisher himself, the same plan, keys and journal do get in: the plants below are complete."""
    scene.attacker.plant_plan(scene.keys.signing)
    shutil.rmtree(scene.path / "blobs")
    (scene.path / "blobs").mkdir()
    scene.attacker.plant_journal(scene.attacker.dek, signing=scene.keys.signing)
    assert seal(scene.keys, scene.source, scene.path).resumed == 3
    assert read_all(scene.path, scene.keys).files["a"].data == EVIL


def plan_of_a_stranger(scene: Scene) -> None:
    scene.attacker.plant_plan(scene.keys.stranger_signing)
    scene.attacker.plant_journal(scene.attacker.dek)


def plan_altered(scene: Scene) -> None:
    scene.attacker.plant_plan(scene.keys.stranger_signing)
    planted = (scene.path / "pending/plan.json").read_bytes()
    plan = journal.parse_envelope(planted, journal.PLAN_TYPE, 1 << 16, "plan")
    genuine_signature = journal.sign_payload(b"{}", journal.PLAN_TYPE, load_signer(scene.keys.signing)).signatures
    altered = plan.model_copy(update={"signatures": genuine_signature})
    (scene.path / "pending/plan.json").write_bytes(journal.serialize_envelope(altered))
    scene.attacker.plant_journal(scene.attacker.dek)


def plan_without_signature_of_its_type(scene: Scene) -> None:
    """The publisher's signature over a manifest is none over a plan."""
    seal(scene.keys, scene.source, scene.path.parent / "elsewhere")
    shutil.copyfile(scene.path.parent / "elsewhere" / "manifest.json", scene.path / "pending/plan.json")
    scene.attacker.plant_keys(scene.attacker.key_id)
    scene.attacker.plant_journal(scene.attacker.dek)


def keys_with_another_dek(scene: Scene) -> None:
    scene.attacker.plant_keys(scene.plan.key_id)
    scene.attacker.plant_journal(scene.attacker.dek)


def journal_under_another_dek(scene: Scene) -> None:
    scene.attacker.plant_journal(scene.attacker.dek)


def pending_of_another_model(scene: Scene) -> None:
    """The publisher's own unfinished seal of another model, with the same source."""
    other = scene.path.parent / "other"
    interrupted_seal(scene.keys, scene.source, other, model="other")
    for name in ("pending", "blobs"):
        shutil.rmtree(scene.path / name)
        shutil.copytree(other / name, scene.path / name)
    with Store(other) as store:
        plan = parse_plan(journal.parse_envelope(store.read_file(journal.PLAN, 1 << 16), journal.PLAN_TYPE, 1 << 16, "plan").payload_bytes)
    scene.attacker.chosen |= {plan.key_commitment, plan.key_id, *os.listdir(other / "blobs")}


def garbage(scene: Scene) -> None:
    for name in ("plan.json", "keys.json", "journal-" + "0" * 32, "other", ".plan.json.1.tmp"):
        (scene.path / "pending" / name).write_bytes(os.urandom(500))


PLANTS: dict[str, Callable[[Scene], None]] = {
    "a plan that a stranger signed": plan_of_a_stranger,
    "a plan with a signature of something else": plan_altered,
    "a signed manifest as the plan": plan_without_signature_of_its_type,
    "keys with another DEK under the same KEK": keys_with_another_dek,
    "a journal under another DEK": journal_under_another_dek,
    "another model's pending work": pending_of_another_model,
    "garbage": garbage,
}


@pytest.mark.parametrize("plant", PLANTS.values(), ids=PLANTS)
def test_planted_pending_work_is_not_used(scene: Scene, plant: Callable[[Scene], None]) -> None:
    plant(scene)
    seal(scene.keys, scene.source, scene.path)
    scene.check()


Batches = list[tuple[bytes, bytes]]
"""(lines, signature line) of each batch of a journal."""
OTHER = bytes.maketrans(b"ABCDEFGHIJ0123456789", b"JIHGFEDCBA9876543210")

JOURNALS: dict[str, tuple[Callable[[Batches], Batches], int]] = {
    "untouched": (lambda batches: batches, 3),
    "unsigned line at the end": (lambda batches: [*batches, (batches[0][0], b"")], 3),
    "garbage at the end": (lambda batches: [*batches, (b"\xff" * 50, b"\n= AAAA\n")], 3),
    "last signature missing": (lambda batches: [*batches[:2], (batches[2][0], b"")], 2),
    "last signature torn": (lambda batches: [*batches[:2], (batches[2][0], batches[2][1][:20])], 2),
    "second signature altered": (lambda batches: [batches[0], (batches[1][0], batches[1][1].translate(OTHER)), batches[2]], 1),
    "second and third swapped": (lambda batches: [batches[0], batches[2], batches[1]], 1),
    "second dropped": (lambda batches: [batches[0], batches[2]], 1),
    "first repeated": (lambda batches: [batches[0], batches[0]], 1),
    "first dropped": (lambda batches: batches[1:], 0),
    "first signature dropped": (lambda batches: [(batches[0][0], b""), *batches[1:]], 0),
    "another blob id": (lambda batches: [(b"0" * 32 + batches[0][0][32:], batches[0][1]), *batches[1:]], 0),
    "signatures exchanged": (lambda batches: [(batches[0][0], batches[1][1]), (batches[1][0], batches[0][1])], 0),
    "empty": (lambda batches: [], 0),
}


@pytest.mark.parametrize(("change", "resumed"), JOURNALS.values(), ids=JOURNALS)
def test_journal_is_believed_up_to_the_first_batch_that_is_not_as_signed(
    keys_dir: KeySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Batches], Batches], resumed: int
) -> None:
    monkeypatch.setattr("modelfs.seal.making._batch", lambda done, most: [done.get()])  # one blob to a batch
    source, path = write_tree(tmp_path / "src", FILES), tmp_path / "sealed"
    interrupted_seal(keys_dir, source, path)
    (own,) = (path / "pending").glob("journal-*")
    lines = own.read_bytes().splitlines(keepends=True)
    batches = list(zip(lines[::2], lines[1::2], strict=True))
    assert len(batches) == 3
    assert all(signature.startswith(b"= ") for _, signature in batches)
    own.write_bytes(b"".join(line + signature for line, signature in change(batches)))
    assert seal(keys_dir, source, path).resumed == resumed
    Scene(keys_dir, source, path, Attacker(keys_dir, path, source)).check()


def test_journal_under_another_id_is_not_believed(scene: Scene) -> None:
    (own,) = (scene.path / "pending").glob("journal-*")
    own.rename(own.with_name("journal-" + "0" * 32))
    assert seal(scene.keys, scene.source, scene.path).resumed == 0
    scene.check()


def test_publishers_signature_does_not_cover_another_batch(scene: Scene) -> None:
    """A holder of the DEK puts lines of his own over the signature that the publisher gave for his."""
    signer = load_signer(scene.keys.signing)
    with Store(scene.path) as store:
        pending = journal.resume(store, scene.plan, [scene.keys.provider()], signer)
    assert pending is not None
    (own,) = (scene.path / "pending").glob("journal-*")
    signature = own.read_bytes().splitlines(keepends=True)[-1]
    own.unlink()
    scene.attacker.plant_journal(pending.dek, scene.plan)
    (planted,) = (scene.path / "pending").glob("journal-*")
    lines = planted.read_bytes().splitlines(keepends=True)
    assert len(lines) == 4
    planted.write_bytes(b"".join(lines[:3]) + signature)
    assert seal(scene.keys, scene.source, scene.path).resumed == 0
    scene.check()


@pytest.mark.parametrize("damage", ["blob missing", "blob shorter", "blob longer", "digests missing", "digests shorter"])
def test_finished_blob_that_is_not_whole_is_sealed_again(scene: Scene, damage: str) -> None:
    blob = next(file for file in sorted((scene.path / "blobs").iterdir()) if (file.parent / f"{file.name}.digests").exists())
    path = blob.with_name(f"{blob.name}.digests") if "digests" in damage else blob
    if "missing" in damage:
        path.unlink()
    else:
        os.truncate(path, path.stat().st_size + (1 if "longer" in damage else -1))
    before = set(os.listdir(scene.path / "blobs"))
    report = seal(scene.keys, scene.source, scene.path)
    assert (report.resumed, report.encrypted) == (2, 1)
    assert blob.name not in os.listdir(scene.path / "blobs"), "its id was used again"
    assert before & set(os.listdir(scene.path / "blobs"))
    scene.check()


def test_yesterdays_pending_work_is_not_used_for_todays_release(scene: Scene) -> None:
    """Plan, keys, journal and blobs of release 1 are put back after it was published: release 2 gets a DEK and keys of its own."""
    shutil.copytree(scene.path / "pending", scene.path.parent / "yesterday")
    seal(scene.keys, scene.source, scene.path)
    first = Sealed(scene.path, scene.source, scene.keys)
    dek, manifest, keys = first.dek(), first.manifest, {entry.key for entry in first.index().files}
    for path, content in FILES.items():
        (scene.source / path).write_bytes(content)  # same content, new times: reused by content, not by the journal
    shutil.copytree(scene.path.parent / "yesterday", scene.path / "pending")
    report = seal(scene.keys, scene.source, scene.path, release=2)
    second = Sealed(scene.path, scene.source, scene.keys)
    assert (report.resumed, report.reused) == (0, 3)
    assert second.dek() != dek
    assert second.manifest.key_id != manifest.key_id
    assert {entry.key for entry in second.index().files} == keys
    scene.check(release=2)


def test_yesterdays_plan_of_another_release_is_not_used(scene: Scene) -> None:
    before = scene.plan
    report = seal(scene.keys, scene.source, scene.path, release=2)
    assert report.resumed == 0
    assert any("is not this one: started anew" in note for note in report.notes)
    assert unverified_manifest(scene.path / "manifest.json").key_commitment != before.key_commitment
    scene.check(release=2)


@pytest.mark.parametrize("place", ["plan.json", "keys.json", "journal-" + "0" * 32])
@pytest.mark.parametrize("kind", ["FIFO", "symlink"])
@pytest.mark.timeout(30)
def test_pending_special_files_do_not_hang_and_are_not_followed(scene: Scene, place: str, kind: str) -> None:
    path = scene.path / "pending" / place
    path.unlink(missing_ok=True)
    outside = scene.path.parent / "outside"
    outside.write_bytes(b"outside")
    if kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to(outside)
    if place.startswith("journal"):
        with pytest.raises(StoreError, match="not a regular file"):
            seal(scene.keys, scene.source, scene.path)
    else:
        seal(scene.keys, scene.source, scene.path)
        scene.check()
    assert outside.read_bytes() == b"outside"


def test_a_holder_of_the_dek_cannot_have_the_publisher_sign_a_forged_blob(scene: Scene) -> None:
    """DESIGN section 2, row 3: a compromised inference host (it has the KEK) that also writes the storage."""
    with Store(scene.path) as store:
        pending = journal.resume(store, scene.plan, [scene.keys.provider()], load_signer(scene.keys.signing))
    assert pending is not None
    assert pending.records, "the attack needs an unfinished seal with finished files"
    (genuine,) = (scene.path / "pending").glob("journal-*")
    genuine.unlink()
    scene.attacker.plant_journal(pending.dek, scene.plan)
    seal(scene.keys, scene.source, scene.path)
    scene.check()


# -- published things


@pytest.fixture
def published(scene: Scene) -> Scene:
    seal(scene.keys, scene.source, scene.path)
    return scene


def commands(scene: Scene) -> Iterator[tuple[str, Callable[[], object]]]:
    """Everything that reads a release in order to use it."""
    from modelfs.reader.verify import verify_store

    sealed = Sealed(scene.path, scene.source, scene.keys)
    yield "seal", lambda: seal(scene.keys, scene.source, scene.path, release=9)
    with Store(scene.path) as store:
        yield "verify", lambda: verify_store(store, sealed.manifest)
    yield "read", sealed.read


def test_manifest_signed_by_a_stranger_is_used_by_nobody(published: Scene) -> None:
    """A whole model of the attacker's, wrapped for the right KEK, under the right name."""
    evil = write_tree(published.path.parent / "evil", dict.fromkeys(FILES, EVIL))
    other = published.path.parent / "planted"
    seal(published.keys, evil, other, signing=published.keys.stranger_signing)
    for name in ("blobs", "keys", "manifest.json", "manifests"):
        target = published.path / name
        shutil.rmtree(target) if target.is_dir() else target.unlink()
        os.rename(other / name, target)
    planted = (published.path / "manifest.json").read_bytes()
    for name, command in commands(published):
        with pytest.raises(SignatureError):
            command()
        assert (published.path / "manifest.json").read_bytes() == planted, name
    assert os.listdir(published.path / "manifests") == ["1.json"]


@pytest.mark.parametrize("case", ["another model's keys", "another model's DEK for this model", "the attacker's DEK"])
def test_planted_keys_are_not_reused(published: Scene, case: str) -> None:
    """The release before is unreadable then, so all is encrypted anew; nothing of the planted key goes into the new release."""
    other = published.path.parent / "other"
    seal(published.keys, published.source, other, model="other")
    stranger = Sealed(other, published.source, published.keys)
    manifest = Sealed(published.path, published.source, published.keys).manifest
    path = published.path / f"keys/{manifest.key_commitment}.json"
    if case == "another model's keys":
        shutil.copyfile(other / f"keys/{stranger.manifest.key_commitment}.json", path)
    else:
        dek = stranger.dek() if "model's" in case else published.attacker.dek
        entry = published.keys.provider().wrap_key(dek, wrapping_context(MODEL, manifest.key_id))
        path.write_bytes(canonical.serialize(keys_file([entry])))
    published.attacker.chosen |= {stranger.dek().hex(), stranger.manifest.key_commitment}
    report = seal(published.keys, published.source, published.path, release=2)
    assert (report.reused, report.encrypted) == (0, 3)
    assert any("no blob of release 1 is reused" in note for note in report.notes)
    published.check(release=2)


@pytest.mark.parametrize("what", ["blob", "digests", "index"])
def test_damaged_blobs_of_the_release_before_are_not_reused(published: Scene, what: str) -> None:
    sealed = Sealed(published.path, published.source, published.keys)
    name = sealed.manifest.index if what == "index" else sealed.entry("b").blob
    path = published.path / "blobs" / (f"{name}.digests" if what == "digests" else name)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    report = seal(published.keys, published.source, published.path, release=2)
    assert (report.reused, report.encrypted) == ((0, 3) if what == "index" else (2, 1))
    published.check(release=2)


def test_another_models_release_is_not_replaced(published: Scene) -> None:
    """The publisher's own other model in this directory: the name is checked before anything is reused or overwritten."""
    before = (published.path / "manifest.json").read_bytes()
    with pytest.raises(VerificationError, match="not 'other'"):
        seal(published.keys, published.source, published.path, model="other", release=2)
    assert (published.path / "manifest.json").read_bytes() == before


@pytest.mark.parametrize("name", ["blobs", "keys", "manifests", "pending"])
def test_directory_that_is_a_symlink_is_not_written_through(published: Scene, name: str) -> None:
    outside = published.path.parent / "outside"
    if name == "pending":
        outside.mkdir()
    else:
        (published.path / name).rename(outside)
    (published.path / name).symlink_to(outside)
    before = sorted(os.listdir(outside))
    (published.source / "a").write_bytes(b"new")
    with pytest.raises(ModelfsError):
        seal(published.keys, published.source, published.path, release=2)
    assert sorted(os.listdir(outside)) == before


def test_planted_blob_ids_are_never_chosen(published: Scene) -> None:
    """Even if a new id were guessed: a blob is created, never opened."""
    ids = iter([os.urandom(32), os.urandom(16), b"\x01" * 16, b"\x02" * 16] + [os.urandom(n) for n in (32, 16, 32, 16, 32, 16, 32)] * 4)
    (published.path / "blobs" / "02020202020202020202020202020202").write_bytes(EVIL)
    (published.source / "a").write_bytes(b"new")

    def entropy(size: int) -> bytes:
        return next(value for value in ids if len(value) == size)

    # Planted blobs that nothing names are removed before the first new one is made, so the seal gets through.
    seal(published.keys, published.source, published.path, release=2, entropy=entropy)
    assert Sealed(published.path, published.source, published.keys).read() == {**FILES, "a": b"new"}


def test_an_older_manifest_put_back_makes_nobody_sign_a_release_twice(published: Scene) -> None:
    """manifest.json of release 1 over that of release 3: the archive still knows what was signed."""
    from modelfs.errors import ConfigError, RollbackError

    for release in (2, 3):
        seal(published.keys, published.source, published.path, release=release)
    third = (published.path / "manifests/3.json").read_bytes()
    shutil.copyfile(published.path / "manifests/1.json", published.path / "manifest.json")
    (published.source / "a").write_bytes(b"changed")
    for release in (2, 3):
        with pytest.raises(RollbackError, match="use 4 or more"):
            seal(published.keys, published.source, published.path, release=release)
    (published.path / "manifest.json").unlink()
    with pytest.raises(RollbackError, match="use 4 or more"):
        seal(published.keys, published.source, published.path, release=3)
    with pytest.raises((VerificationError, ConfigError)):
        seal(published.keys, published.source, published.path, release=1, model="other")
    assert (published.path / "manifests/3.json").read_bytes() == third
