"""The field types that manifest, index and keys share (docs/FORMAT.md sections 3 to 5)."""

import base64
import binascii
import re
from datetime import UTC, datetime
from typing import Annotated

from pydantic import AfterValidator, Field

from modelfs.format.geometry import is_block_size
from modelfs.format.limits import MAX_FILE_SIZE, MAX_RELEASE

ID_SIZE = 16
KEY_SIZE = 32

_TIME = "%Y-%m-%dT%H:%M:%SZ"
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def check_model_name(name: str) -> str:
    """Return `name`, or raise ValueError with what a name may be."""
    if not _MODEL_NAME.fullmatch(name):
        raise ValueError("a model name is 1 to 128 of A-Z a-z 0-9 . _ - and starts with a letter or digit")
    return name


def format_time(moment: datetime) -> str:
    """`moment` (aware) as the format writes times: UTC, whole seconds."""
    return moment.astimezone(UTC).strftime(_TIME)


def parse_time(text: str) -> datetime:
    """The moment that `text` names; ValueError unless it is exactly what `format_time` writes."""
    moment = datetime.strptime(text, _TIME).replace(tzinfo=UTC)
    if format_time(moment) != text:
        raise ValueError("a time is YYYY-MM-DDTHH:MM:SSZ")
    return moment


def encode_base64(data: bytes) -> str:
    """RFC 4648 section 4, with padding."""
    return base64.b64encode(data).decode()


def decode_base64(text: str) -> bytes:
    """Strict inverse of `encode_base64`; ValueError for anything else."""
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, UnicodeError) as exc:
        raise ValueError("not base64") from exc
    if encode_base64(data) != text:
        raise ValueError("not canonical base64")
    return data


def _time(text: str) -> str:
    parse_time(text)
    return text


def _block_size(value: int) -> int:
    if not is_block_size(value):
        raise ValueError("not a power of two within the format's bounds")
    return value


def _base64(text: str) -> str:
    decode_base64(text)
    return text


HexId = Annotated[str, Field(pattern=r"^[0-9a-f]{32}\z")]
HexDigest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}\z")]
ModelName = Annotated[str, AfterValidator(check_model_name)]
Time = Annotated[str, AfterValidator(_time)]
BlockSize = Annotated[int, AfterValidator(_block_size)]
Base64 = Annotated[str, AfterValidator(_base64)]
Release = Annotated[int, Field(ge=1, le=MAX_RELEASE)]
FileSize = Annotated[int, Field(ge=0, le=MAX_FILE_SIZE)]
