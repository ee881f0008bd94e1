"""Every file of a sealed model, altered in every way a storage writer might: named by `verify`, refused by a reader, never wrong bytes."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelfs.crypto.aead import BlobCipher
from modelfs.crypto.digests import leaf_hash, page_hashes
from modelfs.crypto.kdf import index_key
from modelfs.errors import (
    BlobNotFoundError,
    BlockAuthError,
    FormatError,
    KeyAccessError,
    KeyDeniedError,
    ModelfsError,
    RollbackError,
    SignatureError,
    StoreError,
    VerificationError,
)
from modelfs.format import canonical
from modelfs.format.geometry import DIGEST_SIZE, TAG_SIZE
from modelfs.format.keysfile import keys_file, parse_keys, wrapping_context
from modelfs.reader.verify import Fault, verify_store
from modelfs.store.local import Store
from modelfs.trust.host_state import HostState
from modelfs.trust.release import read_release
from tests.helpers import BLOCK, MODEL, NOW, FileOutcome, KeySet, Sealed, read_all, seal, store_files, unverified_manifest, write_tree

STEP = BLOCK + TAG_SIZE

SIZES = {"empty": 0, "small": 100, "exact": BLOCK, "big": 4 * BLOCK + 500, "dir/changed": 3 * BLOCK, "dir/twin": 3 * BLOCK}
TREE = {"dir/link": "../small"} | {f"dangling{number:02}": "x" * 200 for number in range(20)}
"""Enough symlinks to make the index longer than a block."""


@dataclass(frozen=True)
class World:
    """A model with two releases, and another one with the same files' names: all by one publisher under one KEK."""

    model: Sealed
    other: Sealed
    roles: dict[str, str]
    """What a file is for -> its name in the store of `model`."""
    other_roles: dict[str, str]


def build(keys: KeySet, root: Path, name: str) -> tuple[Sealed, dict[str, str]]:
    source = write_tree(root / f"{name}.source", {path: os.urandom(size) for path, size in SIZES.items()}, TREE)
    path = root / name
    seal(keys, source, path, model=name, release=1)
    roles = {}
    first = Sealed(path, source, keys)
    for suffix in ("", ".digests"):
        roles[f"old changed{suffix}"] = f"blobs/{first.entry('dir/changed').blob}{suffix}"
        roles[f"old index{suffix}"] = f"blobs/{first.manifest.index}{suffix}"
    roles["old keys"] = f"keys/{first.manifest.key_commitment}.json"

    (source / "dir/changed").write_bytes(os.urandom(SIZES["dir/changed"]))
    seal(keys, source, path, model=name, release=2)
    sealed = Sealed(path, source, keys, {file: (source / file).read_bytes() for file in SIZES})
    for entry in sealed.index().files:
        roles[entry.path] = f"blobs/{entry.blob}"
        if entry.size > BLOCK:
            roles[f"{entry.path}.digests"] = f"blobs/{entry.blob}.digests"
    roles["index"] = f"blobs/{sealed.manifest.index}"
    roles["index.digests"] = f"blobs/{sealed.manifest.index}.digests"
    roles["keys"] = f"keys/{sealed.manifest.key_commitment}.json"
    roles |= {"manifest.json": "manifest.json", "manifests/1.json": "manifests/1.json", "manifests/2.json": "manifests/2.json"}
    return sealed, roles


@pytest.fixture(scope="module")
def world(keys_dir: KeySet, tmp_path_factory: pytest.TempPathFactory) -> World:
    root = tmp_path_factory.mktemp("world")
    model, roles = build(keys_dir, root, MODEL)
    other, other_roles = build(keys_dir, root, "other")
    assert sorted(roles.values()) == store_files(model.path), "a file of the sealed model has no role in this matrix"
    assert set(roles) == set(ROLES)
    assert model.faults() == []
    assert model.read() == model.plain
    return World(model, other, roles, other_roles)


BLOBS = ["empty", "small", "exact", "big", "dir/changed", "dir/twin"]
DIGESTS = ["big.digests", "dir/changed.digests", "dir/twin.digests"]
UNUSED = ["old changed", "old changed.digests", "old index", "old index.digests", "old keys", "manifests/1.json", "manifests/2.json"]
"""Files that release 2 does not need; what they hold must not matter to who reads release 2."""
ROLES = [*BLOBS, *DIGESTS, "index", "index.digests", "keys", "manifest.json", *UNUSED]


def flip(data: bytes, position: int) -> bytes:
    return data[:position] + bytes([data[position] ^ 1]) + data[position + 1 :]


def replace(data: bytes, start: int, new: bytes) -> bytes:
    return data[:start] + new + data[start + len(new) :]


TAMPERS: dict[str, Callable[[bytes], bytes | None]] = {
    "flip first byte": lambda data: flip(data, 0),
    "flip middle byte": lambda data: flip(data, len(data) // 2),
    "flip last byte": lambda data: flip(data, len(data) - 1),
    "truncate to 0": lambda data: b"",
    "truncate by 2": lambda data: data[:-2],
    "truncate at a block boundary": lambda data: data[:STEP] if len(data) > STEP else None,
    "drop the first block": lambda data: data[STEP:] if len(data) > STEP else None,
    "extend by 1": lambda data: data + b"\0",
    "extend by a copy of the first block": lambda data: data + data[:STEP],
    "zero a block": lambda data: replace(data, 0, bytes(min(len(data), STEP))),
    "swap two blocks": lambda data: data[STEP : 2 * STEP] + data[:STEP] + data[2 * STEP :] if len(data) >= 2 * STEP else None,
    "repeat a block": lambda data: replace(data, STEP, data[:STEP]) if len(data) >= 2 * STEP else None,
    "all zeros": lambda data: bytes(len(data)),
    "garbage": lambda data: os.urandom(len(data)),
}


def faults_or_error(model: Sealed) -> list[Fault] | ModelfsError:
    """What `verify` says: the faults, or why it cannot begin."""
    try:
        with Store(model.path) as store:
            return verify_store(store, read_release(store, model.keys.trusted(), model=None, now=NOW).manifest)
    except ModelfsError as exc:
        return exc


@dataclass(frozen=True)
class Expectation:
    """What verify must find and reading must do."""

    verify: type[ModelfsError] | tuple[type[ModelfsError], ...] | str | None
    """Error, or "fault" naming the file, or "maybe" (a keys file that is well-formed but wrong shows only with a key), or None."""
    read: tuple[type[ModelfsError], ...] = ()
    """Errors that reading the whole model, or the one file, ends with; none: everything is read."""
    file: str | None = None
    """The only file that may fail; None: the model as a whole."""


def expected(role: str, longer: bool, empty: bool) -> Expectation:
    """The rule for each kind of file.

    Args:
        role: What was altered.
        longer: The original bytes are all there, with more behind.
        empty: Nothing is left.
    """
    file = role.removesuffix(".digests")
    if role in UNUSED:
        return Expectation(None)
    if role == "manifest.json":
        return Expectation((FormatError, SignatureError), (FormatError, SignatureError))
    if role == "keys":
        return Expectation("maybe", (FormatError, KeyDeniedError))
    if role == "index":
        return Expectation("fault", (BlockAuthError,))
    if role == "index.digests":
        return Expectation("fault")  # a reader holds the whole index and needs no leaves
    # What follows the signed bytes of a blob is never read; neither is the one block of an empty file, whose size is signed.
    if longer or role == "empty":
        return Expectation("fault")
    return Expectation("fault", (BlockAuthError,), file)


def spilled_only_plaintext(result: FileOutcome, plain: bytes) -> bool:
    """Whether the buffer of the failed read holds, block by block, the file's own bytes or zeros."""
    start, at = len(result.data), 0
    while at < len(result.spilled):
        length = BLOCK - (start + at) % BLOCK
        piece, good = result.spilled[at : at + length], plain[start + at :][:length][: len(result.spilled) - at]
        if piece.rstrip(b"\0") != b"" and piece[: len(good)] != good:
            return False
        at += length
    return True


def check(model: Sealed, role: str, name: str, want: Expectation) -> None:
    """Assert what verify and reading say of an altered copy, and that no wrong byte comes out whatever they say."""
    verdict = faults_or_error(model)
    if isinstance(verdict, ModelfsError):
        assert isinstance(want.verify, (type, tuple)), verdict
        assert isinstance(verdict, want.verify), verdict
    else:
        found = {fault.blob for fault in verdict}
        this = name.removeprefix("blobs/").removesuffix(".digests")
        assert want.verify in ("fault", "maybe", None), f"verify did not raise {want.verify}"
        assert found == ({this} if want.verify == "fault" else (found & {this} if want.verify == "maybe" else set()))

    for step in (BLOCK, 1000, 16 * BLOCK):  # one block, parts of blocks, and many by one read of the store
        outcome = read_all(model.path, model.keys, step=step)
        for path, result in outcome.files.items():
            plain = model.plain[path]
            assert plain.startswith(result.data), f"wrong bytes came out of {path}"
            if result.error is None:
                assert result.data == plain, f"{path} ended early"
            elif step == BLOCK:
                assert result.spilled == bytes(len(result.spilled)), f"bytes of a bad block of {path} were left in the buffer"
            else:
                assert spilled_only_plaintext(result, plain), f"bytes of a bad block of {path} were left in the buffer"
        failed = {path for path, result in outcome.files.items() if result.error}
        if not want.read:
            assert outcome.errors == []
            assert len(outcome.files) == len(model.plain)
        else:
            assert outcome.errors, f"altered {role} went unnoticed"
            assert all(isinstance(error, want.read) for error in outcome.errors), outcome.errors
            assert failed == ({want.file} if want.file else set())
            assert (outcome.error is None) is (want.file is not None)


def applies(tamper: str, role: str) -> bool:
    """Leave out what cannot be done to a blob of one block; the sizes of the others are asserted in the test."""
    if tamper not in ("truncate at a block boundary", "drop the first block", "swap two blocks", "repeat a block"):
        return True
    return role in ("big", "dir/changed", "dir/twin", "index", "old changed", "old index")


CASES = [(tamper, role) for tamper in TAMPERS for role in ROLES if applies(tamper, role)]


@pytest.mark.parametrize(("tamper", "role"), CASES, ids=[f"{role}: {tamper}" for tamper, role in CASES])
def test_altered_file(world: World, tmp_path: Path, tamper: str, role: str) -> None:
    model, name = world.model.copy(tmp_path / "copy"), world.roles[role]
    before = (model.path / name).read_bytes()
    if tamper in ("swap two blocks", "repeat a block") and len(before) < 2 * STEP:
        assert "index" in role  # one block and a bit: the second is not whole
        after: bytes | None = before[STEP:] + before[:STEP]
    else:
        after = TAMPERS[tamper](before)
    assert after is not None
    assert after != before
    (model.path / name).write_bytes(after)
    longer = after.startswith(before)
    check(model, role, name, expected(role, longer, not after))


@pytest.mark.parametrize("role", ROLES)
def test_deleted_file(world: World, tmp_path: Path, role: str) -> None:
    model, name = world.model.copy(tmp_path / "copy"), world.roles[role]
    (model.path / name).unlink()
    file = role.removesuffix(".digests")
    want = {
        "manifest.json": Expectation(StoreError, (StoreError,)),
        "keys": Expectation("maybe", (BlobNotFoundError,)),
        "index": Expectation("fault", (BlobNotFoundError,)),
        "index.digests": Expectation("fault"),
        **{unused: Expectation(None) for unused in UNUSED},
    }.get(role, Expectation("fault", (BlobNotFoundError,), file))
    check(model, role, name, want)
    if role == "keys":
        (fault,) = model.faults()
        assert (fault.blob, fault.found) == (name, "missing")


@pytest.mark.parametrize("kind", ["directory", "FIFO", "symlink"])
@pytest.mark.parametrize("role", [role for role in ROLES if role not in UNUSED])
@pytest.mark.timeout(30)
def test_file_replaced_by_something_else(world: World, tmp_path: Path, role: str, kind: str) -> None:
    model, name = world.model.copy(tmp_path / "copy"), world.roles[role]
    path = model.path / name
    path.rename(tmp_path / "moved")
    if kind == "directory":
        path.mkdir()
    elif kind == "FIFO":
        os.mkfifo(path)
    else:
        path.symlink_to(tmp_path / "moved")  # the right bytes, but not in the model's directory
    file = role.removesuffix(".digests")
    want = {
        "manifest.json": Expectation(StoreError, (StoreError,)),
        "keys": Expectation("maybe", (StoreError,)),
        "index": Expectation("fault", (StoreError,)),
        "index.digests": Expectation("fault"),
    }.get(role, Expectation("fault", (StoreError,), file))
    check(model, role, name, want)


@pytest.mark.parametrize("role", [role for role in ROLES if role not in ("manifest.json", "keys", *UNUSED)])
def test_file_replaced_by_another_models(world: World, tmp_path: Path, role: str) -> None:
    """Same publisher, same KEK, same file name in the other model."""
    model, name = world.model.copy(tmp_path / "copy"), world.roles[role]
    shutil.copyfile(world.other.path / world.other_roles[role], model.path / name)
    check(model, role, name, expected(role, longer=False, empty=False))


@pytest.mark.parametrize("role", ["dir/changed", "dir/changed.digests", "index", "index.digests"])
def test_file_replaced_by_an_older_releases(world: World, tmp_path: Path, role: str) -> None:
    model, name = world.model.copy(tmp_path / "copy"), world.roles[role]
    shutil.copyfile(model.path / world.roles["old " + role.removeprefix("dir/")], model.path / name)
    check(model, role, name, expected(role, longer=False, empty=False))


def test_blob_and_digests_replaced_together_by_an_older_releases(world: World, tmp_path: Path) -> None:
    """A consistent pair: only the signed root tells."""
    model = world.model.copy(tmp_path / "copy")
    for suffix in ("", ".digests"):
        shutil.copyfile(model.path / world.roles[f"old changed{suffix}"], model.path / world.roles[f"dir/changed{suffix}"])
    check(model, "dir/changed", world.roles["dir/changed"], Expectation("fault", (BlockAuthError,), "dir/changed"))


def forge(model: Sealed, name: str, key: bytes, plaintext: bytes) -> None:
    """Encrypt other content as an existing blob under its own key, with digests that agree: what a holder of the keys can do."""
    manifest = model.manifest
    blob = next(blob for blob in manifest.blobs if blob.id == name)
    shape = manifest.geometry(blob)
    assert len(plaintext) == shape.size
    cipher, blocks = BlobCipher(key, name, shape), []
    for index in range(shape.block_count):
        part = plaintext[index * BLOCK : (index + 1) * BLOCK]
        out = bytearray(len(part) + TAG_SIZE)
        cipher.encrypt_block(index, part, memoryview(out))
        blocks.append(bytes(out))
    leaves = b"".join(leaf_hash(manifest.digest, block) for block in blocks)
    (model.path / "blobs" / name).write_bytes(b"".join(blocks))
    if shape.block_count > 1:
        (model.path / "blobs" / f"{name}.digests").write_bytes(page_hashes(manifest.digest, leaves) + leaves)


@pytest.mark.parametrize("path", ["small", "exact", "big", "dir/twin"])
@pytest.mark.parametrize("keep_page_digests", [False, True])
def test_content_forged_by_a_holder_of_the_keys(world: World, tmp_path: Path, path: str, keep_page_digests: bool) -> None:
    """Every tag is right, every digest agrees with the blocks: only the publisher's signature over the root tells."""
    model = world.model.copy(tmp_path / "copy")
    entry = model.entry(path)
    digests = model.path / "blobs" / f"{entry.blob}.digests"
    before = digests.read_bytes() if digests.exists() else b""
    forge(model, entry.blob, entry.blob_key, b"E" * entry.size)
    if before and keep_page_digests:
        digests.write_bytes(before[:DIGEST_SIZE] + digests.read_bytes()[DIGEST_SIZE:])
    check(model, path, f"blobs/{entry.blob}", Expectation("fault", (BlockAuthError,), path))


def test_index_forged_by_a_holder_of_the_dek(world: World, tmp_path: Path) -> None:
    """Two files' names exchanged, which changes no length: a model would load the wrong weights."""
    model = world.model.copy(tmp_path / "copy")
    name = model.manifest.index
    plaintext = canonical.serialize(model.index())
    forged = plaintext.replace(b'"path":"exact"', b'"path":"EXACT"')
    assert forged != plaintext
    forge(model, name, index_key(model.dek(), name), forged)
    check(model, "index", f"blobs/{name}", Expectation("fault", (BlockAuthError,)))


@pytest.mark.parametrize("with_digests", [True, False], ids=["with their digests", "blobs only"])
def test_two_blobs_of_one_size_swapped(world: World, tmp_path: Path, with_digests: bool) -> None:
    model = world.model.copy(tmp_path / "copy")
    for suffix in ("", ".digests") if with_digests else ("",):
        one, two = (model.path / world.roles[f"{path}{suffix}"] for path in ("dir/changed", "dir/twin"))
        one.rename(tmp_path / "aside")
        two.rename(one)
        (tmp_path / "aside").rename(two)
    faults = model.faults()
    blobs = {world.roles[path].removeprefix("blobs/") for path in ("dir/changed", "dir/twin")}
    assert {fault.blob for fault in faults} == blobs
    outcome = read_all(model.path, model.keys)
    for path, result in outcome.files.items():
        if path in ("dir/changed", "dir/twin"):
            assert isinstance(result.error, BlockAuthError)
            assert result.data == b""
        else:
            assert result.data == model.plain[path]


def test_every_block_fault_is_named(world: World, tmp_path: Path) -> None:
    model = world.model.copy(tmp_path / "copy")
    path = model.path / world.roles["big"]
    data = bytearray(path.read_bytes())
    for index in (0, 2, 4):
        data[index * STEP + 5] ^= 0x40
    path.write_bytes(data)
    assert [(fault.blob, fault.block) for fault in model.faults()] == [(path.name, 0), (path.name, 2), (path.name, 4)]


def test_manifest_replaced_by_the_older_release(world: World, tmp_path: Path) -> None:
    """It is authentic, so what tells is the host's memory; and the mix of manifest 1 with release 2's other files still reads right."""
    model = world.model.copy(tmp_path / "copy")
    state = HostState(tmp_path / "state")
    state.record(model.release())
    shutil.copyfile(model.path / "manifests/1.json", model.path / "manifest.json")
    with pytest.raises(RollbackError):
        state.check(model.release())
    assert model.faults() == []
    outcome = read_all(model.path, model.keys)
    assert outcome.errors == []
    for path, result in outcome.files.items():
        assert (result.data == model.plain[path]) is (path != "dir/changed")


def test_manifest_replaced_by_another_models(world: World, tmp_path: Path) -> None:
    model = world.model.copy(tmp_path / "copy")
    shutil.copyfile(world.other.path / "manifest.json", model.path / "manifest.json")
    outcome = read_all(model.path, model.keys)
    assert isinstance(outcome.error, VerificationError)
    assert outcome.files == {}
    # Whoever names no model sees that nothing of it is there.
    manifest = unverified_manifest(model.path / "manifest.json")
    assert {fault.blob for fault in model.faults()} == {f"keys/{manifest.key_commitment}.json", *(blob.id for blob in manifest.blobs)}


def test_white_space_around_the_manifest_changes_nothing(world: World, tmp_path: Path) -> None:
    """The envelope may be formatted in any way; its payload may not."""
    model = world.model.copy(tmp_path / "copy")
    path = model.path / "manifest.json"
    path.write_bytes(b"\n \t" + path.read_bytes() + b"\r\n")
    assert model.read() == model.plain


# -- the keys file, which nobody signs


def rewrite_keys(model: Sealed, dek: bytes, *, key_id: str | None = None, name: str = MODEL) -> None:
    """Wrap `dek` under the right KEK as the current release's key, as anybody could who may encrypt with that KEK."""
    manifest = model.manifest
    entry = model.keys.provider().wrap_key(dek, wrapping_context(name, key_id or manifest.key_id))
    (model.path / f"keys/{manifest.key_commitment}.json").write_bytes(canonical.serialize(keys_file([entry])))


@pytest.mark.parametrize("case", ["another model's DEK", "the older release's DEK", "a random DEK", "the right DEK for another model"])
def test_keys_with_another_dek_under_the_same_kek(world: World, tmp_path: Path, case: str) -> None:
    model = world.model.copy(tmp_path / "copy")
    if case == "another model's DEK":
        rewrite_keys(model, world.other.dek())
    elif case == "the older release's DEK":
        older = world.model.copy(tmp_path / "older")
        shutil.copyfile(older.path / "manifests/1.json", older.path / "manifest.json")
        rewrite_keys(model, older.dek())
    elif case == "a random DEK":
        rewrite_keys(model, os.urandom(32))
    else:
        rewrite_keys(model, model.dek(), name="other")
    assert model.faults() == []  # well-formed, and nobody without the KEK can tell
    outcome = read_all(model.path, model.keys)
    assert isinstance(outcome.error, KeyDeniedError)
    assert outcome.files == {}


@pytest.mark.parametrize("source", ["another model's", "the older release's"])
def test_keys_file_replaced_by(world: World, tmp_path: Path, source: str) -> None:
    model = world.model.copy(tmp_path / "copy")
    origin = world.other.path / world.other_roles["keys"] if source == "another model's" else model.path / world.roles["old keys"]
    shutil.copyfile(origin, model.path / world.roles["keys"])
    outcome = read_all(model.path, model.keys)
    assert isinstance(outcome.error, KeyAccessError)
    assert outcome.files == {}


def test_keys_file_with_strangers_before_the_right_entry_still_opens(world: World, tmp_path: Path) -> None:
    model = world.model.copy(tmp_path / "copy")
    path = model.path / world.roles["keys"]
    provider, manifest = model.keys.provider(), model.manifest
    decoys = [provider.wrap_key(os.urandom(32), wrapping_context(MODEL, manifest.key_id)) for _ in range(15)]
    path.write_bytes(canonical.serialize(keys_file([*decoys, *parse_keys(path.read_bytes()).recipients])))
    assert model.read() == model.plain


def test_every_byte_of_the_keys_file(world: World, tmp_path: Path) -> None:
    """Each byte flipped: no key comes out, so nothing is read, or the byte did not matter and all is right."""
    model = world.model.copy(tmp_path / "copy")
    path = model.path / world.roles["keys"]
    data = path.read_bytes()
    for position in range(len(data)):
        path.write_bytes(flip(data, position))
        with pytest.raises((FormatError, KeyDeniedError)):
            model.dek()


def test_bytes_of_a_signed_manifest(world: World, tmp_path: Path) -> None:
    model = world.model.copy(tmp_path / "copy")
    path = model.path / "manifest.json"
    data = path.read_bytes()
    digest = world.model.release().payload_digest
    refused = 0
    for position in range(0, len(data), 3):
        path.write_bytes(flip(data, position))
        try:
            assert model.release().payload_digest == digest  # a byte of the keyid, which is only a hint
        except (FormatError, SignatureError):
            refused += 1
    assert refused >= (len(data) - 64) // 3
