"""A batch of the journal that fails ends the run, which signs no more; the next goes on from the batches before and leaves no orphans."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs.crypto.signing import FileSignature, KeyFileSigner
from modelfs.errors import KeyAccessError, KeyDeniedError, KeyServiceError, StoreError
from modelfs.seal import journal, making
from tests.helpers import KeySet, Sealed, rotate, seal, write_tree

FILES = {f"f{number:02}": os.urandom(5000 + number) for number in range(40)}


class Refuser:
    """Signs with key files, and fails once: at the journal signature `fatal`, counted from 1."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = 0
        self.fatal = 0
        self.error: KeyAccessError = KeyServiceError("no answer")
        self._really = KeyFileSigner.sign
        monkeypatch.setattr(KeyFileSigner, "sign", lambda signer, payload: self._sign(signer, payload))

    def _sign(self, signer: KeyFileSigner, payload: bytes) -> FileSignature:
        self.asked += (is_journal := f" {journal.JOURNAL_TYPE} ".encode() in payload)
        if is_journal and self.asked == self.fatal:
            raise self.error
        return self._really(signer, payload)


@pytest.fixture
def refuser(monkeypatch: pytest.MonkeyPatch) -> Refuser:
    return Refuser(monkeypatch)


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each blob is a batch of its own, however many cores finish them."""
    monkeypatch.setattr(making, "_batch", lambda done, _most: [done.get()])


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "src", FILES)


def check_published(path: Path, keys: KeySet, releases: int = 1) -> None:
    """The release is whole, and no blob is there that none names."""
    model = Sealed(path, path, keys)
    assert model.read() == FILES
    assert model.faults() == []
    blobs = [name for name in os.listdir(path / "blobs") if not name.endswith(".digests")]
    assert len(blobs) == releases * (len(FILES) + 1)


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("error", [KeyServiceError, KeyDeniedError])
@pytest.mark.parametrize("fatal", [1, 4])
def test_a_seal_signs_no_more_after_a_failed_signature(
    keys_dir: KeySet, tmp_path: Path, source: Path, refuser: Refuser, error: type[KeyAccessError], fatal: int
) -> None:
    """A token counts wrong PINs, and one that is silent would be waited for again. What was signed before is not encrypted again."""
    path = tmp_path / "sealed"
    refuser.fatal, refuser.error = fatal, error("no")
    with pytest.raises(error):
        seal(keys_dir, source, path)
    assert refuser.asked == fatal
    report = seal(keys_dir, source, path)
    assert (report.resumed, report.encrypted) == (fatal - 1, 41 - fatal)
    check_published(path, keys_dir)


def test_a_resumed_seal_shows_a_refused_pin_once(keys_dir: KeySet, tmp_path: Path, source: Path, refuser: Refuser) -> None:
    """The plan is signed already, so the journal's is the first signature; tokens lock themselves after three."""
    path = tmp_path / "sealed"
    for _ in range(2):
        refuser.asked, refuser.fatal, refuser.error = 0, 1, KeyDeniedError("PIN")
        with pytest.raises(KeyDeniedError):
            seal(keys_dir, source, path)
        assert refuser.asked == 1
    report = seal(keys_dir, source, path)
    assert (report.resumed, report.encrypted) == (0, 40)
    check_published(path, keys_dir)


@pytest.mark.usefixtures("one_by_one")
def test_a_rotation_signs_no_more_after_a_failed_signature(keys_dir: KeySet, tmp_path: Path, source: Path, refuser: Refuser) -> None:
    path = tmp_path / "sealed"
    seal(keys_dir, source, path)
    refuser.asked, refuser.fatal = 0, 4
    with pytest.raises(KeyServiceError):
        rotate(keys_dir, path, release=2)
    assert refuser.asked == 4
    report = rotate(keys_dir, path, release=2)
    assert report is not None
    assert (report.resumed, report.encrypted) == (3, 37)
    check_published(path, keys_dir, releases=2)


@pytest.mark.usefixtures("one_by_one")
def test_nothing_is_written_behind_a_torn_batch(keys_dir: KeySet, tmp_path: Path, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A disk that is full for a moment: a reader stops at what is torn, so nothing behind it would count."""
    path, really, calls = tmp_path / "sealed", os.write, 0

    def write(fd: int, data: memoryview) -> int:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise OSError(errno.ENOSPC, "")
        return really(fd, data[:-1] if calls == 4 else data)

    monkeypatch.setattr(os, "write", write)  # only the journal is written so
    with pytest.raises(StoreError):
        seal(keys_dir, source, path)
    assert calls == 5
    report = seal(keys_dir, source, path)
    assert (report.resumed, report.encrypted) == (3, 37)
    check_published(path, keys_dir)


def cut_signature(file: Path) -> None:
    """What a crash leaves of a batch: whole lines, no signature."""
    file.write_bytes(b"".join(file.read_bytes().splitlines(keepends=True)[:-1]))


def cut_line(file: Path) -> None:
    """What a storage that loses things leaves: the last batch's signature, not its line."""
    lines = file.read_bytes().splitlines(keepends=True)
    file.write_bytes(b"".join([*lines[:-2], lines[-1]]))


@pytest.mark.usefixtures("one_by_one")
@pytest.mark.parametrize("damage", [cut_signature, cut_line])
def test_blobs_of_a_batch_that_does_not_count_are_removed(
    keys_dir: KeySet, tmp_path: Path, source: Path, refuser: Refuser, damage: Callable[[Path], None]
) -> None:
    """Nobody can take them over, so the run that encrypts them again must not leave them behind."""
    path = tmp_path / "sealed"
    refuser.fatal = 4
    with pytest.raises(KeyServiceError):
        seal(keys_dir, source, path)
    (file,) = [file for file in (path / "pending").glob("journal-*") if file.stat().st_size]
    damage(file)
    report = seal(keys_dir, source, path)
    assert (report.resumed, report.encrypted) == (2, 38)
    check_published(path, keys_dir)
