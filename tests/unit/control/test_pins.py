"""What is pinned is pinned: a worker, which inherits it, cannot change what an unmount goes by."""

import os

import pytest

from modelfs.control.pins import Rows


def test_rows_are_written_once() -> None:
    rows = Rows()
    rows.write([(5, 0o100444), (0, 0o040555)])
    assert (len(rows), rows.row(1), rows.row(2), rows.row(3)) == (2, (5, 0o100444), (0, 0o040555), None)
    for attempt in (
        lambda: os.pwrite(rows.fd, b"x" * 16, 0),
        lambda: os.pwrite(rows.fd, b"x" * 16, 1 << 30),
        lambda: os.ftruncate(rows.fd, 0),
        lambda: os.ftruncate(rows.fd, 1 << 30),
    ):
        with pytest.raises(PermissionError):
            attempt()
    assert len(rows) == 2
    os.close(rows.fd)
