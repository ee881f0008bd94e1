"""What lies in a source directory, as entries of an index to come. Follows no symlink unless told; refuses what cannot be sealed."""

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from modelfs.errors import ConfigError, SourceChangedError
from modelfs.format.index import DirEntry, SymlinkEntry
from modelfs.format.journal import Identity
from modelfs.format.limits import MAX_ENTRIES, MAX_FILE_SIZE
from modelfs.format.paths import check_path, check_symlink, check_target


@dataclass(frozen=True)
class SourceFile:
    """One regular file to seal."""

    path: str
    """As the sealed tree will name it."""
    real: Path
    """Where its bytes are."""
    size: int
    mode: int
    mtime: int
    identity: Identity

    def check_unchanged(self, fd: int | None = None) -> None:
        """Raise SourceChangedError unless path and descriptor are still the file that was scanned."""
        try:
            now = [os.stat(self.real)] + ([os.fstat(fd)] if fd is not None else [])
        except OSError:
            now = []
        if not now or any(identity(info) != self.identity for info in now):
            raise SourceChangedError(f"{self.path} changed while it was sealed: seal again when it is at rest")


@dataclass
class SourceTree:
    """Everything that will be in the index, files apart."""

    directories: list[DirEntry] = field(default_factory=list)
    symlinks: list[SymlinkEntry] = field(default_factory=list)
    files: list[SourceFile] = field(default_factory=list)

    @property
    def size(self) -> int:
        """Plaintext bytes of all files."""
        return sum(file.size for file in self.files)


def identity(info: os.stat_result) -> Identity:
    """What must be unchanged for a file to count as unchanged."""
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)


def read_only(mode: int) -> int:
    """Permission bits as the mount shows them."""
    return stat.S_IMODE(mode) & 0o555


def scan_source(source: Path, follow_symlinks: bool) -> SourceTree:
    """Walk a directory, or take one file.

    Args:
        source: A directory, or one regular file (or symlink to it), which becomes the only file of the tree.
        follow_symlinks: Seal what symlinks point to instead of the symlinks.

    Raises:
        ConfigError: Missing, unreadable, a special file, a name that is not UTF-8, a symlink out of the tree.
    """
    tree = SourceTree()
    try:
        info = os.stat(source)
        if stat.S_ISREG(info.st_mode):
            now = max(0, info.st_mtime_ns)
            tree.directories.append(DirEntry(kind="dir", mode=0o555, mtime=now, path=""))
            _add(tree, source, source.name, info, follow_symlinks, ())
        elif stat.S_ISDIR(info.st_mode):
            _add(tree, source, "", info, follow_symlinks, ())
        else:
            raise ConfigError(f"{source} is neither a directory nor a regular file: seal one of these")
    except OSError as exc:
        where = exc.filename or source
        raise ConfigError(f"cannot read the source {_printable(where)}: {os.strerror(exc.errno or 0)}") from exc
    targets = {link.path: link.target for link in tree.symlinks}
    for path in targets:
        try:
            check_symlink(path, targets)
        except ValueError as exc:
            raise ConfigError(
                f"{path}: {exc}; seal with --follow-symlinks to seal what it points to (a Hugging Face cache needs that)"
            ) from None
    if not tree.files:  # asked last: a snapshot of a Hugging Face cache is all symlinks, and the flag is what helps there
        raise ConfigError(f"there is no file in {source}: nothing to seal")
    return tree


def _printable(path: object) -> str:
    return os.fsencode(str(path)).decode("utf-8", "backslashreplace")


def _add(tree: SourceTree, real: Path, path: str, info: os.stat_result, follow: bool, above: tuple[Identity, ...]) -> None:
    todo = [(real, path, info, above)]
    while todo:  # a stack, because a legal path is deeper than Python recurses
        real, path, info, above = todo.pop()
        try:
            check_path(path)
        except ValueError as exc:
            raise ConfigError(f"{_printable(real)} cannot be sealed: {exc}; rename it") from None
        mtime = max(0, info.st_mtime_ns)
        if stat.S_ISDIR(info.st_mode):
            me = (info.st_dev, info.st_ino, 0, 0, 0)
            if me in above:
                raise ConfigError(f"{_printable(real)} leads back to a directory above it through a symlink: remove it")
            tree.directories.append(DirEntry(kind="dir", mode=read_only(info.st_mode), mtime=mtime, path=path))
            for name in os.listdir(real):
                child = real / name
                child_info = os.lstat(child)
                if stat.S_ISLNK(child_info.st_mode) and follow:
                    child_info = _follow(child)
                todo.append((child, f"{path}/{name}" if path else name, child_info, (*above, me) if follow else ()))
        elif stat.S_ISREG(info.st_mode):
            if info.st_size > MAX_FILE_SIZE:
                raise ConfigError(f"{_printable(real)} is {info.st_size} bytes, more than the limit of {MAX_FILE_SIZE}")
            tree.files.append(SourceFile(path, real, info.st_size, read_only(info.st_mode), mtime, identity(info)))
        elif stat.S_ISLNK(info.st_mode):
            tree.symlinks.append(_symlink(real, path, mtime))
        else:
            raise ConfigError(f"{_printable(real)} is a device, socket or pipe, which cannot be sealed: remove it")
        if len(tree.directories) + len(tree.symlinks) + len(tree.files) > MAX_ENTRIES:
            raise ConfigError(f"the source has more than {MAX_ENTRIES} entries")


def _symlink(real: Path, path: str, mtime: int) -> SymlinkEntry:
    target = os.readlink(real)
    try:
        check_target(target)
    except ValueError as exc:
        raise ConfigError(f"{path}: {exc}; seal with --follow-symlinks to seal what it points to") from None
    return SymlinkEntry(kind="symlink", mtime=mtime, path=path, target=target)


def _follow(link: Path) -> os.stat_result:
    try:
        return os.stat(link)
    except FileNotFoundError:
        raise ConfigError(f"{_printable(link)} is a symlink to nothing: remove it, or fetch what it points to") from None
