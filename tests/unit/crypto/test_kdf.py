"""Key derivation against HKDF written from RFC 5869 with the standard library alone."""

import hashlib
import hmac

import pytest

from modelfs.crypto import kdf

DEK, ID = bytes(range(32)), "0f" * 16


def hkdf_sha256(ikm: bytes, salt: bytes, info: bytes, length: int) -> bytes:
    """RFC 5869 section 2."""
    prk = hmac.new(salt or bytes(32), ikm, hashlib.sha256).digest()
    okm, block = b"", b""
    for counter in range(1, -(-length // 32) + 1):
        block = hmac.new(prk, block + info + bytes([counter]), hashlib.sha256).digest()
        okm += block
    return okm[:length]


def test_the_yardstick_agrees_with_rfc_5869() -> None:
    ikm, salt, info = b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA))
    expected = "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    assert hkdf_sha256(ikm, salt, info, 42).hex() == expected


DERIVED = {
    "commitment": (kdf.key_commitment(DEK), b"", b"modelfs/1/commitment", 32),
    "index": (kdf.index_key(DEK, ID), bytes.fromhex(ID), b"modelfs/1/index", 32),
    "journal": (kdf.journal_key(DEK, ID), bytes.fromhex(ID), b"modelfs/1/journal", 32),
    "wrap": (kdf.file_kek_wrap_key(DEK), b"", b"modelfs/1/kek-file-wrap", 32),
    "id": (bytes.fromhex(kdf.file_kek_id(DEK)), b"", b"modelfs/1/kek-file-id", 8),
}


@pytest.mark.parametrize(("derived", "salt", "info", "length"), DERIVED.values(), ids=DERIVED)
def test_derivations_are_what_the_specification_says(derived: bytes, salt: bytes, info: bytes, length: int) -> None:
    assert derived == hkdf_sha256(DEK, salt, info, length)


def test_every_purpose_has_a_key_of_its_own() -> None:
    assert len({derived[:8] for derived, *_ in DERIVED.values()}) == len(DERIVED)
    assert kdf.index_key(DEK, ID) != kdf.index_key(DEK, "1f" * 16)


def test_commitment_agrees() -> None:
    commitment = kdf.key_commitment(DEK).hex()
    assert kdf.commitment_agrees(DEK, commitment)
    assert not kdf.commitment_agrees(bytes(32), commitment)
    assert not kdf.commitment_agrees(DEK, "0" * 64)


@pytest.mark.parametrize("size", [0, 16, 31, 33, 64])
def test_keys_to_derive_from_are_32_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        kdf.key_commitment(bytes(size))
