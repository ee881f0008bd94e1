"""A seal killed at any moment: the old release stays whole, the next run goes on, and no (key, nonce) is ever used twice."""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from modelfs.crypto import aead
from modelfs.crypto.signing import FileSignature, KeyFileSigner
from modelfs.errors import KeyServiceError, ModelfsError
from modelfs.keys import file as file_provider
from modelfs.seal import journal
from modelfs.seal.encrypt import Cancelled
from modelfs.store.local import Store
from tests.helpers import BLOCK, MODEL, REPOSITORY, KeySet, Sealed, seal, unverified_manifest, write_tree


def command(keys: KeySet, source: Path, destination: Path, release: int) -> list[str]:
    """Arguments of `modelfs seal`."""
    return [
        "seal", str(source), str(destination), "--model", MODEL, "--release", str(release), "--kek", f"file:{keys.kek}",
        "--sign-key", str(keys.signing), "--trust", str(keys.public), "--block-size", "4K", "--json",
    ]  # fmt: skip


PROGRAM = [sys.executable, "-m", "modelfs"]


def finish(arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the real program to its end."""
    return subprocess.run([*PROGRAM, *arguments], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)


class Ledger:
    """What was ever seen in a store: every blob's bytes and key, and that none of it ever changes or comes back."""

    def __init__(self, path: Path, keys: KeySet) -> None:
        self.path = path
        self.keys = keys
        self.contents: dict[str, bytes] = {}
        self.gone: set[str] = set()
        self.owners: dict[bytes, str] = {}
        """Blob key to blob id."""
        self.finished: dict[str, tuple[int, int]] = {}
        """Blob id to (inode, ctime) of blobs that a journal line names, at the last look."""

    def look(self) -> None:
        """Compare the store with all that was seen before."""
        blobs = self.path / "blobs"
        present = {file.name: file.read_bytes() for file in blobs.iterdir()} if blobs.exists() else {}
        for name, content in present.items():
            assert name not in self.gone, f"{name} was removed and came back"
            assert self.contents.setdefault(name, content) == content, f"{name} was written again with other bytes"
        self.gone |= set(self.contents) - set(present)
        self.finished = {}
        for blob_id, key in self._journalled():
            self._owns(blob_id, key)
            info = (blobs / blob_id).stat()
            self.finished[blob_id] = (info.st_ino, info.st_ctime_ns)

    def _owns(self, blob_id: str, key: bytes) -> None:
        assert self.owners.setdefault(key, blob_id) == blob_id, "one key for two blobs"

    def _journalled(self) -> Iterator[tuple[str, bytes]]:
        """(id, key) of the journal lines whose blob is there, read as a resumed seal would."""
        from modelfs.crypto.signing import load_signer

        with Store(self.path) as store:
            signer = load_signer(self.keys.signing)
            plan = journal.read_plan(store, signer)
            pending = journal.resume(store, plan, [self.keys.provider()], signer) if plan else None
        for blob_id, record in pending.records if pending else ():
            if (self.path / "blobs" / blob_id).exists():
                yield blob_id, bytes.fromhex(record.key)

    def check_release(self, plain: dict[int, dict[str, bytes]]) -> int:
        """The release that is there, which must be whole and right; 0 if there is none yet."""
        if not (self.path / "manifest.json").exists():
            return 0
        sealed = Sealed(self.path, self.path, self.keys)
        assert sealed.faults() == []
        release = sealed.manifest.release
        assert sealed.read() == plain[release]
        for entry in sealed.index().files:
            self._owns(entry.blob, entry.blob_key)
        return release


def contents(source: Path) -> dict[str, bytes]:
    return {str(file.relative_to(source)): file.read_bytes() for file in sorted(source.rglob("*")) if file.is_file()}


def change_a_file(source: Path, number: int) -> str:
    """Rewrite one file in place."""
    files = sorted(contents(source))
    name = files[number % len(files)]
    (source / name).write_bytes(os.urandom(BLOCK + number))
    return name


def check_finished(ledger: Ledger, before: dict[str, tuple[int, int]], report: dict[str, Any], current: Path) -> None:
    """What was finished before the last run and is in the release now was not touched again."""
    named = {blob.id for blob in unverified_manifest(current / "manifest.json").blobs}
    kept = {blob_id: place for blob_id, place in before.items() if blob_id in named}
    for blob_id, place in kept.items():
        info = (current / "blobs" / blob_id).stat()
        assert (info.st_ino, info.st_ctime_ns) == place, "a finished blob was written again"
    assert report["resumed"] == len(kept)
    assert report["encrypted"] + report["resumed"] + report["reused"] == report["files"]


def no_leftovers(path: Path) -> None:
    """A finished seal leaves nothing but the model; blobs that nobody names wait for the next writer."""
    assert sorted(os.listdir(path)) == ["blobs", "keys", "manifest.json", "manifests"]


# -- the real program, killed by the clock


def start(arguments: list[str], destination: Path) -> subprocess.Popen[bytes]:
    """Start the real program and wait until it has made its journal, or has ended."""

    def journals() -> set[Path]:
        return set((destination / "pending").glob("journal-*"))

    before = journals()
    process = subprocess.Popen([*PROGRAM, *arguments], cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not journals() - before and process.poll() is None:
        time.sleep(0.001)
    return process


@pytest.mark.timeout(240)
def test_seal_killed_at_many_moments(keys_dir: KeySet, tmp_path: Path) -> None:
    """Four seals, each killed three times at moments spread over its duration, with a source file changed after each kill."""
    source = write_tree(tmp_path / "src", {f"d{n % 4}/f{n:02}": os.urandom(100_000 + n) for n in range(40)})
    plain: dict[int, dict[str, bytes]] = {1: contents(source)}
    path = tmp_path / "sealed"
    seal(keys_dir, source, path, release=1)
    for file in source.rglob("f*"):
        file.write_bytes(os.urandom(90_000))

    # How long it works, counted from its journal on, which it makes right before it encrypts.
    durations = []
    for number in range(2):
        rehearsal = tmp_path / f"rehearsal{number}"
        subprocess.run(["cp", "-a", path, rehearsal], check=True)
        process = start(command(keys_dir, source, rehearsal, 2), rehearsal)
        began = time.monotonic()
        assert process.wait() == 0
        durations.append(time.monotonic() - began)

    ledger, killed = Ledger(path, keys_dir), 0
    ledger.look()
    moments = [min(durations) * step / 12 for step in range(12)]
    for number, moment in enumerate(moments[offset] for start in range(4) for offset in range(start, 12, 4)):
        release = 1 + ledger.check_release(plain)
        plain[release] = contents(source)
        process = start(command(keys_dir, source, path, release), path)
        time.sleep(moment)
        process.send_signal(signal.SIGKILL)
        killed += process.wait() == -signal.SIGKILL
        ledger.look()
        published = ledger.check_release(plain)
        assert published in (release - 1, release)
        change_a_file(source, number)
        if number % 3 == 2:
            # If it died between publishing and clearing up, what its journal names is reused as the release before, not resumed.
            before = ledger.finished if published < release else {}
            release = published + 1
            plain[release] = contents(source)
            done = finish(command(keys_dir, source, path, release))
            assert done.returncode == 0, done.stderr
            assert ledger.check_release(plain) == release
            ledger.look()
            check_finished(ledger, before, json.loads(done.stdout), path)
            no_leftovers(path)
            for file in source.rglob("f*"):
                file.write_bytes(os.urandom(90_000))
    assert killed >= 4, f"only {killed} of 12 runs were still running when they were killed"


# -- killed right before a chosen system call

HARNESS = """
import os, signal, sys, threading
from modelfs.seal import making, releasing
making.COMMIT_SECONDS = 0  # a journal line as soon as a blob is finished, so that there is much to resume
phase, fatal = sys.argv.pop(1).split(":")
lock, seen, wrote, counting = threading.Lock(), [], [], phase == "start"
def die():
    os.kill(os.getpid(), signal.SIGKILL)
def watch(name):
    really = getattr(os, name)
    def call(*args, **kwargs):
        with lock:
            if counting:
                seen.append(name)
            if counting and len(seen) == int(fatal):
                die()
        result = really(*args, **kwargs)
        if name == "write":  # only the journal is written so
            wrote.append(name)
            if phase == "journal" and len(wrote) == int(fatal):
                die()
        return result
    setattr(os, name, call)
for name in ("fsync", "rename", "unlink", "pwrite", "write", "mkdir", "rmdir"):
    watch(name)
def count_from_here(*args, really=releasing.conclude):
    global counting
    counting = counting or phase == "publish"
    return really(*args)
releasing.conclude = count_from_here
from modelfs.cli.app import main
try:
    main()
finally:
    print(len(seen), file=sys.stderr)
"""


def run_until(phase: str, call: int, arguments: list[str]) -> subprocess.CompletedProcess[str]:
    """The program in a process that kills itself.

    Args:
        phase: "start" or "publish": right before the `call`th system call from there that changes the store;
            "journal": right after the `call`th write to the journal.
        call: 0 for a run to the end, which prints its number of calls as the last line of stderr.
        arguments: Of `modelfs`.
    """
    run = [sys.executable, "-c", HARNESS, f"{phase}:{call}", *arguments]
    return subprocess.run(run, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)


class Scene:
    """A source, and a store with or without an earlier release of it."""

    def __init__(self, root: Path, keys: KeySet, first: bool) -> None:
        self.keys = keys
        self.source = write_tree(root / "src", {f"f{n:02}": os.urandom(3 * BLOCK + n) for n in range(8)})
        self.path = root / "sealed"
        self.plain: dict[int, dict[str, bytes]] = {}
        self.release = 1
        if not first:
            seal(keys, self.source, self.path)
            self.plain[1] = contents(self.source)
            self.release = 2
            for n in range(8):
                (self.source / f"f{n:02}").write_bytes(os.urandom(3 * BLOCK + n))
        self.plain[self.release] = contents(self.source)
        self.path.mkdir(exist_ok=True)
        self.arguments = command(keys, self.source, self.path, self.release)


FIRST = pytest.mark.parametrize("first", [True, False], ids=["first release", "second release"])


def count_calls(phase: str, keys: KeySet, root: Path, first: bool) -> int:
    """How many system calls a whole run makes from a phase on."""
    done = run_until(phase, 0, Scene(root, keys, first).arguments)
    assert done.returncode == 0, done.stderr
    return int(done.stderr.splitlines()[-1])


def check_kill(scene: Scene, phase: str, call: int) -> int:
    """Kill a run, change a file, seal again (in this process, which is quicker); how many files that found finished."""
    ledger = Ledger(scene.path, scene.keys)
    ledger.look()
    killed = run_until(phase, call, scene.arguments)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    ledger.look()
    release = ledger.check_release(scene.plain)
    assert release in (scene.release - 1, scene.release)
    if release == scene.release:  # it died after publishing: that is done, and the next seal is the next release
        scene.release += 1
    changed = change_a_file(scene.source, call)
    scene.plain[scene.release] = contents(scene.source)
    before = ledger.finished
    report = vars(seal(scene.keys, scene.source, scene.path, release=scene.release))
    assert ledger.check_release(scene.plain) == scene.release
    ledger.look()
    if release == 0 or not report["reused"]:  # what was published is reused instead
        check_finished(ledger, before, report, scene.path)
    assert report["encrypted"] >= 1, f"{changed} was changed and not sealed again"
    no_leftovers(scene.path)
    return int(report["resumed"])


@FIRST
@pytest.mark.parametrize("call", [1, 4, 9, 16, 25, 40])
def test_seal_killed_before_a_call(keys_dir: KeySet, tmp_path: Path, first: bool, call: int) -> None:
    check_kill(Scene(tmp_path, keys_dir, first), "start", call)


@FIRST
def test_seal_killed_after_a_journal_line_resumes(keys_dir: KeySet, tmp_path: Path, first: bool) -> None:
    assert check_kill(Scene(tmp_path, keys_dir, first), "journal", 1) > 0


PUBLISHING = 21
"""Calls from the beginning of publishing to the end, of a first release or a later one."""


@pytest.mark.parametrize("call", range(1, PUBLISHING + 1))
def test_seal_killed_while_it_publishes(keys_dir: KeySet, tmp_path: Path, call: int) -> None:
    check_kill(Scene(tmp_path, keys_dir, call % 2 == 1), "publish", call)


@FIRST
def test_every_call_of_publishing_is_killed_above(keys_dir: KeySet, tmp_path: Path, first: bool) -> None:
    assert count_calls("publish", keys_dir, tmp_path, first) == PUBLISHING


@FIRST
@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_seal_killed_before_every_call(keys_dir: KeySet, tmp_path: Path, first: bool) -> None:
    (tmp_path / "rehearsal").mkdir()
    for phase in ("start", "publish"):
        calls = count_calls(phase, keys_dir, tmp_path / "rehearsal" / phase, first)
        for call in range(1, calls * 3 // 4 if phase == "start" else calls + 1):
            check_kill(Scene(tmp_path / f"{phase}{call}", keys_dir, first), phase, call)


@FIRST
def test_seal_killed_again_and_again_gets_done(keys_dir: KeySet, tmp_path: Path, first: bool) -> None:
    """Each run dies after its first journal line; what one has finished the next does not do again, although a file changes in between."""
    scene = Scene(tmp_path, keys_dir, first)
    ledger = Ledger(scene.path, keys_dir)
    finished: list[int] = []
    for _ in range(5):
        assert run_until("journal", 1, scene.arguments).returncode == -signal.SIGKILL
        ledger.look()
        finished.append(len(ledger.finished))
        assert ledger.check_release(scene.plain) == scene.release - 1
        change_a_file(scene.source, 7)  # always the same file: the others must stay done, whatever the order of the journals
        scene.plain[scene.release] = contents(scene.source)
    done = finish(scene.arguments)
    assert done.returncode == 0, done.stderr
    report, before = json.loads(done.stdout), ledger.finished
    ledger.look()
    assert ledger.check_release(scene.plain) == scene.release
    check_finished(ledger, before, report, scene.path)
    assert finished == sorted(finished)
    assert report["resumed"] >= 4


# -- (key, nonce) pairs, in one process


@pytest.fixture
def pairs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[bytes, bytes]]:
    """Every (key, nonce) that AES-GCM encrypts with from here on: blocks, journal lines, wrapped keys. Encryption itself stays real."""
    used: list[tuple[bytes, bytes]] = []
    really_init, really_encrypt, really_record = aead.BlobCipher.__init__, aead.BlobCipher.encrypt_block, aead.encrypt_record
    keys: dict[int, tuple[aead.BlobCipher, bytes]] = {}

    def init(self: aead.BlobCipher, blob_key: bytes, *args: Any) -> None:
        really_init(self, blob_key, *args)
        keys[id(self)] = (self, blob_key)  # holds it, so that the id stays its own

    def encrypt(self: aead.BlobCipher, index: int, *args: Any) -> None:
        used.append((keys[id(self)][1], self._nonce(index)))
        really_encrypt(self, index, *args)

    def record(key: bytes, nonce: bytes, *args: bytes) -> bytes:
        used.append((key, nonce))
        return really_record(key, nonce, *args)

    monkeypatch.setattr(aead.BlobCipher, "__init__", init)
    monkeypatch.setattr(aead.BlobCipher, "encrypt_block", encrypt)
    monkeypatch.setattr(journal, "encrypt_record", record)
    monkeypatch.setattr(file_provider, "encrypt_record", record)
    return used


class Interrupted(Exception):
    """A crash in the middle of a system call, as far as one process can play it."""


def test_no_key_and_nonce_are_used_twice(
    keys_dir: KeySet, tmp_path: Path, pairs: list[tuple[bytes, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = {f"f{n:02}": n * 3000 for n in range(12)} | {"large": 3_000_000, "huge": 5_000_000}
    source = write_tree(tmp_path / "src", {path: os.urandom(size) for path, size in sizes.items()})
    path = tmp_path / "sealed"
    seal(keys_dir, source, path)
    blocks = len(pairs)
    assert blocks > sum(sizes.values()) // BLOCK
    for name in sizes:
        (source / name).write_bytes(os.urandom(sizes[name]))
    really_write, really_rename, really_sign = os.pwrite, os.rename, KeyFileSigner.sign
    monkeypatch.setattr("modelfs.seal.making.COMMIT_SECONDS", 0)

    def stop_at(limit: int) -> dict[str, Any]:
        stop, done = threading.Event(), Counter[str]()

        def progress(count: int) -> None:
            done["bytes"] += count
            if done["bytes"] > limit:
                stop.set()

        return {"stop": stop, "progress": progress}

    def change_at(limit: int) -> dict[str, Any]:
        done = Counter[str]()

        def progress(count: int) -> None:
            done["bytes"] += count
            if done["bytes"] > limit:
                (source / "huge").write_bytes(os.urandom(5_000_000))

        return {"progress": progress}

    def full_disk_after(count: int) -> dict[str, Any]:
        left = [count]

        def pwrite(*args: Any) -> int:
            left[0] -= 1
            if left[0] < 0:
                raise OSError(errno.ENOSPC, "")
            return really_write(*args)

        monkeypatch.setattr(os, "pwrite", pwrite)
        return {}

    def crash_before_publishing() -> dict[str, Any]:
        def rename(old: str, new: str, **kwargs: Any) -> None:
            if new == "manifest.json":
                raise Interrupted
            really_rename(old, new, **kwargs)

        monkeypatch.setattr(os, "rename", rename)
        return {}

    def refuse_one_signature() -> dict[str, Any]:
        left = [1]

        def sign(signer: KeyFileSigner, payload: bytes) -> FileSignature:
            if journal.JOURNAL_TYPE.encode() in payload and left:
                left.pop()
                raise KeyServiceError("no answer")
            return really_sign(signer, payload)

        monkeypatch.setattr(KeyFileSigner, "sign", sign)
        return {}

    interruptions: list[Callable[[], dict[str, Any]]] = [
        lambda: stop_at(1_000_000),
        refuse_one_signature,
        lambda: full_disk_after(3),
        lambda: change_at(2_000_000),
        lambda: stop_at(4_000_000),
        crash_before_publishing,
        lambda: full_disk_after(0),
        crash_before_publishing,
    ]
    productive = 0
    for interrupt in interruptions:
        before = len(pairs)
        options = interrupt()
        with pytest.raises((Cancelled, ModelfsError, Interrupted)):
            seal(keys_dir, source, path, release=2, **options)
        productive += len(pairs) > before + 1  # more than the wrapped key
        monkeypatch.setattr(os, "pwrite", really_write)
        monkeypatch.setattr(os, "rename", really_rename)
        monkeypatch.setattr(KeyFileSigner, "sign", really_sign)
        (source / "f05").write_bytes(os.urandom(15_000))
    seal(keys_dir, source, path, release=2)

    model = Sealed(path, source, keys_dir)
    assert model.read() == contents(source)
    assert productive >= 4, "most runs were interrupted before they encrypted anything"
    assert len(pairs) > 2 * blocks
    twice = [count for count in Counter(pairs).values() if count > 1]
    assert not twice, f"{len(twice)} (key, nonce) pairs were used more than once"


def test_the_spy_sees_a_pair_that_is_used_twice(pairs: list[tuple[bytes, bytes]], keys_dir: KeySet, tmp_path: Path) -> None:
    """With entropy that repeats itself, it must complain: else the test above proves nothing."""
    source = write_tree(tmp_path / "src", {"a": b"x" * 100, "b": b"y" * 100})
    count = iter(range(1000))

    def repeating(size: int) -> bytes:
        # Ids differ, or nothing could be written; keys do not.
        return next(count).to_bytes(size, "big") if size == 16 else b"k" * size

    seal(keys_dir, source, tmp_path / "sealed", entropy=repeating)
    assert max(Counter(pairs).values()) > 1


def test_record_of_a_changed_file_does_not_hide_the_newer_one(keys_dir: KeySet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two journals name one path; their names are random, so which is read last must not matter."""
    source = write_tree(tmp_path / "src", {f"f{n}": os.urandom(100) for n in range(3)})
    path = tmp_path / "sealed"
    really_rename = os.rename

    def rename(old: str, new: str, **kwargs: Any) -> None:
        if new == "manifest.json":
            raise Interrupted
        really_rename(old, new, **kwargs)

    monkeypatch.setattr(os, "rename", rename)
    for _ in range(6):
        (source / "f1").write_bytes(os.urandom(100))
        with pytest.raises(Interrupted):
            seal(keys_dir, source, path)
    monkeypatch.setattr(os, "rename", really_rename)
    report = seal(keys_dir, source, path)
    assert (report.encrypted, report.resumed) == (0, 3)
    assert Sealed(path, source, keys_dir).read() == contents(source)
    assert len([name for name in os.listdir(path / "blobs") if not name.endswith(".digests")]) <= 3 + 7


def test_the_ledger_sees_what_a_killed_run_has_finished(keys_dir: KeySet, tmp_path: Path) -> None:
    """Else the tests above prove nothing."""
    scene = Scene(tmp_path, keys_dir, first=True)
    assert run_until("publish", 1, scene.arguments).returncode == -signal.SIGKILL
    ledger = Ledger(scene.path, keys_dir)
    ledger.look()
    assert len(ledger.finished) == len(ledger.owners) == 8
