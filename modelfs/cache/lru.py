"""A small least-recently-used map that tells what it drops."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class LruMap(Generic[K, V]):
    """At most `capacity` items. Not thread-safe: a worker is one thread."""

    def __init__(self, capacity: int, dropped: Callable[[V], None] | None = None) -> None:
        """Make an empty map.

        Args:
            capacity: At least 1.
            dropped: Called with each value that leaves, for example to close it.
        """
        self._items: OrderedDict[K, V] = OrderedDict()
        self._capacity = capacity
        self._dropped = dropped

    def __len__(self) -> int:
        return len(self._items)

    def find(self, key: K) -> V | None:
        """The value of `key`, now the most recent, or None."""
        value = self._items.get(key)
        if value is not None:
            self._items.move_to_end(key)
        return value

    def put(self, key: K, value: V) -> None:
        """Insert or replace; the least recent item leaves when there are too many."""
        old = self._items.pop(key, None)
        if old is not None and self._dropped:
            self._dropped(old)
        self._items[key] = value
        if len(self._items) > self._capacity:
            _, gone = self._items.popitem(last=False)
            if self._dropped:
                self._dropped(gone)

    def drop(self, key: K) -> bool:
        """Drop one item; whether it was there."""
        value = self._items.pop(key, None)
        if value is not None and self._dropped:
            self._dropped(value)
        return value is not None

    def clear(self) -> None:
        """Drop everything."""
        while self._items:
            _, gone = self._items.popitem()
            if self._dropped:
                self._dropped(gone)
