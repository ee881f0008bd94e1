"""A model of very many files: what a mount holds of it does not grow with it, and what it holds shows no name."""

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import pytest

from modelfs.control.process import is_running
from modelfs.crypto.kdf import index_key
from modelfs.format import canonical
from modelfs.format.index import DirEntry, FileEntry, build_index
from modelfs.format.manifest import BlobEntry
from modelfs.seal.encrypt import SealPass
from modelfs.store.local import Store
from tests.conftest import SealedBuilder
from tests.helpers import BLOCK, KeySet, Sealed, seal, write_manifest, write_tree
from tests.mount.conftest import Mounted, wait_until
from tests.mount.test_memory import forms, memory

MIB = 1 << 20
REAL = "real.bin"
NAME = "name-that-nobody-else-has"


@dataclass(frozen=True)
class Crowd:
    """A model with many files that nobody has encrypted, beside one that is real."""

    model: Sealed
    count: int

    @classmethod
    def made_of(cls, model: Sealed, count: int) -> "Crowd":
        """Sign `count` more files into `model`: only their entries, since no test reads them."""
        manifest, dek, new = model.manifest, model.dek(), os.urandom(16).hex()
        added = [_file(number) for number in range(count)]
        directories = [DirEntry(kind="dir", mode=0o555, mtime=0, path=path) for path in sorted({_directory(n) for n in range(count)})]
        plaintext = canonical.serialize(build_index([*model.index().entries, *directories, *added]))
        with Store(model.path) as store, ThreadPoolExecutor(1) as pool:
            sealing = SealPass(store, BLOCK, manifest.digest, os.urandom, lambda _: None, Event(), pool)
            index = sealing.write_bytes(plaintext, new, index_key(dek, new))
        blobs = [blob for blob in manifest.blobs if blob.id != manifest.index]
        blobs += [index, *(BlobEntry(id=entry.blob, root="0" * 64, size=entry.size) for entry in added)]
        signed = manifest.model_copy(update={"index": new, "blobs": sorted(blobs, key=lambda blob: blob.id)})
        write_manifest(model.path, canonical.serialize(signed), model.keys.signing)
        return cls(model, count)

    def path(self, number: int) -> str:
        return _path(number)


def _directory(number: int) -> str:
    return f"part-{number // 10_000:03}"


def _path(number: int) -> str:
    return f"{_directory(number)}/{NAME}-{number:07}.bin"


def _file(number: int) -> FileEntry:
    blob, digest, key = (os.urandom(length).hex() for length in (16, 32, 32))
    return FileEntry(blob=blob, digest=digest, key=key, kind="file", mode=0o444, mtime=number, path=_path(number), size=number)


@pytest.fixture(scope="module", params=[12_000, pytest.param(100_000, marks=pytest.mark.slow)])
def crowd(request: pytest.FixtureRequest, keys_dir: KeySet, tmp_path_factory: pytest.TempPathFactory) -> Crowd:
    # More than 10,000: of so many blobs a mount tries none before it starts, and they need not be there.
    base, plain = tmp_path_factory.mktemp("crowd"), {REAL: random.Random(1).randbytes(8 * MIB)}
    source = write_tree(base / "source", plain)
    seal(keys_dir, source, base / "sealed")
    return Crowd.made_of(Sealed(base / "sealed", source, keys_dir, plain), request.param)


def pss(pids: list[int]) -> int:
    """Bytes of memory of these processes together, what they share counted once; and of their memfds, which that leaves out."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
    assert total > 10 * MIB
    return total


def memfds(pid: int) -> dict[str, bytes]:
    """What lies in the memfds of a process, by name."""
    found = {}
    for link in Path(f"/proc/{pid}/fd").iterdir():
        target = os.readlink(link)
        if target.startswith("/memfd:modelfs-"):
            found[target.removeprefix("/memfd:modelfs-").partition(" ")[0]] = link.read_bytes()
    return found


def test_memory_does_not_grow_with_the_number_of_files(crowd: Crowd, sealed: SealedBuilder, mount: Callable[..., Mounted]) -> None:
    """The bar: 200 MiB with one worker, 40 more for each further one, whatever the size of the model."""
    plain = crowd.model.plain[REAL]
    alone = mount(sealed({REAL: plain}, name="alone"), "--workers", 1)
    assert (alone.path / REAL).read_bytes() == plain
    little = pss(alone.pids())
    mounted = mount(crowd.model, "--workers", 1)
    listed = subprocess.run(["find", mounted.path, "-type", "f", "-size", "+0"], capture_output=True, text=True, check=True).stdout.split()
    assert len(listed) == crowd.count  # and not the one of 0 bytes
    assert (mounted.path / REAL).read_bytes() == plain
    much = pss(mounted.pids())
    assert much < 200 * MIB
    assert much - little < 12 * MIB, f"{much / MIB:.0f} MiB instead of {little / MIB:.0f}, for {crowd.count} files"
    kept = sum(map(len, memfds(mounted.facts["control"]).values()))
    assert kept < 64 * 1024 + 256 * crowd.count, "what the kernel holds for the mount is linear, once, and not in any process"


def test_every_file_has_its_own_attributes_and_a_worker_is_replaced_within_a_second(crowd: Crowd, mount: Callable[..., Mounted]) -> None:
    mounted = mount(crowd.model, "--workers", 1)
    for number in [0, 1, crowd.count - 1, *random.Random(2).sample(range(crowd.count), 500)]:
        info = os.stat(mounted.path / crowd.path(number))
        assert (info.st_size, info.st_mtime_ns) == (number, number)
    with pytest.raises(FileNotFoundError):
        os.stat(mounted.path / crowd.path(crowd.count))
    times = []
    for number in range(3):
        (worker,) = mounted.status()["workers"]
        begin = time.monotonic()
        os.kill(worker, signal.SIGKILL)
        wait_until(lambda pid=worker: not is_running(pid), 10, "the death")
        with pytest.raises(FileNotFoundError):  # a name that the kernel has not asked for yet
            os.stat(mounted.path / f"part-000/none-{number}")
        times.append(time.monotonic() - begin)
    assert sorted(times)[1] < 1.0, times


def test_no_name_is_in_control_or_warden_and_none_in_a_memfd(crowd: Crowd, mount: Callable[..., Mounted]) -> None:
    mounted = mount(crowd.model, "--workers", 1)
    os.stat(mounted.path / crowd.path(7))
    facts = mounted.facts
    (worker,) = mounted.status()["workers"]
    name, keys = NAME.encode(), [entry.blob_key for entry in crowd.model.index().files[:3]]
    assert name in memory(worker), "the search must find a name where there is one"
    for pid in (facts["control"], facts["warden"]):
        held = memory(pid)
        assert len(held) > MIB
        assert name not in held
        assert not any(form in held for key in keys for form in forms(key))
    pinned = memfds(facts["control"])
    assert set(pinned) == {"table", "keys", "rows"}
    assert len(pinned["table"]) > 100 * crowd.count
    for data in pinned.values():
        assert name not in data
        assert not any(form in data for key in keys for form in forms(key))
    with pytest.raises(PermissionError), open(f"/proc/{facts['control']}/fd/{_descriptor(facts['control'], 'table')}", "r+b") as file:
        file.write(b"x")


def _descriptor(pid: int, name: str) -> str:
    return next(link.name for link in Path(f"/proc/{pid}/fd").iterdir() if os.readlink(link).startswith(f"/memfd:modelfs-{name}"))
