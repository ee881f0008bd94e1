"""The DSSE envelope as JSON, parsed strictly before any library sees it (docs/FORMAT.md section 3). Verifies nothing."""

import json
from typing import Any

from pydantic import Field, ValidationError

from modelfs.errors import FormatError
from modelfs.format.canonical import CanonicalModel, check_size, first_problem, serialize
from modelfs.format.fields import Base64, decode_base64, encode_base64
from modelfs.format.limits import MAX_SIGNATURES


class SignatureEntry(CanonicalModel):
    """One signature: `keyid` is a hint and decides nothing."""

    keyid: str = Field(max_length=256)
    sig: Base64


class EnvelopeRecord(CanonicalModel):
    """An envelope's fields; `payload` is base64."""

    payload: Base64
    payloadType: str
    signatures: list[SignatureEntry] = Field(min_length=1, max_length=MAX_SIGNATURES)

    @property
    def payload_bytes(self) -> bytes:
        """The signed bytes, not yet verified."""
        return decode_base64(self.payload)


def build_envelope(payload: bytes, payload_type: str, signatures: list[tuple[str, bytes]]) -> EnvelopeRecord:
    """An envelope over `payload` with (keyid, raw signature) pairs."""
    entries = [SignatureEntry(keyid=keyid, sig=encode_base64(sig)) for keyid, sig in signatures]
    return EnvelopeRecord(payload=encode_base64(payload), payloadType=payload_type, signatures=entries)


def serialize_envelope(record: EnvelopeRecord) -> bytes:
    """JSON bytes of an envelope, ending in a line feed."""
    return serialize(record) + b"\n"


def parse_envelope(data: bytes, payload_type: str, limit: int, what: str) -> EnvelopeRecord:
    """Parse an envelope of one payload type.

    Raises:
        LimitExceededError: `data` is longer than `limit` bytes.
        FormatError: it is not exactly such an envelope; duplicate fields included.
    """
    check_size(data, limit, what)

    def reject_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        fields = dict(pairs)
        if len(fields) != len(pairs):
            raise ValueError("a field appears twice")
        return fields

    try:
        value = json.loads(data.decode(), object_pairs_hook=reject_duplicates)
        record = EnvelopeRecord.model_validate(value)
    except ValidationError as exc:
        raise FormatError(f"{what} is not a DSSE envelope: {first_problem(exc)}") from None
    except (ValueError, RecursionError) as exc:
        raise FormatError(f"{what} is not a DSSE envelope: {str(exc)[:200]}") from None
    if record.payloadType != payload_type:
        raise FormatError(f"{what} has payloadType {record.payloadType[:80]!r} instead of {payload_type!r}")
    return record
