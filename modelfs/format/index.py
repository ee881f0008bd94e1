"""The index: the table of files, which only a key holder reads (docs/FORMAT.md section 4)."""

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from modelfs.errors import VerificationError
from modelfs.format import canonical
from modelfs.format.fields import FileSize, HexDigest, HexId
from modelfs.format.limits import MAX_ENTRIES, MAX_INDEX_SIZE
from modelfs.format.manifest import Manifest
from modelfs.format.paths import check_path, check_symlink, check_target, parent_path

Path = Annotated[str, AfterValidator(check_path)]
Mode = Annotated[int, Field(ge=0, le=0o555)]
Mtime = Annotated[int, Field(ge=0, le=(1 << 63) - 1)]


class DirEntry(canonical.CanonicalModel):
    """A directory."""

    kind: Literal["dir"]
    mode: Mode
    mtime: Mtime
    path: Path


class FileEntry(canonical.CanonicalModel):
    """A regular file and the blob that holds it."""

    blob: HexId
    digest: HexDigest
    key: HexDigest = Field(repr=False)
    """The blob key. Whoever holds an index holds keys: never log one."""
    kind: Literal["file"]
    mode: Mode
    mtime: Mtime
    path: Path
    size: FileSize

    @property
    def blob_key(self) -> bytes:
        """32 bytes."""
        return bytes.fromhex(self.key)


class SymlinkEntry(canonical.CanonicalModel):
    """A symbolic link inside the tree."""

    kind: Literal["symlink"]
    mtime: Mtime
    path: Path
    target: Annotated[str, AfterValidator(check_target)]


Entry = DirEntry | FileEntry | SymlinkEntry


class Index(canonical.CanonicalModel):
    """Every entry of a sealed tree, the root directory first, sorted by the UTF-8 bytes of the path."""

    entries: list[Annotated[Entry, Field(discriminator="kind")]] = Field(min_length=1, max_length=MAX_ENTRIES, repr=False)
    format: Literal["modelfs/1/index"]

    @model_validator(mode="after")
    def _check(self) -> Self:
        directories: set[str] = set()
        blobs: set[str] = set()
        symlinks: dict[str, str] = {}
        previous: bytes | None = None
        for entry in self.entries:
            encoded = entry.path.encode()
            if previous is not None and encoded <= previous:
                raise ValueError("entries are not sorted by path without duplicates")
            if previous is None and (entry.path != "" or entry.kind != "dir"):
                raise ValueError("the first entry is not the root directory")
            if previous is not None and parent_path(entry.path) not in directories:
                raise ValueError("an entry's parent is not a directory of the index")
            previous = encoded
            if isinstance(entry, DirEntry):
                directories.add(entry.path)
            elif isinstance(entry, SymlinkEntry):
                symlinks[entry.path] = entry.target
            elif entry.blob in blobs:
                raise ValueError("two entries name one blob")
            else:
                blobs.add(entry.blob)
            if isinstance(entry, DirEntry | FileEntry) and entry.mode & 0o222:
                raise ValueError("a mode has a write bit")
        for path in symlinks:
            check_symlink(path, symlinks)
        return self

    @property
    def files(self) -> list[FileEntry]:
        """The regular files, in the order of the index."""
        return [entry for entry in self.entries if isinstance(entry, FileEntry)]


def build_index(entries: list[DirEntry | FileEntry | SymlinkEntry]) -> Index:
    """An index of this format version from entries in any order.

    Raises:
        ValueError: They break a rule of docs/FORMAT.md section 4 (pydantic's ValidationError is one).
    """
    return Index(entries=sorted(entries, key=lambda entry: entry.path.encode()), format="modelfs/1/index")


def parse_index(plaintext: bytes | bytearray) -> Index:
    """Parse a decrypted index; errors as `canonical.parse`."""
    return canonical.parse(Index, plaintext, MAX_INDEX_SIZE, "the index")


def verify_index_matches(index: Index, manifest: Manifest) -> None:
    """Raise VerificationError unless index and manifest name the same blobs with the same sizes."""
    signed = {blob.id: blob.size for blob in manifest.blobs if blob.id != manifest.index}
    if {entry.blob: entry.size for entry in index.files} != signed:
        raise VerificationError("the index and the signed manifest do not name the same blobs; fetch the model again")
