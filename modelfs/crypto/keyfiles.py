"""Key files on this host: made once, never overwritten, readable by their owner only."""

import os
import stat
from pathlib import Path

from modelfs.errors import ConfigError


def create_private(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Write a new file that nobody else can read, fsynced.

    Raises:
        ConfigError: It exists already, or cannot be written.
    """
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            os.unlink(path)  # half a key would be in the way of the next attempt
            raise
    except FileExistsError:
        raise ConfigError(f"{path} exists already and is not overwritten: choose another path") from None
    except OSError as exc:
        raise ConfigError(f"cannot write {path}: {os.strerror(exc.errno or 0)}") from exc


def read_private(path: Path, limit: int, what: str, others_may_read: bool = False) -> bytes:
    """Read a secret file of at most `limit` bytes.

    Args:
        path: The file.
        limit: Size bound in bytes.
        what: How to call it in messages.
        others_may_read: For a file whose mode a platform sets, such as a Kubernetes service account token.

    Raises:
        ConfigError: Missing, not a regular file, too long, or open to group or others.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with os.fdopen(fd, "rb") as file:
            info = os.fstat(fd)
            if not stat.S_ISREG(info.st_mode):
                raise ConfigError(f"the {what} {path} is not a regular file")
            if info.st_mode & (0o022 if others_may_read else 0o077):
                raise ConfigError(f"the {what} {path} is open to group or others: chmod 600 it")
            data = file.read(limit + 1)
    except OSError as exc:
        raise ConfigError(f"cannot read the {what} {path}: {os.strerror(exc.errno or 0)}") from exc
    if len(data) > limit:
        raise ConfigError(f"the {what} {path} is longer than {limit} bytes: it is another kind of file")
    return data
