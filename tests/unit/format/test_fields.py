"""Field types: names, times, base64, ids."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from pydantic import TypeAdapter, ValidationError

from modelfs.format import fields
from modelfs.format.limits import MAX_FILE_SIZE, MAX_RELEASE


@pytest.mark.parametrize("name", ["a", "7", "Llama-3.1_8B", "x" * 128])
def test_check_model_name_takes(name: str) -> None:
    assert fields.check_model_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "-x", "_x", "a/b", "a b", "a\n", "x" * 129, "é", "a\0", "a:b"])
def test_check_model_name_refuses(name: str) -> None:
    with pytest.raises(ValueError):
        fields.check_model_name(name)


def test_format_time_is_utc_and_whole_seconds() -> None:
    moment = datetime(2025, 1, 2, 3, 4, 5, 678901, tzinfo=timezone(timedelta(hours=2)))
    assert fields.format_time(moment) == "2025-01-02T01:04:05Z"
    assert fields.parse_time("2025-01-02T01:04:05Z") == datetime(2025, 1, 2, 1, 4, 5, tzinfo=UTC)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2025-01-02",
        "2025-01-02T03:04:05",
        "2025-01-02T03:04:05z",
        "2025-01-02 03:04:05Z",
        "2025-1-02T03:04:05Z",
        "2025-13-02T03:04:05Z",
        "2025-02-30T03:04:05Z",
        "2025-01-02T24:00:00Z",
        "2025-01-02T03:04:60Z",
        "2025-01-02T03:04:61Z",
        "2025-01-02T03:04:05.1Z",
        "2025-01-02T03:04:05+00:00",
        "2025-01-02T03:04:05Z ",
        "2025-01-02T03:04:05Z\n",
        "٢٠٢٥-01-02T03:04:05Z",
        "0000-01-02T03:04:05Z",
    ],
)
def test_parse_time_refuses(text: str) -> None:
    with pytest.raises(ValueError):
        fields.parse_time(text)


@pytest.mark.parametrize("data", [b"", b"a", b"ab", b"abc", bytes(range(256))])
def test_base64_round_trip(data: bytes) -> None:
    assert fields.decode_base64(fields.encode_base64(data)) == data


@pytest.mark.parametrize(
    "text",
    ["a", "YQ", "YQ=", "YQ===", "YR==", "YWF=", "YQ==\n", " YQ==", "YQ==YQ==", "Y-_=", "é", "====", "Y*Q==", "YQ=\x00="],
)
def test_decode_base64_refuses(text: str) -> None:
    with pytest.raises(ValueError):
        fields.decode_base64(text)


GOOD_BAD = {
    "HexId": (fields.HexId, ["0" * 32, "deadbeef" * 4], ["", "0" * 31, "0" * 33, "A" * 32, "g" * 32, "0" * 32 + "\n", "٠" * 32, 0]),
    "HexDigest": (fields.HexDigest, ["0" * 64], ["0" * 63, "0" * 65, "F" * 64, "0" * 64 + "\n", None]),
    "BlockSize": (fields.BlockSize, [4096, 131072, 1 << 22], [0, 1, 4095, 2048, 1 << 23, -4096, 4096.0, "4096", True]),
    "Release": (fields.Release, [1, MAX_RELEASE], [0, -1, MAX_RELEASE + 1, "1", 1.0, True, 10**400]),
    "FileSize": (fields.FileSize, [0, MAX_FILE_SIZE], [-1, MAX_FILE_SIZE + 1, "0", False]),
    "Time": (fields.Time, ["2025-01-02T03:04:05Z"], ["now", "", 0]),
    "ModelName": (fields.ModelName, ["m"], ["", "/", 1]),
    "Base64": (fields.Base64, ["", "YQ=="], ["YQ", "YR==", b"YQ=="]),
}


@pytest.mark.parametrize(("kind", "good", "bad"), GOOD_BAD.values(), ids=GOOD_BAD)
def test_field_types(kind: object, good: list[object], bad: list[object]) -> None:
    adapter = TypeAdapter(kind)
    for value in good:
        assert adapter.validate_python(value, strict=True) == value
    for value in bad:
        with pytest.raises(ValidationError):
            adapter.validate_python(value, strict=True)
