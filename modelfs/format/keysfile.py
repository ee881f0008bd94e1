"""`keys/<commitment>.json`: the DEK of a release, wrapped once per recipient (docs/FORMAT.md section 5)."""

import hashlib
import re
from typing import Literal

from pydantic import Field, field_validator

from modelfs.format import canonical
from modelfs.format.fields import Base64, decode_base64, encode_base64
from modelfs.format.limits import FORMAT, MAX_KEYS_SIZE, MAX_RECIPIENTS, MAX_WRAPPED_SIZE

_VAULT_WRAPPED = re.compile(rb"vault:v([1-9][0-9]{0,8}):[A-Za-z0-9+/]+=*")


class Recipient(canonical.CanonicalModel):
    """Who can unwrap a DEK. `wrapped` is opaque to everybody but the key provider of `scheme`."""

    key_ref: str
    label: str
    scheme: str = Field(pattern=r"^[a-z0-9]{1,16}\z")
    wrapped: Base64

    @field_validator("key_ref", "label")
    @classmethod
    def _short(cls, text: str) -> str:
        if len(text.encode("utf-8", "surrogatepass")) > 1024:
            raise ValueError("more than 1,024 bytes")
        return text

    @field_validator("wrapped")
    @classmethod
    def _bounded(cls, text: str) -> str:
        if len(decode_base64(text)) > MAX_WRAPPED_SIZE:
            raise ValueError(f"more than {MAX_WRAPPED_SIZE} bytes")
        return text

    @property
    def wrapped_key(self) -> bytes:
        """The wrapped key as bytes."""
        return decode_base64(self.wrapped)

    @property
    def name(self) -> str:
        """What it claims to be wrapped by, `scheme:key_ref`. Untrusted: print it only through `printable`."""
        return f"{self.scheme}:{self.key_ref}"

    @property
    def key_version(self) -> int | None:
        """Version of the KEK that wraps it, as far as the wrapped key says so (scheme `vault`)."""
        found = _VAULT_WRAPPED.fullmatch(self.wrapped_key) if self.scheme == "vault" else None
        return int(found[1]) if found else None


class KeysFile(canonical.CanonicalModel):
    """All recipients of one DEK."""

    format: Literal["modelfs/1/keys"]
    recipients: list[Recipient] = Field(min_length=1, max_length=MAX_RECIPIENTS)

    @field_validator("recipients")
    @classmethod
    def _distinct(cls, entries: list[Recipient]) -> list[Recipient]:
        # Wrapping draws a nonce, so no writer makes one twice: it is a copy, perhaps under another name.
        if len({entry.wrapped for entry in entries}) != len(entries):
            raise ValueError("a wrapped key is there twice")
        return entries


def recipient(scheme: str, key_ref: str, label: str, wrapped_key: bytes) -> Recipient:
    """A recipient entry from raw bytes."""
    return Recipient(key_ref=key_ref, label=label, scheme=scheme, wrapped=encode_base64(wrapped_key))


def keys_file(recipients: list[Recipient]) -> KeysFile:
    """A keys file of this format version."""
    return KeysFile(format="modelfs/1/keys", recipients=recipients)


def names_digest(keys: KeysFile) -> str:
    """SHA-256 over the names of all recipients, in an order that does not depend on theirs: what a plan remembers of them."""
    return hashlib.sha256(canonical.serialize_value(sorted(entry.name for entry in keys.recipients))).hexdigest()


def parse_keys(data: bytes, what: str = "the keys file") -> KeysFile:
    """Parse a keys file; errors as `canonical.parse`."""
    return canonical.parse(KeysFile, data, MAX_KEYS_SIZE, what)


def wrapping_context(model: str, key_id: str) -> bytes:
    """What a key service binds a wrapped key to: format, model name, key id (hex)."""
    return canonical.serialize_value([FORMAT, model, key_id])
