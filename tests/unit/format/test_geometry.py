"""Block arithmetic against the worked sizes of docs/FORMAT.md, read from the page itself."""

import re

import pytest

from modelfs.format.geometry import DIGEST_SIZE, LEAVES_PER_PAGE, TAG_SIZE, Span, geometry, is_block_size
from modelfs.format.limits import MAX_BLOCK_SIZE, MAX_FILE_SIZE, MIN_BLOCK_SIZE
from tests.helpers import REPOSITORY

FORMAT_PAGE = (REPOSITORY / "docs" / "FORMAT.md").read_text()


def worked_sizes() -> list[tuple[int, int, int, int]]:
    """Rows (size, blocks, blob bytes, digests bytes) of the table in section 2.1."""
    section = FORMAT_PAGE.partition("Worked sizes, `block_size` = 131072:")[2].partition("The counter nonce")[0]
    rows = []
    for line in section.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 4 and cells[0][:1].isdigit():
            size = int(re.match(r"\d+", cells[0])[0])
            rows.append((size, int(cells[1]), int(cells[2]), 0 if cells[3] == "no file" else int(cells[3])))
    assert len(rows) >= 7, "the table of worked sizes was not found"
    return rows


@pytest.mark.parametrize(("size", "blocks", "blob", "digests"), worked_sizes())
def test_geometry_agrees_with_the_specification(size: int, blocks: int, blob: int, digests: int) -> None:
    shape = geometry(size, 131072)
    assert (shape.block_count, shape.ciphertext_size, shape.digests_size) == (blocks, blob, digests)


@pytest.mark.parametrize(
    ("value", "good"),
    [(0, False), (-4096, False), (2048, False), (4096, True), (4097, False), (6144, False), (1 << 22, True), (1 << 23, False)],
)
def test_is_block_size(value: int, good: bool) -> None:
    assert is_block_size(value) is good


@pytest.mark.parametrize(
    ("size", "block_size"),
    [(-1, MIN_BLOCK_SIZE), (MAX_FILE_SIZE + 1, MAX_BLOCK_SIZE), (1, 0), (1, 5000), (1, MIN_BLOCK_SIZE // 2), (1, MAX_BLOCK_SIZE * 2)],
    ids=["negative", "too large", "no block size", "odd block size", "small block size", "large block size"],
)
def test_geometry_refuses_what_is_out_of_bounds(size: int, block_size: int) -> None:
    with pytest.raises(ValueError):
        geometry(size, block_size)


def test_geometry_of_the_largest_file() -> None:
    shape = geometry(MAX_FILE_SIZE, MIN_BLOCK_SIZE)
    assert shape.block_count == 1 << 32
    assert shape.is_last((1 << 32) - 1)
    assert not shape.is_last(0)


def test_pages_follow_each_other_in_the_digests_file() -> None:
    shape = geometry((2 * LEAVES_PER_PAGE + 7) * MIN_BLOCK_SIZE, MIN_BLOCK_SIZE)
    assert shape.page_count == 3
    assert [shape.page_leaves(page) for page in range(3)] == [LEAVES_PER_PAGE, LEAVES_PER_PAGE, 7]
    position = DIGEST_SIZE * 3
    for page in range(3):
        assert shape.page_offset(page) == position
        position += DIGEST_SIZE * shape.page_leaves(page)
    assert position == shape.digests_size


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 0, []),
        (0, 1, [Span(0, 0, 1)]),
        (4095, 2, [Span(0, 4095, 1), Span(1, 0, 1)]),
        (4096, 4096, [Span(1, 0, 4096)]),
        (0, 99999, [Span(0, 0, 4096), Span(1, 0, 4096), Span(2, 0, 10)]),
        (8201, 5, [Span(2, 9, 1)]),
        (8202, 5, []),
        (1 << 50, 5, []),
    ],
)
def test_spans(offset: int, length: int, expected: list[Span]) -> None:
    assert list(geometry(8202, 4096).spans(offset, length)) == expected


def test_block_sizes_and_offsets_of_an_empty_file() -> None:
    shape = geometry(0, 4096)
    assert (shape.block_length(0), shape.block_offset(0), shape.ciphertext_size, shape.page_count) == (0, 0, TAG_SIZE, 1)
