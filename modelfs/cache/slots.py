"""A fixed number of reused buffers, each with what was last made under its key: no memory is taken or returned while reading."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from modelfs.cache.scratch import page_aligned

K = TypeVar("K", bound=Hashable)


class SlotCache(Generic[K]):
    """At most `count` values in memory of its own. Not thread-safe: a worker is one thread."""

    def __init__(self, count: int) -> None:
        """Take no memory yet."""
        self._filled: OrderedDict[K, memoryview] = OrderedDict()
        self._free = [memoryview(b"")] * count

    def find(self, key: K) -> memoryview | None:
        """What lies under `key`, now the most recent, or None. Owned by the cache: it holds until the next `fill`."""
        value = self._filled.get(key)
        if value is not None:
            self._filled.move_to_end(key)
        return value

    def fill(self, key: K, length: int, write: Callable[[memoryview], None]) -> memoryview:
        """Have `write` fill `length` bytes of the least recent slot and keep them under `key`.

        If it raises, nothing is kept, and the slot is wiped.
        """
        self._drop(key)
        memory = self._free.pop() if self._free else self._whole(self._filled.popitem(last=False)[1])
        if len(memory) < length:
            memory = page_aligned(length)
        value = memory[:length]
        try:
            write(value)
        except BaseException:
            value[:] = bytes(length)
            self._free.append(memory)
            raise
        self._filled[key] = value
        return value

    def _drop(self, key: K) -> None:
        value = self._filled.pop(key, None)
        if value is not None:
            self._free.append(self._whole(value))

    @staticmethod
    def _whole(value: memoryview) -> memoryview:
        """The slot's memory, of which a last block was shorter."""
        return memoryview(value.obj)
