"""What a blob is made from: a file of a source directory (scan.py), or a blob of an earlier release (reencrypt.py)."""

from typing import Protocol

from modelfs.format.journal import SourceId


class Source(Protocol):
    """What a blob is made from, and what the index will say of the file."""

    @property
    def path(self) -> str:
        """As the sealed tree names it."""

    @property
    def size(self) -> int:
        """Plaintext bytes."""

    @property
    def mode(self) -> int:
        """Permission bits, none of them for writing."""

    @property
    def mtime(self) -> int:
        """Nanoseconds since 1970."""

    @property
    def identity(self) -> SourceId:
        """Equal means the same bytes, as far as can be told without reading them."""

    def check_unchanged(self) -> None:
        """Raise SourceChangedError unless it is still what it was when it was listed."""
