"""The digest tree against its definition in docs/FORMAT.md section 2.2."""

import hashlib
from collections.abc import Callable

import pytest
from blake3 import blake3

from modelfs.crypto import digests

PLAIN: dict[str, Callable[[bytes], bytes]] = {
    "blake3": lambda data: blake3(data).digest(),
    "sha256": lambda data: hashlib.sha256(data).digest(),
}


@pytest.mark.parametrize("name", PLAIN)
@pytest.mark.parametrize("count", [1, 2, 4095, 4096, 4097, 8193])
def test_tree_root_is_what_the_specification_says(name: str, count: int) -> None:
    plain = PLAIN[name]
    leaves = [plain(b"\0" + number.to_bytes(4, "big")) for number in range(count)]
    pages = [plain(b"\1" + b"".join(leaves[start : start + 4096])) for start in range(0, count, 4096)]
    assert digests.page_hashes(name, b"".join(leaves)) == b"".join(pages)
    assert digests.tree_root(name, leaves) == plain(b"\2" + b"".join(pages))


@pytest.mark.parametrize("name", PLAIN)
def test_leaf_page_and_root_are_told_apart(name: str) -> None:
    data = bytes(32)
    made = {digests.leaf_hash(name, data), digests.page_hash(name, data), digests.root_hash(name, data), PLAIN[name](data)}
    assert len(made) == 4


@pytest.mark.parametrize("name", PLAIN)
def test_hashers_take_any_buffer(name: str) -> None:
    hasher = digests.new_hasher(name)
    for data in (b"a", bytearray(b"b"), memoryview(b"c")):
        hasher.update(data)
    assert hasher.digest() == PLAIN[name](b"abc")
