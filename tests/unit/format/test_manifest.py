"""The manifest and the plan: exactly the fields of docs/FORMAT.md, and nothing else."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from modelfs.errors import FormatError, LimitExceededError, UnsupportedVersionError
from modelfs.format import canonical
from modelfs.format.limits import MAX_INDEX_SIZE, MAX_MANIFEST_SIZE, MAX_PLAN_SIZE
from modelfs.format.manifest import BlobEntry, Manifest, Plan, parse_manifest, parse_plan
from tests.helpers import REPOSITORY

A, B, C = "aa" * 16, "bb" * 16, "cc" * 16


def fields() -> dict[str, Any]:
    return {
        "block_size": 4096,
        "blobs": [{"id": A, "root": "1" * 64, "size": 10}, {"id": B, "root": "2" * 64, "size": 0}],
        "cipher": "AES-256-GCM",
        "created": "2025-01-01T00:00:00Z",
        "digest": "blake3",
        "expires": None,
        "format": "modelfs/1",
        "index": B,
        "key_commitment": "3" * 64,
        "key_id": "4" * 32,
        "model": "demo",
        "release": 1,
    }


def test_fields_are_those_of_the_specification() -> None:
    section = (REPOSITORY / "docs" / "FORMAT.md").read_text().partition("## 3. Manifest")[2].partition("## 4.")[0]
    documented = set(re.findall(r"^\| `([a-z_]+)` \|", section, re.MULTILINE))
    assert len(documented) >= 12
    assert documented == set(Manifest.model_fields)
    assert set(fields()) == documented


def test_parse_manifest_round_trip() -> None:
    data = canonical.serialize_value(fields())
    manifest = parse_manifest(data)
    assert canonical.serialize(manifest) == data
    assert manifest.index_blob.id == B
    assert manifest.geometry(manifest.blobs[0]).ciphertext_size == 26


def test_parse_manifest_takes_an_expiry() -> None:
    assert parse_manifest(canonical.serialize_value(fields() | {"expires": "2026-01-01T00:00:00Z"})).expires == "2026-01-01T00:00:00Z"


def blob(**change: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields["blobs"][0].update(change)


def put(**change: Any) -> Callable[[dict[str, Any]], None]:
    return lambda fields: fields.update(change)


BAD: dict[str, Callable[[dict[str, Any]], Any]] = {
    "unknown field": put(extra=1),
    "unknown field of a blob": blob(extra=1),
    "unsorted blobs": lambda fields: fields["blobs"].reverse(),
    "duplicate blob": lambda fields: fields["blobs"].insert(0, fields["blobs"][0]),
    "index not among the blobs": put(index=C),
    "index too large": lambda fields: fields["blobs"][1].update(size=MAX_INDEX_SIZE + 1),
    "no blobs": put(blobs=[]),
    "other cipher": put(cipher="AES-128-GCM"),
    "other digest": put(digest="md5"),
    "block size not a power of two": put(block_size=4097),
    "negative size": blob(size=-1),
    "size over the limit": blob(size=(1 << 44) + 1),
    "id in upper case": blob(id="AA" * 16),
    "id with a path": blob(id="../" + "a" * 29),
    "root too short": blob(root="1" * 63),
    "release 0": put(release=0),
    "release over 2^53": put(release=1 << 53),
    "release as text": put(release="1"),
    "model name with a slash": put(model="a/b"),
    "created null": put(created=None),
    "expires without zone": put(expires="2026-01-01T00:00:00"),
    "commitment missing": lambda fields: fields.pop("key_commitment"),
    "expires missing": lambda fields: fields.pop("expires"),
    "blobs an object": put(blobs={}),
}


@pytest.mark.parametrize("change", BAD.values(), ids=BAD)
def test_parse_manifest_refuses(change: Callable[[dict[str, Any]], Any]) -> None:
    value = fields()
    change(value)
    with pytest.raises(FormatError) as caught:
        parse_manifest(canonical.serialize_value(value))
    assert not isinstance(caught.value, UnsupportedVersionError)


@pytest.mark.parametrize("version", ["modelfs/2", "modelfs/0", "modelfs/11", "modelfs/"])
def test_parse_manifest_names_another_version(version: str) -> None:
    with pytest.raises(UnsupportedVersionError, match="use a newer modelfs"):
        parse_manifest(canonical.serialize_value(fields() | {"format": version, "new": []}))


def test_parse_manifest_checks_its_size_first() -> None:
    with pytest.raises(LimitExceededError):
        parse_manifest(b"[" * (MAX_MANIFEST_SIZE + 1))


PLAN = {name: value for name, value in fields().items() if name in Plan.model_fields} | {"recipients": "ef" * 32, "rotates": None}


def test_plan_has_the_fields_of_the_specification() -> None:
    row = next(line for line in (REPOSITORY / "docs" / "FORMAT.md").read_text().splitlines() if line.startswith("| `plan.json` | DSSE"))
    assert set(re.findall(r'"([a-z_]+)"', row)) == set(Plan.model_fields)


def test_parse_plan_round_trip() -> None:
    data = canonical.serialize_value(PLAN)
    assert canonical.serialize(parse_plan(data)) == data


@pytest.mark.parametrize("change", [{"blobs": []}, {"release": 0}, {"format": "modelfs/2"}, {"digest": None}, {"recipients": None}])
def test_parse_plan_refuses(change: dict[str, Any]) -> None:
    with pytest.raises(FormatError):
        parse_plan(canonical.serialize_value(PLAN | change))


def test_parse_plan_checks_its_size_first() -> None:
    with pytest.raises(LimitExceededError):
        parse_plan(b" " * (MAX_PLAN_SIZE + 1))


def test_blob_entry_is_frozen() -> None:
    entry = BlobEntry(id=A, root="1" * 64, size=1)
    with pytest.raises(ValueError):
        entry.size = 2
