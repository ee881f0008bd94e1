"""The LRU map: order, bound, and that every value that leaves is told."""

from modelfs.cache.lru import LruMap


def test_least_recent_item_leaves() -> None:
    gone: list[int] = []
    lru: LruMap[str, int] = LruMap(2, gone.append)
    lru.put("a", 1)
    lru.put("b", 2)
    assert lru.find("a") == 1  # now the most recent
    lru.put("c", 3)
    assert gone == [2]
    assert (lru.find("a"), lru.find("b"), lru.find("c"), len(lru)) == (1, None, 3, 2)


def test_replacing_drops_the_old_value_and_makes_it_recent() -> None:
    gone: list[int] = []
    lru: LruMap[str, int] = LruMap(2, gone.append)
    lru.put("a", 1)
    lru.put("b", 2)
    lru.put("a", 3)
    assert gone == [1]
    lru.put("c", 4)
    assert gone == [1, 2]
    assert lru.find("a") == 3


def test_clear_drops_everything() -> None:
    gone: list[int] = []
    lru: LruMap[int, int] = LruMap(5, gone.append)
    for number in range(5):
        lru.put(number, number)
    lru.clear()
    assert sorted(gone) == [0, 1, 2, 3, 4]
    assert len(lru) == 0
    lru.clear()
    assert len(gone) == 5


def test_without_a_callback() -> None:
    lru: LruMap[int, bytes] = LruMap(1)
    for number in range(3):
        lru.put(number, b"")
    assert (len(lru), lru.find(2)) == (1, b"")
