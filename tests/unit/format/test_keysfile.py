"""The keys file: bounded, strict, and what a wrapped key is bound to."""

import json
from typing import Any

import pytest

from modelfs.errors import FormatError, LimitExceededError, UnsupportedVersionError
from modelfs.format import canonical
from modelfs.format.fields import encode_base64
from modelfs.format.keysfile import keys_file, parse_keys, recipient, wrapping_context

ENTRY = {"key_ref": "1f", "label": "", "scheme": "file", "wrapped": "YWJj"}


def dump(*entries: dict[str, Any], **change: Any) -> bytes:
    return canonical.serialize_value({"format": "modelfs/1/keys", "recipients": list(entries)} | change)


def test_round_trip() -> None:
    keys = keys_file([recipient("file", "1f", "host é", b"\x00\xff"), recipient("vault", "transit/k", "", b"")])
    data = canonical.serialize(keys)
    assert parse_keys(data) == keys
    assert parse_keys(data).recipients[0].wrapped_key == b"\x00\xff"


GOOD = {
    "64 recipients": dump(*(ENTRY | {"wrapped": encode_base64(bytes([number]))} for number in range(64))),
    "key_ref of 1,024 bytes": dump(ENTRY | {"key_ref": "é" * 512}),
    "wrapped of 16 KiB": dump(ENTRY | {"wrapped": encode_base64(bytes(16 * 1024))}),
    "unknown scheme": dump(ENTRY | {"scheme": "tpm2"}),
}


@pytest.mark.parametrize("data", GOOD.values(), ids=GOOD)
def test_parse_keys_takes(data: bytes) -> None:
    assert canonical.serialize(parse_keys(data)) == data


BAD = {
    "no recipients": dump(),
    "65 recipients": dump(*(ENTRY | {"wrapped": encode_base64(bytes([number]))} for number in range(65))),
    "a wrapped key twice": dump(ENTRY, ENTRY | {"key_ref": "other"}),
    "key_ref of 1,025 bytes in 1,024 letters": dump(ENTRY | {"key_ref": "x" * 1023 + "é"}),
    "label of 1,025 bytes": dump(ENTRY | {"label": "x" * 1025}),
    "wrapped over 16 KiB": dump(ENTRY | {"wrapped": encode_base64(bytes(16 * 1024 + 1))}),
    "wrapped not base64": dump(ENTRY | {"wrapped": "YWJ"}),
    "wrapped with stray bits": dump(ENTRY | {"wrapped": "YWI="[:-2] + "J="}),
    "empty scheme": dump(ENTRY | {"scheme": ""}),
    "scheme of 17 letters": dump(ENTRY | {"scheme": "a" * 17}),
    "scheme in upper case": dump(ENTRY | {"scheme": "File"}),
    "scheme with a line feed": dump(ENTRY | {"scheme": "file\n"}),
    "unknown field": dump(ENTRY, extra=1),
    "unknown field of a recipient": dump(ENTRY | {"address": "https://kms"}),
    "label missing": dump({name: value for name, value in ENTRY.items() if name != "label"}),
    "not canonical": json.dumps({"format": "modelfs/1/keys", "recipients": [ENTRY]}).encode(),
    "duplicate field": dump(ENTRY).replace(b'"label":""', b'"label":"","label":""'),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_parse_keys_refuses(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_keys(data)


def test_parse_keys_checks_its_size_first() -> None:
    with pytest.raises(LimitExceededError):
        parse_keys(b"[" * ((1 << 20) + 1))


def test_parse_keys_names_another_version() -> None:
    with pytest.raises(UnsupportedVersionError):
        parse_keys(dump(ENTRY, format="modelfs/2/keys"))


def test_wrapping_context_cannot_be_confused() -> None:
    assert wrapping_context("demo", "ab" * 16) == b'["modelfs/1","demo","' + b"ab" * 16 + b'"]'
    assert wrapping_context('a","b', "c") != wrapping_context("a", 'b","c')
