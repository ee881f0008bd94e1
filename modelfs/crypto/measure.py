"""Measured on this host: whether the AEAD of the installed cryptography lets other threads run (older releases hold the GIL all the way),
and how fast a blob can be encrypted anew."""

import threading
import time
from collections.abc import Callable

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from modelfs.crypto.aead import BlobCipher
from modelfs.crypto.digests import leaf_hash_in_place
from modelfs.format.geometry import TAG_SIZE, geometry
from modelfs.format.manifest import DigestName

_SIZE = 16 << 20
_TRIES = 5
_ENOUGH = 2
_REENCRYPTED = 16 << 20


def has_decrypt_into() -> bool:
    """Whether blocks can be decrypted into a buffer that is used again; modelfs does not work without."""
    return hasattr(AESGCM, "decrypt_into") and hasattr(AESGCM, "encrypt_into")


def aead_drops_gil() -> bool:
    """Decrypt 16 MiB of nothing in one thread, five times, and see whether another runs meanwhile. Needs `has_decrypt_into`."""
    aead, nonce, out = AESGCM(bytes(32)), bytes(12), bytearray(_SIZE)
    data = aead.encrypt(nonce, bytes(_SIZE), b"")
    return drops_gil(lambda: aead.decrypt_into(nonce, data, b"", out))


def drops_gil(call: Callable[[], object]) -> bool:
    """Whether another thread runs in the middle of `call`, which is one long call of a C function.

    Not by comparing times: two threads on one busy core take as long with the GIL as without.
    """
    return sum(_is_shared(call) for _ in range(_TRIES)) >= _ENOUGH


def _is_shared(call: Callable[[], object]) -> bool:
    ends: list[float] = []

    def work() -> None:
        started = time.perf_counter()
        try:
            call()
        finally:
            ends.extend((started, time.perf_counter()))

    thread, ticks = threading.Thread(target=work), []
    thread.start()
    while thread.is_alive():
        ticks.append(time.perf_counter())
        time.sleep(0)
    thread.join()
    started, ended = ends
    # Only the middle counts: the threads may change places right before the call and right after it.
    margin = (ended - started) / 4
    return any(started + margin < tick < ended - margin for tick in ticks)


def reencryption_speed(digest: DigestName, block_size: int) -> float:
    """Bytes a second that one core decrypts and encrypts anew, digests included; measured on memory, in some tens of milliseconds."""
    shape = geometry(max(_REENCRYPTED, block_size), block_size)
    cipher = BlobCipher(bytes(32), "00" * 16, shape)
    plaintext = memoryview(bytearray(block_size))
    block = memoryview(bytearray(1 + block_size + TAG_SIZE))
    started = time.perf_counter()
    for index in range(shape.block_count):
        cipher.encrypt_block(index, plaintext, block[1:])
        leaf_hash_in_place(digest, block)
        leaf_hash_in_place(digest, block)
        cipher.decrypt_block(index, block[1:], plaintext)
    return shape.size / (time.perf_counter() - started)
