"""Canonical JSON: the only bytes a reader accepts are those it would write."""

import pytest

from modelfs.errors import FormatError, LimitExceededError, UnsupportedVersionError
from modelfs.format import canonical


class Sample(canonical.CanonicalModel):
    a: int
    b: str
    format: str = "modelfs/1"


GOOD = b'{"a":1,"b":"x","format":"modelfs/1"}'


def parse(data: bytes) -> Sample:
    return canonical.parse(Sample, data, 200, "the sample")


def test_parse_takes_what_serialize_writes() -> None:
    assert parse(GOOD) == Sample(a=1, b="x")
    assert canonical.serialize(parse(GOOD)) == GOOD


def test_fields_that_are_not_in_order_are_a_bug() -> None:
    with pytest.raises(TypeError, match="the fields of Unsorted are not declared in the order"):
        type("Unsorted", (canonical.CanonicalModel,), {"__annotations__": {"b": int, "a": int}})


@pytest.mark.parametrize("number", [*range(0x20), 0x22, 0x5C, 0x7F, 0x80, 0x2028, 0xFFFE, 0x1F600])
def test_serialize_escapes_what_it_must_and_no_more(number: int) -> None:
    sample = Sample(a=1, b=chr(number))
    assert canonical.serialize(sample) == canonical.serialize_value(sample.model_dump())
    assert parse(canonical.serialize(sample)) == sample


def test_serialize_refuses_a_lone_surrogate() -> None:
    with pytest.raises(FormatError, match="not valid UTF-8"):
        canonical.serialize(Sample(a=1, b="\ud800"))


MALFORMED = {
    "empty": b"",
    "not JSON": b"{",
    "array": b"[]",
    "null": b"null",
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "not UTF-8": b'{"a":1,"b":"\xff","format":"modelfs/1"}',
    "space": b'{"a": 1,"b":"x","format":"modelfs/1"}',
    "line feed at the end": GOOD + b"\n",
    "two documents": GOOD + GOOD,
    "order": b'{"b":"x","a":1,"format":"modelfs/1"}',
    "duplicate field": b'{"a":2,"a":1,"b":"x","format":"modelfs/1"}',
    "duplicate field with the same value": b'{"a":1,"a":1,"b":"x","format":"modelfs/1"}',
    "unknown field": b'{"a":1,"b":"x","c":1,"format":"modelfs/1"}',
    "missing field": b'{"a":1,"format":"modelfs/1"}',
    "missing default": b'{"a":1,"b":"x"}',
    "number as text": b'{"a":"1","b":"x","format":"modelfs/1"}',
    "text as number": b'{"a":1,"b":1,"format":"modelfs/1"}',
    "true for one": b'{"a":true,"b":"x","format":"modelfs/1"}',
    "float": b'{"a":1.0,"b":"x","format":"modelfs/1"}',
    "exponent": b'{"a":1e0,"b":"x","format":"modelfs/1"}',
    "leading zero": b'{"a":01,"b":"x","format":"modelfs/1"}',
    "minus zero": b'{"a":-0,"b":"x","format":"modelfs/1"}',
    "NaN": b'{"a":NaN,"b":"x","format":"modelfs/1"}',
    "needless escape": b'{"a":1,"b":"\\u0078","format":"modelfs/1"}',
    "escaped slash": b'{"a":1,"b":"x","format":"modelfs\\/1"}',
    "escape in upper case": b'{"a":1,"b":"\\u001F","format":"modelfs/1"}',
    "lone surrogate": b'{"a":1,"b":"\\ud800","format":"modelfs/1"}',
    "huge number": b'{"a":' + b"9" * 150 + b',"b":1,"format":"modelfs/1"}',
    "deep": b"[" * 200,
}


@pytest.mark.parametrize("data", MALFORMED.values(), ids=MALFORMED)
def test_parse_refuses(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse(data)


@pytest.mark.parametrize("escape", [b'\\"', b"\\\\", b"\\b", b"\\f", b"\\n", b"\\r", b"\\t", b"\\u001f", "é\u2028\x7f".encode()])
def test_parse_takes_exactly_the_escapes_that_json_demands(escape: bytes) -> None:
    data = b'{"a":1,"b":"' + escape + b'","format":"modelfs/1"}'
    assert canonical.serialize(parse(data)) == data


def test_parse_checks_the_size_before_anything_else() -> None:
    with pytest.raises(LimitExceededError, match="201 bytes, more than the limit of 200"):
        parse(b"{" * 201)


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (b'{"format":"modelfs/2","new":1}', UnsupportedVersionError),
        (b'{"format":"modelfs/10/keys","new":1}', UnsupportedVersionError),
        (b'{"format":"modelfs/1","new":1}', FormatError),
        (b'{"format":"other/2","new":1}', FormatError),
        (b'{"format":7,"new":1}', FormatError),
    ],
)
def test_parse_names_another_version(data: bytes, error: type[FormatError]) -> None:
    with pytest.raises(FormatError) as caught:
        parse(data)
    assert type(caught.value) is error


def test_error_text_never_quotes_the_input() -> None:
    with pytest.raises(FormatError) as caught:
        parse(b'{"a":"SECRETSECRET","b":"x","format":"modelfs/1"}')
    assert "SECRET" not in str(caught.value)


def test_serialize_value_refuses_lone_surrogates() -> None:
    with pytest.raises(FormatError):
        canonical.serialize_value(["\udcff"])


def test_models_are_frozen() -> None:
    with pytest.raises(ValueError):
        parse(GOOD).a = 2
