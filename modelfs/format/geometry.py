"""Block arithmetic: where each byte of a plaintext lies in its blob. Pure integers; docs/FORMAT.md section 2."""

from collections.abc import Iterator
from typing import NamedTuple, NewType

from modelfs.format.limits import MAX_BLOCK_COUNT, MAX_BLOCK_SIZE, MAX_FILE_SIZE, MIN_BLOCK_SIZE

BlockIndex = NewType("BlockIndex", int)

TAG_SIZE = 16
DIGEST_SIZE = 32
LEAVES_PER_PAGE = 4096


class Span(NamedTuple):
    """The part of one block that a read needs."""

    block_index: BlockIndex
    skip: int
    """Bytes of the block's plaintext before the part."""
    length: int
    """Bytes of the part, 1 to block_size."""


class Geometry(NamedTuple):
    """Sizes of one blob. Build it with `geometry`, which checks its arguments."""

    size: int
    """Plaintext bytes."""
    block_size: int
    block_count: int

    @property
    def ciphertext_size(self) -> int:
        """Bytes of `blobs/<id>`."""
        return self.size + TAG_SIZE * self.block_count

    @property
    def page_count(self) -> int:
        """Pages of leaves in the digest tree, at least 1."""
        return -(-self.block_count // LEAVES_PER_PAGE)

    @property
    def digests_size(self) -> int:
        """Bytes of `blobs/<id>.digests`; 0 means that there is no such file."""
        return 0 if self.block_count == 1 else DIGEST_SIZE * (self.page_count + self.block_count)

    def is_last(self, index: int) -> bool:
        """Whether `index` is the blob's last block."""
        return index == self.block_count - 1

    def block_length(self, index: int) -> int:
        """Plaintext bytes of block `index`."""
        return min(self.block_size, self.size - index * self.block_size)

    def block_offset(self, index: int) -> int:
        """Where block `index` starts in `blobs/<id>`."""
        return index * (self.block_size + TAG_SIZE)

    def page_offset(self, page: int) -> int:
        """Where the leaves of `page` start in `blobs/<id>.digests`."""
        return DIGEST_SIZE * (self.page_count + page * LEAVES_PER_PAGE)

    def page_leaves(self, page: int) -> int:
        """How many leaves `page` has."""
        return min(LEAVES_PER_PAGE, self.block_count - page * LEAVES_PER_PAGE)

    def spans(self, offset: int, length: int) -> Iterator[Span]:
        """Tile `[offset, offset + length)`, cut off at the end of the plaintext, with spans in ascending order.

        Args:
            offset: First byte wanted, >= 0; may lie beyond the end.
            length: Bytes wanted, >= 0.
        """
        end = min(self.size, offset + length)
        while offset < end:
            index, skip = divmod(offset, self.block_size)
            take = min(self.block_size - skip, end - offset)
            yield Span(BlockIndex(index), skip, take)
            offset += take


def is_block_size(value: int) -> bool:
    """Whether `value` is a power of two within the format's bounds."""
    return MIN_BLOCK_SIZE <= value <= MAX_BLOCK_SIZE and value & (value - 1) == 0


def geometry(size: int, block_size: int) -> Geometry:
    """Sizes of a blob of `size` plaintext bytes.

    Raises:
        ValueError: A bound of docs/FORMAT.md section 8 is exceeded.
    """
    if not is_block_size(block_size):
        raise ValueError(f"block size {block_size} is not a power of two from {MIN_BLOCK_SIZE} to {MAX_BLOCK_SIZE}")
    if not 0 <= size <= MAX_FILE_SIZE:
        raise ValueError(f"size {size} is not between 0 and {MAX_FILE_SIZE}")
    count = max(1, -(-size // block_size))
    if count > MAX_BLOCK_COUNT:
        raise ValueError(f"{count} blocks of {block_size} bytes are more than {MAX_BLOCK_COUNT}")
    return Geometry(size, block_size, count)
