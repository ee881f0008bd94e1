"""Laws of the format: parse and serialize are inverses, and no other bytes mean the same thing."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from modelfs.crypto.signatures import verify_envelope
from modelfs.crypto.signing import load_signer, sign_payload
from modelfs.errors import FormatError, SignatureError
from modelfs.format import canonical
from modelfs.format.envelope import build_envelope, parse_envelope, serialize_envelope
from modelfs.format.fields import format_time
from modelfs.format.index import DirEntry, FileEntry, Index, SymlinkEntry, build_index, parse_index
from modelfs.format.journal import JournalRecord
from modelfs.format.keysfile import KeysFile, Recipient, keys_file, parse_keys, recipient
from modelfs.format.limits import MAX_FILE_SIZE, MAX_RELEASE
from modelfs.format.manifest import MANIFEST_TYPE, BlobEntry, Manifest, Plan, parse_manifest, parse_plan
from modelfs.trust.host_state import Seen
from tests.helpers import KeySet

hex_of = lambda size: st.binary(min_size=size, max_size=size).map(bytes.hex)  # noqa: E731
times = st.datetimes(datetime(1000, 1, 1), datetime(9999, 12, 30)).map(lambda moment: format_time(moment.replace(tzinfo=UTC)))
sizes = st.integers(0, MAX_FILE_SIZE)
block_sizes = st.sampled_from([4096 << shift for shift in range(11)])
names = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", fullmatch=True)
digests = st.sampled_from(["blake3", "sha256"])
releases = st.integers(1, MAX_RELEASE)
text = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
components = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\0"), min_size=1, max_size=12).filter(
    lambda name: name not in (".", "..")
)


@st.composite
def manifests(draw: st.DrawFn) -> Manifest:
    ids = sorted(draw(st.sets(hex_of(16), min_size=1, max_size=5)))
    index = draw(st.sampled_from(ids))
    blobs = [BlobEntry(id=name, root=draw(hex_of(32)), size=draw(st.integers(0, 1000) if name == index else sizes)) for name in ids]
    return Manifest(
        block_size=draw(block_sizes), blobs=blobs, cipher="AES-256-GCM", created=draw(times), digest=draw(digests),
        expires=draw(st.none() | times), format="modelfs/1", index=index, key_commitment=draw(hex_of(32)), key_id=draw(hex_of(16)),
        model=draw(names), release=draw(releases),
    )  # fmt: skip


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    return Plan(
        block_size=draw(block_sizes), digest=draw(digests), format="modelfs/1", key_commitment=draw(hex_of(32)), key_id=draw(hex_of(16)),
        model=draw(names), recipients=draw(hex_of(32)), release=draw(releases), rotates=draw(st.none() | hex_of(32)),
    )  # fmt: skip


@st.composite
def indexes(draw: st.DrawFn) -> Index:
    modes, mtimes = st.integers(0, 0o555).map(lambda mode: mode & 0o555), st.integers(0, (1 << 63) - 1)
    directories = [""]
    entries: list[Any] = [DirEntry(kind="dir", mode=draw(modes), mtime=draw(mtimes), path="")]
    taken = {""}
    for number in range(draw(st.integers(0, 8))):
        parent, name = draw(st.sampled_from(directories)), draw(components)
        path = f"{parent}/{name}" if parent else name
        if path in taken:
            continue
        taken.add(path)
        kind = draw(st.sampled_from(["dir", "file", "symlink"]))
        if kind == "dir":
            directories.append(path)
            entries.append(DirEntry(kind="dir", mode=draw(modes), mtime=draw(mtimes), path=path))
        elif kind == "file":
            entries.append(
                FileEntry(
                    blob=f"{number:032x}", digest=draw(hex_of(32)), key=draw(hex_of(32)), kind="file", mode=draw(modes),
                    mtime=draw(mtimes), path=path, size=draw(sizes),
                )
            )  # fmt: skip
        else:
            # Into a fresh name, so that it neither escapes nor loops: those have tests of their own.
            entries.append(SymlinkEntry(kind="symlink", mtime=draw(mtimes), path=path, target=f"to\n{number}"))
    return build_index(entries)


@st.composite
def keys_files(draw: st.DrawFn) -> KeysFile:
    schemes = st.from_regex(r"[a-z0-9]{1,16}", fullmatch=True)
    each = st.builds(recipient, schemes, text, text, st.binary(max_size=80))
    entries: list[Recipient] = draw(st.lists(each, min_size=1, max_size=4, unique_by=lambda entry: entry.wrapped))
    return keys_file(entries)


journal_records = st.builds(
    JournalRecord, digest=hex_of(32), key=hex_of(32), path=components, root=hex_of(32), size=sizes,
    source=st.lists(st.integers(-(1 << 62), 1 << 62), min_size=5, max_size=5),
)  # fmt: skip
seen = st.builds(Seen, model=names, payload_digest=hex_of(32), release=releases)

LAWS: dict[str, tuple[st.SearchStrategy[Any], Callable[[bytes], Any]]] = {
    "manifest": (manifests(), parse_manifest),
    "plan": (plans(), parse_plan),
    "index": (indexes(), parse_index),
    "keys": (keys_files(), parse_keys),
    "journal record": (journal_records, lambda data: canonical.parse(JournalRecord, data, 1 << 20, "x")),
    "host state": (seen, lambda data: canonical.parse(Seen, data, 1 << 20, "x")),
}


@pytest.mark.parametrize(("values", "parse"), LAWS.values(), ids=LAWS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_parse_is_the_inverse_of_serialize(values: st.SearchStrategy[Any], parse: Callable[[bytes], Any], data: st.DataObject) -> None:
    value = data.draw(values)
    assert parse(canonical.serialize(value)) == value


@pytest.mark.parametrize("values", [values for values, _ in LAWS.values()], ids=LAWS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_serialize_writes_what_the_specification_says(values: st.SearchStrategy[Any], data: st.DataObject) -> None:
    """Two writers, the parser's own and the standard library's: sorted fields, no white space, the same escapes."""
    value = data.draw(values)
    assert canonical.serialize(value) == canonical.serialize_value(value.model_dump(mode="python"))


@st.composite
def mutations(draw: st.DrawFn, data: bytes) -> bytes:
    """A few edits: flips, insertions (of JSON's own characters often), deletions, copies of a slice elsewhere."""
    result = bytearray(data)
    for _ in range(draw(st.integers(1, 3))):
        at = draw(st.integers(0, max(0, len(result) - 1)))
        kind = draw(st.sampled_from(["flip", "set", "insert", "delete", "copy"]))
        if kind == "flip" and result:
            result[at] ^= 1 << draw(st.integers(0, 7))
        elif kind == "set" and result:
            result[at] = draw(st.sampled_from(b'0123456789abcdef"{}[],: \\-eE.\n\0\xff'))
        elif kind == "insert":
            result[at:at] = draw(st.sampled_from([b" ", b"0", b",", b'"', b"\\u0061", b"null", b"\xc3\xa9", b"-", b"\n", b"1e0"]))
        elif kind == "delete":
            del result[at : at + draw(st.integers(1, 20))]
        else:
            end = draw(st.integers(at, min(len(result), at + 60)))
            to = draw(st.integers(0, len(result)))
            result[to:to] = result[at:end]
    return bytes(result)


@pytest.mark.parametrize(("values", "parse"), LAWS.values(), ids=LAWS)
@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_mutated_bytes_are_refused_or_mean_what_they_say(
    values: st.SearchStrategy[Any], parse: Callable[[bytes], Any], data: st.DataObject
) -> None:
    """Only FormatError, or a value that serializes to exactly these bytes: no two byte strings mean one thing."""
    mutated = data.draw(mutations(canonical.serialize(data.draw(values))))
    try:
        value = parse(mutated)
    except FormatError:
        return
    assert canonical.serialize(value) == mutated


@pytest.mark.parametrize("parse", [parse for _, parse in LAWS.values()], ids=LAWS)
@settings(max_examples=60, deadline=None)
@given(data=st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_raise_only_format_errors(parse: Callable[[bytes], Any], data: bytes) -> None:
    with pytest.raises(FormatError):
        parse(data)


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=200), st.lists(st.tuples(text, st.binary(max_size=100)), min_size=1, max_size=5))
def test_envelope_round_trip(payload: bytes, signatures: list[tuple[str, bytes]]) -> None:
    record = build_envelope(payload, MANIFEST_TYPE, signatures)
    assert parse_envelope(serialize_envelope(record), MANIFEST_TYPE, 1 << 20, "x") == record


@settings(max_examples=400, deadline=None)
@given(data=st.data())
def test_mutated_envelope_never_verifies_with_another_payload(keys_dir: KeySet, data: st.DataObject) -> None:
    payload = b'{"release":1,"model":"demo"}'
    signed = serialize_envelope(sign_payload(payload, MANIFEST_TYPE, load_signer(keys_dir.signing)))
    try:
        record = parse_envelope(data.draw(mutations(signed)), MANIFEST_TYPE, 1 << 20, "x")
    except FormatError:
        return
    assert parse_envelope(serialize_envelope(record), MANIFEST_TYPE, 1 << 20, "x") == record
    try:
        assert verify_envelope(record, keys_dir.trusted(), "x")[0] == payload
    except SignatureError:
        return


def test_every_single_byte_of_a_signed_envelope(keys_dir: KeySet) -> None:
    """Each byte flipped: refused, or (white space, a keyid) the same payload."""
    payload = os.urandom(40)
    signed = serialize_envelope(sign_payload(payload, MANIFEST_TYPE, load_signer(keys_dir.signing)))
    trusted = keys_dir.trusted()
    refused = 0
    for position in range(len(signed)):
        changed = bytearray(signed)
        changed[position] ^= 1
        try:
            record = parse_envelope(bytes(changed), MANIFEST_TYPE, 1 << 20, "x")
            assert verify_envelope(record, trusted, "x")[0] == payload
        except (FormatError, SignatureError):
            refused += 1
    assert refused > len(signed) // 2
