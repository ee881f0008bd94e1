"""Records of the seal journal (docs/FORMAT.md section 7). Parsing only; sealing them is crypto's, writing them seal's."""

from typing import Annotated

from pydantic import Field

from modelfs.format.canonical import CanonicalModel
from modelfs.format.fields import FileSize, HexDigest, HexId
from modelfs.format.index import Path

Identity = tuple[int, int, int, int, int]
"""Device, inode, size, mtime and ctime (ns) of a source file: equal means unchanged."""
SourceId = Identity | str
"""What a blob was made from: a source file, or the earlier blob of this id, which never changes."""


class JournalRecord(CanonicalModel):
    """One finished blob: on disk, fsynced, from a source that did not change."""

    digest: HexDigest
    key: HexDigest = Field(repr=False)
    path: Path
    root: HexDigest
    size: FileSize
    source: Annotated[list[int], Field(min_length=5, max_length=5)] | HexId

    @property
    def made_from(self) -> tuple[int, ...] | str:
        """The `SourceId`."""
        return self.source if isinstance(self.source, str) else tuple(self.source)
