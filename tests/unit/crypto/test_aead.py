"""Block and record encryption, against the words of docs/FORMAT.md and with real AES-GCM."""

import os

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from modelfs.crypto import aead
from modelfs.errors import BlockAuthError
from modelfs.format.geometry import Geometry, geometry
from tests.helpers import BLOCK

KEY, ID = bytes(range(32)), "0123456789abcdef" * 2
SHAPE = geometry(2 * BLOCK + 100, BLOCK)


def encrypt(index: int, plaintext: bytes, *, key: bytes = KEY, blob_id: str = ID, shape: Geometry = SHAPE) -> bytes:
    out = bytearray(len(plaintext) + 16)
    aead.BlobCipher(key, blob_id, shape).encrypt_block(index, plaintext, memoryview(out))
    return bytes(out)


@pytest.mark.parametrize(("index", "last"), [(0, 0), (1, 0), (2, 1)])
def test_encrypt_block_is_what_the_specification_says(index: int, last: int) -> None:
    nonce = index.to_bytes(11, "big") + bytes([last])
    aad = b"modelfs/1\0" + bytes.fromhex(ID) + (3).to_bytes(8, "big") + (2 * BLOCK + 100).to_bytes(8, "big")
    assert len(aad) == 42
    assert encrypt(index, b"plain") == AESGCM(KEY).encrypt(nonce, b"plain", aad)


@pytest.mark.parametrize("plaintext", [b"", b"x", bytes(BLOCK)], ids=["empty", "one byte", "whole block"])
def test_decrypt_block_is_the_inverse(plaintext: bytes) -> None:
    out = bytearray(len(plaintext))
    aead.BlobCipher(KEY, ID, SHAPE).decrypt_block(1, memoryview(encrypt(1, plaintext)), memoryview(out))
    assert bytes(out) == plaintext


SECRET = b"PLAINTEXT-OF-THE-MODEL" * 100
GOOD = encrypt(1, SECRET)
WRONG = {
    "bit of the ciphertext": (1, bytes([GOOD[0] ^ 1]) + GOOD[1:], {}),
    "bit of the tag": (1, GOOD[:-1] + bytes([GOOD[-1] ^ 0x80]), {}),
    "other index": (0, GOOD, {}),
    "index that makes it the last": (2, GOOD, {}),
    "other key": (1, GOOD, {"key": bytes(32)}),
    "other blob": (1, GOOD, {"blob_id": "f" * 32}),
    "other block count": (1, GOOD, {"shape": geometry(3 * BLOCK + 100, BLOCK)}),
    "other size": (1, GOOD, {"shape": geometry(2 * BLOCK + 101, BLOCK)}),
    "final flag": (1, GOOD, {"shape": geometry(BLOCK + 100, BLOCK)}),
    "zeros": (1, bytes(len(GOOD)), {}),
}


@pytest.mark.parametrize(("index", "ciphertext", "change"), WRONG.values(), ids=WRONG)
def test_decrypt_block_refuses_and_wipes(index: int, ciphertext: bytes, change: dict) -> None:
    cipher = aead.BlobCipher(change.get("key", KEY), change.get("blob_id", ID), change.get("shape", SHAPE))
    out = bytearray(b"\xaa" * len(SECRET))
    with pytest.raises(BlockAuthError) as caught:
        cipher.decrypt_block(index, memoryview(ciphertext), memoryview(out))
    assert bytes(out) == bytes(len(SECRET)), "the buffer was not wiped"
    assert caught.value.__cause__ is None


def test_decrypt_block_wipes_what_the_library_has_written() -> None:
    """Without the wipe plaintext would lie in the buffer: the library decrypts before it compares the tag."""
    nonce, aad = (1).to_bytes(11, "big") + b"\0", b"aad"
    ciphertext = bytearray(AESGCM(KEY).encrypt(nonce, SECRET, aad))
    ciphertext[-1] ^= 1
    out = bytearray(len(SECRET))
    with pytest.raises(aead.InvalidTag):
        AESGCM(KEY).decrypt_into(nonce, ciphertext, aad, out)
    if bytes(out) == bytes(len(SECRET)):
        pytest.skip("this version of the library wipes by itself")
    assert bytes(out) == SECRET  # and test_decrypt_block_refuses_and_wipes shows that ours is wiped


@pytest.mark.parametrize("size", [0, 16, 31, 33])
def test_blob_cipher_refuses_another_key_size(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        aead.BlobCipher(bytes(size), ID, SHAPE)


def test_nonces_of_a_blob_are_distinct_and_twelve_bytes() -> None:
    cipher = aead.BlobCipher(KEY, ID, SHAPE)
    nonces = {cipher._nonce(index) for index in range(SHAPE.block_count)}
    assert len(nonces) == SHAPE.block_count
    assert {len(nonce) for nonce in nonces} == {12}


def test_record_round_trip() -> None:
    nonce = os.urandom(12)
    sealed = aead.encrypt_record(KEY, nonce, b"aad", b"record")
    assert aead.decrypt_record(KEY, nonce, b"aad", sealed) == b"record"


@pytest.mark.parametrize(
    ("key", "nonce", "aad", "cut"),
    [
        (bytes(32), bytes(12), b"aad", None),
        (KEY, b"\1" * 12, b"aad", None),
        (KEY, bytes(12), b"AAD", None),
        (KEY, bytes(12), b"aad", 20),
        (KEY, bytes(12), b"aad", 15),
        (KEY, bytes(12), b"aad", 0),
    ],
    ids=["key", "nonce", "aad", "truncated", "shorter than a tag", "nothing"],
)
def test_decrypt_record_says_none(key: bytes, nonce: bytes, aad: bytes, cut: int | None) -> None:
    sealed = aead.encrypt_record(KEY, bytes(12), b"aad", b"record")
    assert aead.decrypt_record(key, nonce, aad, sealed[:cut]) is None


@pytest.mark.parametrize("size", [0, 8, 11, 13, 16, 128])
def test_records_refuse_a_nonce_of_another_length(size: int) -> None:
    with pytest.raises(ValueError, match="12 bytes"):
        aead.encrypt_record(KEY, bytes(size), b"", b"")
    with pytest.raises(ValueError, match="12 bytes"):
        aead.decrypt_record(KEY, bytes(size), b"", bytes(16))
