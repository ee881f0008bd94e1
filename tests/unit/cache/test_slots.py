"""Reused buffers under keys: least recently used, bounded, wiped when filling fails."""

import pytest

from modelfs.cache.slots import SlotCache


def write(text: bytes):
    def fill(out: memoryview) -> None:
        out[:] = text

    return fill


def test_kept_until_the_least_recent_slot_is_needed() -> None:
    cache: SlotCache[int] = SlotCache(2)
    assert cache.find(1) is None
    assert cache.fill(1, 3, write(b"one")) == b"one"
    cache.fill(2, 3, write(b"two"))
    assert cache.find(1) == b"one"  # 2 is the least recent now
    cache.fill(3, 5, write(b"three"))
    assert (cache.find(1), cache.find(2), cache.find(3)) == (b"one", None, b"three")


def test_memory_is_reused_whole_after_a_shorter_value() -> None:
    cache: SlotCache[int] = SlotCache(1)
    first = cache.fill(1, 8192, write(b"a" * 8192)).obj
    assert cache.fill(2, 10, write(b"b" * 10)).obj is first
    assert cache.fill(3, 8192, write(b"c" * 8192)).obj is first
    assert cache.fill(3, 4096, write(b"d" * 4096)) == b"d" * 4096
    assert cache.find(3) == b"d" * 4096


def test_a_failed_fill_keeps_nothing_and_wipes() -> None:
    cache: SlotCache[int] = SlotCache(1)
    seen: list[memoryview] = []

    def fail(out: memoryview) -> None:
        out[:] = b"half"
        seen.append(out)
        raise ValueError

    cache.fill(1, 4, write(b"good"))
    with pytest.raises(ValueError):
        cache.fill(2, 4, fail)
    assert bytes(seen[0]) == bytes(4)
    assert cache.find(1) is None
    assert cache.find(2) is None
    assert cache.fill(2, 4, write(b"then")) == b"then"
