"""The measurement tells a call that holds the GIL from one that does not."""

import time

from modelfs.crypto.measure import aead_drops_gil, drops_gil, has_decrypt_into


def test_a_call_that_holds_the_gil() -> None:
    haystack = bytes(8 << 20)
    assert not drops_gil(lambda: haystack.count(b"ab"))


def test_a_call_that_drops_it() -> None:
    assert drops_gil(lambda: time.sleep(0.02))


def test_the_installed_cryptography() -> None:
    assert has_decrypt_into()
    assert aead_drops_gil()
