"""Canonical JSON (docs/FORMAT.md section 3): one value, one byte string.

A reader accepts only the bytes that it would write itself, so duplicate fields, other number forms, white space and unsorted
fields are all rejected by one comparison.
"""

import json
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import PydanticSerializationError

from modelfs.errors import FormatError, LimitExceededError, UnsupportedVersionError
from modelfs.format.limits import FORMAT


class StrictModel(BaseModel):
    """A frozen record whose fields are exactly those declared, with no conversion of types."""

    # cache_strings: the parser would else keep values (names, keys) alive in a cache that nobody can empty.
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid", hide_input_in_errors=True, cache_strings="keys")


class CanonicalModel(StrictModel):
    """A record that has canonical bytes. Its fields are declared in the order of their names, and hold what `serialize_value` takes."""

    @classmethod
    def __pydantic_init_subclass__(cls, **_: Any) -> None:
        """Hold every subclass to what `serialize` relies on."""
        if list(cls.model_fields) != sorted(cls.model_fields):
            raise TypeError(f"the fields of {cls.__name__} are not declared in the order of their names")


M = TypeVar("M", bound=CanonicalModel)


def serialize_value(value: Any) -> bytes:
    """The canonical bytes of `value`, which holds only dicts, lists, strings, integers, booleans and None.

    Raises:
        FormatError: A string is not Unicode text (a lone surrogate).
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    try:
        return text.encode()
    except UnicodeEncodeError as exc:
        raise FormatError("a name is not valid UTF-8") from exc


def serialize(model: CanonicalModel) -> bytes:
    """The canonical bytes of `model`: `serialize_value` of its fields, without making Python objects of them.

    Raises:
        FormatError: As `serialize_value`.
    """
    try:
        return model.__pydantic_serializer__.to_json(model)
    except PydanticSerializationError as exc:
        raise FormatError("a name is not valid UTF-8") from exc


def check_size(data: bytes | bytearray, limit: int, what: str) -> None:
    """Refuse `data` of more than `limit` bytes, before anything parses it."""
    if len(data) > limit:
        raise LimitExceededError(f"{what} is {len(data)} bytes, more than the limit of {limit}")


def reject_other_version(data: bytes | bytearray, what: str) -> None:
    """Say so plainly when `data` is JSON of another format version."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return
    found = value.get("format") if isinstance(value, dict) else None
    if isinstance(found, str) and found.startswith("modelfs/") and found.split("/")[1:2] != FORMAT.split("/")[1:]:
        raise UnsupportedVersionError(f"{what} is of format {found[:40]!r}, and this program reads {FORMAT!r}: use a newer modelfs")


def parse(model: type[M], data: bytes | bytearray, limit: int, what: str) -> M:
    """Parse canonical JSON strictly.

    Args:
        model: What the bytes must be.
        data: Untrusted bytes.
        limit: Size bound in bytes, checked first.
        what: Name of the thing for the error message.

    Raises:
        LimitExceededError: `data` is too long.
        UnsupportedVersionError: `data` is of another format version.
        FormatError: anything else that is not exactly right.
    """
    check_size(data, limit, what)
    try:
        value = model.model_validate_json(data)
    except (ValidationError, RecursionError) as exc:
        reject_other_version(data, what)
        raise FormatError(f"{what} is malformed: {first_problem(exc)}") from None
    if serialize(value) != data:
        raise FormatError(f"{what} is malformed: it is not canonical JSON (a duplicate field, white space or order)")
    return value


def first_problem(exc: Exception) -> str:
    """One short line about the first fault that pydantic found; never the input itself."""
    if not isinstance(exc, ValidationError):
        return type(exc).__name__
    error = exc.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in error["loc"])[:80]
    return f"{where}: {error['msg'][:200]}" if where else error["msg"][:200]
