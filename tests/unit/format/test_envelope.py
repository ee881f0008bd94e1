"""The DSSE envelope: strict before any library sees it."""

import json
from typing import Any

import pytest

from modelfs.errors import FormatError, LimitExceededError
from modelfs.format.envelope import build_envelope, parse_envelope, serialize_envelope

TYPE = "application/vnd.modelfs.manifest+json"
GOOD = {"payload": "e30=", "payloadType": TYPE, "signatures": [{"keyid": "k", "sig": "c2ln"}]}


def parse(data: bytes, limit: int = 1 << 20) -> Any:
    return parse_envelope(data, TYPE, limit, "manifest.json")


def dump(**change: Any) -> bytes:
    return json.dumps(GOOD | change).encode()


def test_round_trip() -> None:
    record = build_envelope(b"\x00payload\xff", TYPE, [("one", b"\x01"), ("two", b"")])
    assert parse(serialize_envelope(record)) == record
    assert record.payload_bytes == b"\x00payload\xff"


def test_white_space_and_order_are_free() -> None:
    assert parse(json.dumps(dict(reversed(GOOD.items())), indent=3).encode()).payload_bytes == b"{}"


@pytest.mark.parametrize("count", [1, 64])
def test_number_of_signatures(count: int) -> None:
    assert len(parse(dump(signatures=GOOD["signatures"] * count)).signatures) == count


BAD = {
    "empty": b"",
    "not JSON": b"}",
    "not UTF-8": b'{"payload": "\xff"}',
    "array": b"[]",
    "null": b"null",
    "NaN": b"NaN",
    "deep": b"[" * 100_000,
    "number of 5,000 digits": b"1" * 5000,
    "trailing garbage": dump() + b"x",
    "duplicate payload": dump()[:-1] + b', "payload": "e30="}',
    "duplicate signatures": dump()[:-1] + b', "signatures": []}',
    "duplicate keyid": dump().replace(b'"keyid": "k"', b'"keyid": "k", "keyid": "k"'),
    "unknown field": dump(extra=1),
    "unknown field of a signature": dump(signatures=[{"keyid": "k", "sig": "c2ln", "cert": ""}]),
    "payload missing": json.dumps({name: value for name, value in GOOD.items() if name != "payload"}).encode(),
    "payload not base64": dump(payload="e30"),
    "payload in another base64": dump(payload="_-=="),
    "payload with stray bits": dump(payload="e31="),
    "payload with a line feed": dump(payload="e30=\n"),
    "payload null": dump(payload=None),
    "signature not base64": dump(signatures=[{"keyid": "k", "sig": "c2l"}]),
    "signature missing": dump(signatures=[{"keyid": "k"}]),
    "keyid missing": dump(signatures=[{"sig": "c2ln"}]),
    "keyid a number": dump(signatures=[{"keyid": 1, "sig": "c2ln"}]),
    "keyid too long": dump(signatures=[{"keyid": "k" * 257, "sig": "c2ln"}]),
    "keyid a lone surrogate": dump().replace(b'"k"', b'"\\ud800"'),
    "no signature": dump(signatures=[]),
    "65 signatures": dump(signatures=GOOD["signatures"] * 65),
    "signatures an object": dump(signatures={}),
    "payloadType of a plan": dump(payloadType="application/vnd.modelfs.plan+json"),
    "payloadType in another case": dump(payloadType=TYPE.upper()),
    "payloadType with a space": dump(payloadType=TYPE + " "),
    "payloadType a number": dump(payloadType=1),
    "payloadType a lone surrogate": dump().replace(TYPE.encode(), b"\\udfff"),
}


@pytest.mark.parametrize("data", BAD.values(), ids=BAD)
def test_parse_envelope_refuses(data: bytes) -> None:
    with pytest.raises(FormatError, match=r"^manifest\.json ") as caught:
        parse(data)
    assert not isinstance(caught.value, LimitExceededError)


def test_parse_envelope_checks_its_size_first() -> None:
    with pytest.raises(LimitExceededError, match="limit of 10"):
        parse(b"[" * 11, limit=10)
