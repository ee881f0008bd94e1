"""The specification, the program and the independent reader hold each other to the same bytes."""

import json
import os
import shutil
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from modelfs.crypto.signatures import load_trusted_keys
from modelfs.keys.file import open_provider
from modelfs.keys.interface import unwrap_dek
from modelfs.reader.blob import BlobReader, ReadBuffers
from modelfs.reader.index import fetch_index, open_index
from modelfs.reader.verify import verify_store
from modelfs.store.local import Store
from modelfs.trust.release import read_keys, read_release
from tests.conftest import SealedBuilder
from tests.helpers import REPOSITORY

HERE = Path(__file__).parent
VECTORS = sorted(path.name for path in HERE.glob("v*-*"))
assert VECTORS, "the frozen vectors are missing"
MTIME = 1_700_000_000_123_456_789


@pytest.fixture(params=VECTORS)
def vector(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A copy of a frozen vector, because a checkout does not keep the KEK's mode."""
    copy = tmp_path / "vector"
    shutil.copytree(HERE / request.param, copy)
    (copy / "kek").chmod(0o600)
    return copy


def expected(vector: Path) -> dict[str, bytes]:
    found = {path: bytes.fromhex(text) for path, text in json.loads((vector / "expected.json").read_text()).items()}
    assert len(found) == 8
    return found


def decrypt_ref(*args: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, REPOSITORY / "scripts" / "decrypt_ref.py", *args]
    return subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)


def test_modelfs_reads_the_frozen_vector(vector: Path) -> None:
    with Store(vector / "sealed") as store:
        trusted = load_trusted_keys([vector / "release.pem.pub"])
        manifest = read_release(store, trusted, model="vector", now=datetime.now(UTC)).manifest
        assert (manifest.release, manifest.block_size) == (7, 4096)
        assert verify_store(store, manifest) == []
        dek = unwrap_dek(open_provider(str(vector / "kek")), read_keys(store, manifest), manifest)
        index = open_index(fetch_index(store, manifest), manifest, dek)
        blobs = {blob.id: blob for blob in manifest.blobs}
        got = {}
        for entry in index.files:
            blob = blobs[entry.blob]
            buffers = ReadBuffers()
            reader = BlobReader(store, blob, manifest.geometry(blob), manifest.digest, entry.blob_key, buffers)
            out = bytearray(entry.size)
            assert reader.read_into(0, memoryview(out)) == entry.size
            reader.close()
            got[entry.path] = bytes(out)
            assert entry.mtime == MTIME
    assert got == expected(vector)


def test_the_independent_reader_reads_the_frozen_vector(vector: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = decrypt_ref(vector / "sealed", "--trust", vector / "release.pem.pub", "--kek", vector / "kek", "--out", out)
    assert done.returncode == 0, done.stderr
    files = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file() and not path.is_symlink()}
    assert files == expected(vector)
    assert os.readlink(out / "latest") == "sizes/many"
    info = (out / "config.json").stat()
    assert (stat.S_IMODE(info.st_mode), info.st_mtime_ns) == (0o444, MTIME)


def test_the_independent_reader_reads_what_modelfs_seals_now(sealed: SealedBuilder, tmp_path: Path) -> None:
    files = {"a/b": os.urandom(70000), "c": b"", "d": os.urandom(4096)}
    model = sealed(files)
    done = decrypt_ref(model.path, "--trust", model.keys.public, "--kek", model.keys.kek, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert {path: (tmp_path / "out" / path).read_bytes() for path in files} == files


@pytest.mark.parametrize("position", [0, -1])
def test_the_independent_reader_refuses_a_flipped_bit_in_every_file(vector: Path, position: int) -> None:
    targets = [path for path in sorted((vector / "sealed").rglob("*")) if path.is_file() and path.parent.name != "manifests"]
    assert len(targets) > 10
    for path in targets:
        good = path.read_bytes()
        bad = bytearray(good)
        bad[position if bad[position] != 0x0A else position - 1] ^= 1
        path.write_bytes(bad)
        done = decrypt_ref(vector / "sealed", "--trust", vector / "release.pem.pub", "--kek", vector / "kek")
        assert done.returncode == 1, path
        assert done.stderr.startswith("error: "), done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        path.write_bytes(good)
