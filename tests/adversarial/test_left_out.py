"""A KEK that an interrupted run wrapped for and the next one leaves out on purpose: it opens nothing that is published afterwards."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest

from modelfs.errors import KeyAccessError
from modelfs.format import canonical
from modelfs.format.keysfile import keys_file, parse_keys
from modelfs.keys.file import open_provider
from modelfs.keys.interface import unwrap_dek
from modelfs.seal.encrypt import Cancelled
from modelfs.seal.publish import SealReport
from modelfs.seal.retention import collect_garbage
from modelfs.seal.rotate import RotateReport
from modelfs.store.local import Store
from tests.helpers import KeySet, Sealed, rotate, seal, write_tree

FILES = {f"{number:02}": b"%d" % number * 5000 for number in range(40)}
"""Enough that none of the runs below is over before it is told to stop."""


@dataclass
class Scene:
    """A model, and a run of `seal` or `rotate` that makes its next release."""

    keys: KeySet
    sealed: Sealed
    release: int
    command: Callable[..., SealReport | RotateReport | None]

    def run(self, *keks: Path) -> SealReport | RotateReport:
        """To its end."""
        report = self.command(release=self.release, keks=keks)
        assert report is not None
        return report

    def interrupt(self, *keks: Path) -> Path:
        """One that ends after the first file; a copy of what whoever reads the storage has then."""
        stop = Event()
        with pytest.raises(Cancelled):
            self.command(release=self.release, keks=keks, stop=stop, progress=lambda _: stop.set())
        copy = self.sealed.path.parent / "copy"
        shutil.copytree(self.sealed.path, copy)
        return copy

    def opens(self, kek: Path, copy: Path) -> bool:
        """Whether a KEK opens the published release with the keys file that was copied before."""
        keys = parse_keys((copy / "pending/keys.json").read_bytes())
        try:
            return unwrap_dek(open_provider(str(kek)), keys, self.sealed.manifest) == self.sealed.dek()
        except KeyAccessError:
            return False

    def names(self) -> list[str]:
        """Whom the published release is wrapped for."""
        keys = self.sealed.path / f"keys/{self.sealed.manifest.key_commitment}.json"
        return [entry.name for entry in parse_keys(keys.read_bytes()).recipients]


@pytest.fixture(params=["seal", "rotate"])
def scene(request: pytest.FixtureRequest, keys_dir: KeySet, tmp_path: Path) -> Scene:
    sealed = Sealed(tmp_path / "sealed", write_tree(tmp_path / "src", FILES), keys_dir, FILES)
    if request.param == "seal":
        return Scene(keys_dir, sealed, 1, lambda **options: seal(keys_dir, sealed.source, sealed.path, **options))
    seal(keys_dir, sealed.source, sealed.path)
    return Scene(keys_dir, sealed, 2, lambda **options: rotate(keys_dir, sealed.path, **options))


def test_with_the_same_keks_it_goes_on_and_the_copy_opens_it(scene: Scene) -> None:
    """In any order. Else the tests below prove nothing."""
    copy = scene.interrupt(scene.keys.kek, scene.keys.stranger_kek)
    report = scene.run(scene.keys.stranger_kek, scene.keys.kek)
    assert (report.resumed > 0, report.notes) == (True, [])
    assert scene.opens(scene.keys.stranger_kek, copy)
    assert scene.sealed.read() == FILES


def check_anew(scene: Scene, copy: Path, report: SealReport | RotateReport) -> None:
    what = "seal" if scene.release == 1 else "rotation"
    assert report.notes == [f"the unfinished {what} of release {scene.release} is wrapped for other KEKs: started anew with a new key"]
    assert report.resumed == 0
    assert not scene.opens(scene.keys.stranger_kek, copy)
    assert not scene.opens(scene.keys.kek, copy)
    assert scene.names() == [scene.keys.provider().describe()]
    assert scene.sealed.read() == FILES
    assert scene.sealed.faults() == []


def test_left_out(scene: Scene) -> None:
    copy = scene.interrupt(scene.keys.stranger_kek, scene.keys.kek)
    check_anew(scene, copy, scene.run(scene.keys.kek))


def test_left_out_and_its_entry_taken_away(scene: Scene) -> None:
    """Pending keys are not signed: the storage makes them look as if nobody else had ever been named."""
    copy = scene.interrupt(scene.keys.stranger_kek, scene.keys.kek)
    pending = scene.sealed.path / "pending/keys.json"
    own = [entry for entry in parse_keys(pending.read_bytes()).recipients if entry.name == scene.keys.provider().describe()]
    pending.write_bytes(canonical.serialize(keys_file(own)))
    check_anew(scene, copy, scene.run(scene.keys.kek))


@pytest.mark.parametrize("by", ["gc", "a run without it"])
def test_put_back_after_it_was_discarded(scene: Scene, by: str) -> None:
    copy = scene.interrupt(scene.keys.stranger_kek, scene.keys.kek)
    if by == "gc":
        with Store(scene.sealed.path) as store, store.writer_lock():
            collect_garbage(store, 1, discard_pending=True)
    else:
        stop = Event()
        with pytest.raises(Cancelled):
            scene.command(release=scene.release, keks=[scene.keys.kek], stop=stop, progress=lambda _: stop.set())
        shutil.rmtree(scene.sealed.path / "pending")
    for name in ("pending", "blobs"):
        shutil.copytree(copy / name, scene.sealed.path / name, dirs_exist_ok=True)
    check_anew(scene, copy, scene.run(scene.keys.kek))


def test_a_further_kek_starts_anew_too(scene: Scene) -> None:
    """Else a run that leaves it out again would go on from the first plan, which never named it."""
    copy = scene.interrupt(scene.keys.kek)
    report = scene.run(scene.keys.kek, scene.keys.stranger_kek)
    assert report.resumed == 0
    assert "is wrapped for other KEKs" in report.notes[0]
    assert not scene.opens(scene.keys.kek, copy)
