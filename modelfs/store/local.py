"""A sealed model's directory, opened once; every name below it is resolved from that descriptor and no symlink is followed.

Whoever writes the storage may plant symlinks, FIFOs and devices: only regular files are read, only real directories entered.
"""

import contextlib
import errno
import fcntl
import os
import re
import shlex
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path

from modelfs.errors import BlobNotFoundError, LimitExceededError, StoreError

MANIFEST = "manifest.json"
DIRECTORIES = ("blobs", "keys", "manifests", "pending")

_BLOB_NAME = re.compile(r"([0-9a-f]{32})(\.digests)?")
_DIR_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW
_FILE_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


def store_error(action: str, exc: OSError) -> StoreError:
    """Translate an OSError into one sentence with what to do."""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return StoreError(f"cannot {action}: the disk is full; make room and run the command again")
    return StoreError(f"cannot {action}: {os.strerror(exc.errno or 0)}")


class Store:
    """A sealed model's directory. A context manager; closes its descriptor."""

    def __init__(self, root: Path, fd: int | None = None) -> None:
        """Open an existing directory, or take a descriptor of it that somebody else opened (and closes).

        Raises:
            StoreError: It is missing or not accessible.
        """
        self.root = root
        if fd is not None:
            self._fd = os.dup(fd)
            return
        try:
            self._fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as exc:
            raise store_error(f"open the sealed model {root}", exc) from exc

    def __enter__(self) -> "Store":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptor."""
        os.close(self._fd)

    def share(self) -> int:
        """A further descriptor of the directory, for `Store(root, fd)` in other processes."""
        return os.dup(self._fd)

    # -- reading

    @contextlib.contextmanager
    def _directory(self, name: str) -> Iterator[int]:
        if name == "":
            yield self._fd
            return
        fd = os.open(name, _DIR_FLAGS, dir_fd=self._fd)
        try:
            yield fd
        finally:
            os.close(fd)

    def open_file(self, name: str, flags: int = os.O_RDONLY) -> int:
        """A descriptor of a regular file, which the caller closes.

        Args:
            name: Relative, at most one directory deep, for example `blobs/<id>`.
            flags: O_RDONLY, with O_DIRECT if wanted.

        Raises:
            BlobNotFoundError: There is no such file.
            StoreError: It is no regular file, or the system says no.
        """
        folder, _, base = name.rpartition("/")
        try:
            with self._directory(folder) as directory:
                fd = os.open(base, flags | _FILE_FLAGS, dir_fd=directory)
        except FileNotFoundError as exc:
            raise BlobNotFoundError(f"{name} is missing from {self.root}: fetch the model again") from exc
        except OSError as exc:
            if exc.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
                raise StoreError(f"{name} in {self.root} is not a regular file: fetch the model again") from exc
            raise store_error(f"open {name} in {self.root}", exc) from exc
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise StoreError(f"{name} in {self.root} is not a regular file: fetch the model again")
        return fd

    def read_file(self, name: str, limit: int) -> bytes:
        """A whole small file.

        Raises:
            LimitExceededError: Longer than `limit` bytes; nothing was read.
            BlobNotFoundError, StoreError: As `open_file`.
        """
        fd = self.open_file(name)
        try:
            with os.fdopen(fd, "rb") as file:
                size = os.fstat(fd).st_size
                if size > limit:
                    raise LimitExceededError(f"{name} is {size} bytes, more than the limit of {limit}")
                data = file.read(limit + 1)
        except OSError as exc:
            raise store_error(f"read {name} in {self.root}", exc) from exc
        if len(data) > limit:
            raise LimitExceededError(f"{name} is more than the limit of {limit} bytes")
        return data

    def file_size(self, name: str) -> int | None:
        """Bytes of a regular file, or None if there is none."""
        folder, _, base = name.rpartition("/")
        try:
            with self._directory(folder) as directory:
                info = os.stat(base, dir_fd=directory, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as exc:
            raise store_error(f"look at {name} in {self.root}", exc) from exc
        return info.st_size if stat.S_ISREG(info.st_mode) else None

    def refuses_blob(self, blob_ids: Iterable[str]) -> bool:
        """Whether this process, as it is, may not read one of these blobs or its digests. Missing ones count as readable."""
        try:
            with self._directory("blobs") as directory:
                for name in (name for blob_id in blob_ids for name in (blob_id, f"{blob_id}.digests")):
                    if os.access(name, os.R_OK, dir_fd=directory, effective_ids=True):
                        continue
                    with contextlib.suppress(FileNotFoundError):
                        os.stat(name, dir_fd=directory, follow_symlinks=False)
                        return True
        except PermissionError:
            return True
        except OSError:
            pass  # whoever reads a blob will say what is wrong
        return False

    def names(self, folder: str) -> list[str]:
        """Sorted names in a directory of the model; none if it does not exist."""
        try:
            with self._directory(folder) as directory:
                return sorted(os.listdir(directory))
        except FileNotFoundError:
            return []
        except OSError as exc:
            raise store_error(f"list {folder} in {self.root}", exc) from exc

    def blob_ids(self) -> set[str]:
        """Ids of everything in blobs/ that is named like a blob."""
        return {match[1] for name in self.names("blobs") if (match := _BLOB_NAME.fullmatch(name))}

    # -- writing; the caller holds the writer's lock

    @contextlib.contextmanager
    def writer_lock(self) -> Iterator[None]:
        """Hold the one lock of all writers; leaves no file behind when pending/ is otherwise empty.

        Raises:
            StoreError: Another writer holds it, or the directory is not writable.
        """
        try:
            fd = self._lock()
        except BlockingIOError:
            raise StoreError(f"another modelfs command is writing {self.root}: wait for it to end") from None
        except OSError as exc:
            raise store_error(f"lock {self.root} for writing", exc) from exc
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if self.names("pending") == ["lock"]:
                    self.remove("pending/lock")
                    os.rmdir("pending", dir_fd=self._fd)
            os.close(fd)

    def _lock(self) -> int:
        while True:
            self.make_directories("pending")
            try:
                with self._directory("pending") as directory:
                    flags = os.O_RDWR | os.O_CREAT | _FILE_FLAGS
                    fd = os.open("lock", flags, 0o600, dir_fd=directory)
            except FileNotFoundError:
                continue  # the last writer has just removed pending/
            try:
                if not stat.S_ISREG(os.fstat(fd).st_mode):
                    raise StoreError(f"pending/lock in {self.root} is not a regular file, and modelfs makes no other: remove it")
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # The previous holder may have removed the file between our open and our lock.
                if os.fstat(fd).st_nlink:
                    return fd
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)

    def make_directories(self, *names: str) -> None:
        """Make directories of the model that are missing, and make them durable; StoreError if that fails."""
        try:
            for name in names:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(name, 0o755, dir_fd=self._fd)
            os.fsync(self._fd)
        except OSError as exc:
            raise store_error(f"make directories in {self.root}", exc) from exc

    def create_blob(self, name: str) -> int:
        """A new file under blobs/ for writing; the caller closes it."""
        with self._directory("blobs") as directory:
            return os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | _FILE_FLAGS, 0o644, dir_fd=directory)

    def create_pending(self, name: str) -> int:
        """A new file under pending/ for appending; the caller closes it."""
        with self._directory("pending") as directory:
            return os.open(name, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | _FILE_FLAGS, 0o600, dir_fd=directory)

    def write_file(self, name: str, data: bytes) -> None:
        """Replace a small file atomically and durably: temporary file in pending/, fsync, rename, fsync of the directory.

        What a killed writer leaves behind is in pending/, so nobody takes it for a part of the model and the next seal removes it.

        Raises:
            StoreError: The system says no; the old file is whole and the temporary one gone.
        """
        folder, _, base = name.rpartition("/")
        temporary = f".{base}.{os.getpid()}.tmp"
        try:
            with self._directory("pending") as pending, self._directory(folder) as directory:
                # Never written through: the name can be guessed, and a link to another file planted there.
                with contextlib.suppress(FileNotFoundError):
                    os.unlink(temporary, dir_fd=pending)
                fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _FILE_FLAGS, 0o644, dir_fd=pending)
                try:
                    with os.fdopen(fd, "wb") as file:
                        file.write(data)
                        file.flush()
                        os.fsync(fd)
                    os.rename(temporary, base, src_dir_fd=pending, dst_dir_fd=directory)
                except BaseException:
                    with contextlib.suppress(OSError):
                        os.unlink(temporary, dir_fd=pending)
                    raise
                os.fsync(directory)
        except OSError as exc:
            raise store_error(f"write {name} in {self.root}", exc) from exc

    def sync_directory(self, name: str) -> None:
        """Make the names in a directory durable; StoreError if that fails."""
        try:
            with self._directory(name) as directory:
                os.fsync(directory)
        except OSError as exc:
            raise store_error(f"sync {name} in {self.root}", exc) from exc

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        folder, _, base = name.rpartition("/")
        try:
            with self._directory(folder) as directory, contextlib.suppress(FileNotFoundError):
                os.unlink(base, dir_fd=directory)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            path = shlex.quote(str(self.root / name))
            raise StoreError(f"{name} in {self.root} is a directory, which modelfs never makes: remove it with `rm -r {path}`") from None
        except OSError as exc:
            raise store_error(f"remove {name} in {self.root}", exc) from exc

    def remove_blob(self, blob_id: str) -> None:
        """Remove a blob and its digests."""
        self.remove(f"blobs/{blob_id}.digests")
        self.remove(f"blobs/{blob_id}")

    def free_bytes(self) -> int:
        """Bytes that an unprivileged writer may still write."""
        info = os.fstatvfs(self._fd)
        return info.f_bavail * info.f_frsize


def pread_up_to(fd: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset`; the bytes read, fewer than `len(buffer)` only where the file ends.

    Raises:
        StoreError: The system could not read.
    """
    done = 0
    while done < len(buffer):
        try:
            count = os.preadv(fd, [buffer[done:]], offset + done)
        except OSError as exc:
            raise store_error("read a blob", exc) from exc
        if count == 0:
            break
        done += count
    return done


def pread_exact(fd: int, buffer: memoryview, offset: int) -> bool:
    """Fill `buffer` from `offset`; False when the file ends before.

    Raises:
        StoreError: The system could not read.
    """
    return pread_up_to(fd, buffer, offset) == len(buffer)
