"""Everything of modelfs that reads bytes which somebody else may have written, each with seeds and the law of what may come out.

Used by test_fuzz.py, which mutates the seeds, and by guided.py, which also follows the coverage.
"""

import contextlib
import os
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from modelfs.config.mount_file import read_mount_file
from modelfs.control.fence import Fence, State
from modelfs.control.pins import Rows
from modelfs.crypto.kdf import key_commitment
from modelfs.crypto.signatures import load_trusted_keys, verify_envelope
from modelfs.crypto.signing import load_signer, sign_payload
from modelfs.errors import BlockAuthError, ConfigError, FormatError, KeyAccessError, SignatureError, StoreError
from modelfs.format import canonical
from modelfs.format.envelope import parse_envelope, serialize_envelope
from modelfs.format.geometry import geometry
from modelfs.format.index import FileEntry, parse_index
from modelfs.format.keysfile import keys_file, parse_keys, wrapping_context
from modelfs.format.manifest import MANIFEST_TYPE, Plan, parse_manifest, parse_plan
from modelfs.keys.file import open_provider
from modelfs.mount import serve
from modelfs.mount.answers import Answers, KeyedAnswers, KeylessAnswers
from modelfs.mount.view import Appearance, View
from modelfs.mount.wire import WITHOUT_REPLY, Opcode, parse_request
from modelfs.reader.blob import BlobReader, ReadBuffers
from modelfs.reader.verify import verify_blob
from modelfs.seal import journal
from modelfs.seal.encrypt import SealPass
from modelfs.seal.scan import scan_source
from modelfs.store.local import Store
from modelfs.trust.host_state import HostState
from tests.helpers import BLOCK, MODEL, KeySet, Sealed, manifest_payload, seal, write_tree

FILES = {"a": os.urandom(3 * BLOCK + 5), "d/b": b"x" * 10, "d/empty": b""}
DEK, KEY_ID = b"\xdd" * 32, "dd" * 16

HARMLESS = WITHOUT_REPLY | {Opcode.RELEASE, Opcode.RELEASEDIR, Opcode.DESTROY}
"""Requests that are no question."""

CONFIG = b"""\
sealed = "sealed"
mountpoint = "/models/llama"
model = "llama"
kek = "vault:transit/models"
trust = ["release.pem.pub"]
threshold = 1
workers = 2
ttl = 300.5
[vault]
address = "https://vault.example:8200"
ca_file = "ca.pem"
[vault.auth]
method = "approle"
role_id_file = "role-id"
secret_id_file = "/etc/secret-id"
"""


@dataclass(frozen=True)
class Target:
    """One reader of untrusted bytes."""

    seeds: Sequence[bytes]
    """Good input, of which the fuzzers make bad."""
    check: Callable[[bytes], object]
    """Read such bytes; raises if anything comes out that must not."""


def parser(parse: Callable[[bytes], Any]) -> Callable[[bytes], None]:
    """Law of a canonical form: FormatError, or a value that serializes to exactly these bytes."""

    def check(data: bytes) -> None:
        with contextlib.suppress(FormatError):
            assert canonical.serialize(parse(data)) == data

    return check


def make_targets(base: Path, keys: KeySet) -> dict[str, Target]:
    """All of them, with what they need in a new directory."""
    base.mkdir(exist_ok=True)
    seal(keys, write_tree(base / "source", FILES, {"link": "d/b"}), base / "sealed")
    sealed = Sealed(base / "sealed", base / "source", keys, FILES)
    signed = (sealed.path / "manifest.json").read_bytes()
    commitment = key_commitment(DEK).hex()
    plan = Plan(
        block_size=BLOCK, digest="blake3", format="modelfs/1", key_commitment=commitment, key_id=KEY_ID, model=MODEL, release=1,
        recipients="00" * 32, rotates=None,
    )  # fmt: skip
    keys_json = (sealed.path / "keys" / f"{sealed.manifest.key_commitment}.json").read_bytes()
    return {
        "manifest": Target([manifest_payload(sealed.path / "manifest.json")], parser(parse_manifest)),
        "plan": Target([canonical.serialize(plan)], parser(parse_plan)),
        "keys": Target([keys_json], parser(parse_keys)),
        "index": Target([canonical.serialize(sealed.index())], parser(parse_index)),
        "envelope": Target([signed], _envelope(keys, signed)),
        **_journal(base / "journal", keys, plan),
        "digest tree": _tree(base / "tree"),
        "configuration": _file(base / "mount.toml", [CONFIG], read_mount_file),
        "host state": _host_state(base / "state"),
        "public key": _file(base / "key.pem", [keys.public.read_bytes(), keys.signing.read_bytes()], _trusted),
        "KEK file": _file(base / "kek", [keys.kek.read_bytes()], lambda path: open_provider(str(path))),
        **_requests(sealed),
    }


def _trusted(path: Path) -> object:
    return load_trusted_keys([path])


def _envelope(keys: KeySet, signed: bytes) -> Callable[[bytes], None]:
    """Whatever the bytes: what verifies is the payload that was signed."""
    trusted, payload = keys.trusted(), parse_envelope(signed, MANIFEST_TYPE, 1 << 20, "x").payload_bytes

    def check(data: bytes) -> None:
        with contextlib.suppress(FormatError, SignatureError):
            assert verify_envelope(parse_envelope(data, MANIFEST_TYPE, 1 << 20, "x"), trusted, "x")[0] == payload

    return check


def _journal(base: Path, keys: KeySet, plan: Plan) -> dict[str, Target]:
    """Pending work: whatever the bytes, only the plan and the records that the publisher signed come out, in their order."""
    (base / "sealed").mkdir(parents=True)
    source = scan_source(write_tree(base / "source", FILES), False)
    signer, provider, store = load_signer(keys.signing), keys.provider(), Store(base / "sealed")
    store.make_directories("blobs")
    journal.begin(store, plan, keys_file([provider.wrap_key(DEK, wrapping_context(MODEL, KEY_ID))]), signer)
    pending = journal.resume(store, plan, [provider], signer)
    assert pending is not None
    with ThreadPoolExecutor(1) as pool:
        made = [SealPass(store, BLOCK, "blake3", os.urandom, lambda _: None, Event(), pool).encrypt_file(file) for file in source.files]
    with journal.JournalWriter(store, pending, signer, os.urandom) as writer:
        writer.append(made[:2])
        writer.append(made[2:])
    (journal_id,) = journal.journal_ids(store)
    files = {"plan file": journal.PLAN, "pending keys": journal.KEYS, "journal": f"pending/journal-{journal_id}"}
    whole = journal.resume(store, plan, [provider], signer)
    assert whole is not None
    assert len(whole.records) == len(FILES)
    other = sign_payload(canonical.serialize(plan), MANIFEST_TYPE, signer)
    seeds = {name: [(base / "sealed" / file).read_bytes()] for name, file in files.items()}
    seeds["plan file"].append(serialize_envelope(other))

    def check(name: str, data: bytes) -> None:
        path = base / "sealed" / files[name]
        path.write_bytes(data)
        try:
            assert journal.read_plan(store, signer) in (plan, None)
            with contextlib.suppress(StoreError):
                assert all(len(blob_id) == 32 for blob_id in journal.pending_blob_ids(store))
            found = journal.resume(store, plan, [provider], signer)
            assert found is None or (found.dek == DEK and found.records == whole.records[: len(found.records)])
        finally:
            path.write_bytes(seeds[name][0])

    return {name: Target(each, lambda data, name=name: check(name, data)) for name, each in seeds.items()}


def _tree(base: Path) -> Target:
    """Digests of a blob: only the signed tree lets a block through, and then the right one."""
    (base / "blobs").mkdir(parents=True)
    plaintext, key, store = os.urandom(3 * BLOCK + 5), os.urandom(32), Store(base)
    pool = ThreadPoolExecutor(1)
    blob = SealPass(store, BLOCK, "blake3", os.urandom, lambda _: None, Event(), pool).write_bytes(plaintext, "ab" * 16, key)
    path = base / "blobs" / f"{blob.id}.digests"
    good = path.read_bytes()
    shape = geometry(len(plaintext), BLOCK)

    def check(data: bytes) -> None:
        path.write_bytes(data)
        out = bytearray(len(plaintext))
        try:
            reader = BlobReader(store, blob, shape, "blake3", key, ReadBuffers())
            try:
                reader.read_into(0, memoryview(out))
            finally:
                reader.close()
        except (BlockAuthError, StoreError):
            assert data[: len(good)] != good, "the signed tree was refused"
        else:
            assert bytes(out) == plaintext
            assert data[: len(good)] == good, "another tree than the signed one counted"
        faults = verify_blob(store, blob, shape, "blake3", pool)
        assert (not faults) == (data == good)

    return Target([good], check)


def _file(path: Path, seeds: list[bytes], read: Callable[[Path], object]) -> Target:
    """A file of this host's own: a value, ConfigError, or KeyAccessError for a KEK."""
    path.touch(mode=0o600)

    def check(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(ConfigError, KeyAccessError):
            read(path)

    return Target(seeds, check)


def _host_state(base: Path) -> Target:
    base.mkdir()
    (base / f"{MODEL}.json").touch()
    seed = canonical.serialize_value({"model": MODEL, "payload_digest": "ab" * 32, "release": 7})

    def check(data: bytes) -> None:
        (base / f"{MODEL}.json").write_bytes(data)
        with contextlib.suppress(ConfigError):
            seen = HostState(base).seen(MODEL)
            assert seen is not None
            assert canonical.serialize(seen) == data

    return Target([seed], check)


def fuse_request(opcode: int, body: bytes, inode: int = 2, pid: int = 9) -> bytes:
    """What the kernel would write."""
    return struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 1000, inode, 0, 0, pid, 0, 0) + body


def _requests(sealed: Sealed) -> dict[str, Target]:
    """A worker, with and without keys: one well-formed reply, an errno or no more than was asked for; never plaintext without keys."""
    read = struct.pack("<QQIIQII", 2, 0, 4096, 0, 0, 0, 0)
    bodies = {Opcode.LOOKUP: b"a\0", Opcode.READ: read, Opcode.READDIR: read, Opcode.READDIRPLUS: read, Opcode.GETATTR: bytes(16)}
    seeds = [fuse_request(opcode, bodies.get(opcode, bytes(8)), inode) for opcode in Opcode for inode in (1, 2, 3)]
    index = sealed.index()
    fence, rows = Fence(), Rows()
    rows.write([(entry.size if isinstance(entry, FileEntry) else 0, 0o100444) for entry in index.entries])
    view = View(Store(sealed.path), sealed.manifest, index, Appearance(0, 0, None))
    keyed = KeyedAnswers(view, fence, fence.open_epoch())
    dark = Fence()
    dark.open_epoch()
    dark.close(State.LOCKED)
    contents = [FILES[entry.path] if isinstance(entry, FileEntry) else None for entry in index.entries]

    def check(answers: Answers, data: bytes) -> None:
        try:
            request = parse_request(memoryview(data))
        except ValueError:
            assert len(data) < 40
            return
        error, payload = serve._answer(answers, request)
        assert 0 <= error < 4096
        assert not error or not len(payload)
        assert len(payload) <= (1 << 20) + 4096
        if request.opcode in (Opcode.READ, Opcode.READDIR, Opcode.READDIRPLUS) and not error:
            _, offset, size = struct.unpack_from("<QQI", request.body)
            assert len(payload) <= size
            if request.opcode == Opcode.READ:
                content = contents[request.inode - 1]
                assert content is not None
                assert bytes(payload) == content[offset : offset + size]
        if isinstance(answers, KeylessAnswers) and request.opcode not in WITHOUT_REPLY | {
            Opcode.RELEASE,
            Opcode.RELEASEDIR,
            Opcode.DESTROY,
        }:
            assert error, "answered without a key"

    return {
        "FUSE request": Target(seeds, lambda data: check(keyed, data)),
        "FUSE request, locked": Target(seeds, lambda data: check(KeylessAnswers(dark, rows), data)),
    }
