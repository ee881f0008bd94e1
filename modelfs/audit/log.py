"""The audit log: append-only JSON lines, one fixed set of events. Not a log for people: that is logging's.

A write that fails is an error, not a lost line. Writing comes after the fence, never before it.
"""

import json
import os
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from modelfs.errors import ConfigError


class AuditKind(StrEnum):
    """Everything that is recorded."""

    MOUNT = "mount"
    UNLOCK = "unlock"
    OTHER_KEK = "other KEK"
    RENEWAL_FAILED = "renewal failed"
    DENIED = "denied"
    LOCKED = "locked"
    REVOKED = "revoked"
    UNMOUNT = "unmount"


@dataclass(frozen=True)
class AuditSubject:
    """What every event of one mount is about."""

    model: str
    release: int
    kek: str
    """The KEK that has opened it; all that may, as long as none has."""
    mountpoint: str


class AuditLog:
    """One mount's lines in a file that others may append to as well."""

    def __init__(self, path: Path, subject: AuditSubject) -> None:
        """Open, or make (0600), the file.

        Raises:
            ConfigError: It cannot be written, or is no regular file.
        """
        self.path = path
        self.subject = subject
        self.fd = self._open()

    def _open(self) -> int:
        try:
            # Not blocking: a pipe that nobody reads would hold up the mount for ever.
            flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
            fd = os.open(self.path, flags, 0o600)
        except OSError as exc:
            raise ConfigError(
                f"cannot write the audit log {self.path}: {os.strerror(exc.errno or 0)}; mend it or name another with --audit"
            ) from exc
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise ConfigError(f"the audit log {self.path} is no regular file: name another with --audit")
        return fd

    def _follow(self) -> None:
        """Open the path anew if our file is not there any more, rotated or removed: a line in a file that nobody finds is lost."""
        try:
            is_ours = os.path.samestat(os.lstat(self.path), os.fstat(self.fd))
        except OSError:
            is_ours = False
        if not is_ours:
            fd = self._open()
            os.dup2(fd, self.fd, inheritable=False)
            os.close(fd)

    def write(self, kind: AuditKind, key_version: int | None, reason: str, proof: dict[str, Any] | None = None) -> None:
        """Append one event, durably.

        Raises:
            ConfigError: It could not be written whole; the next line starts on a line of its own.
        """
        event: dict[str, Any] = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "event": kind.value,
            **vars(self.subject),
            "key_version": key_version,
            "reason": reason,
        }
        if proof is not None:
            event["proof"] = proof
        line = json.dumps(event).encode() + b"\n"
        self._follow()
        try:
            written = os.write(self.fd, line)
            if written != len(line):
                os.write(self.fd, b"\n")
                raise ConfigError(f"the audit log {self.path} took only part of a line: make room")
            os.fsync(self.fd)
        except OSError as exc:
            raise ConfigError(f"cannot write the audit log {self.path}: {os.strerror(exc.errno or 0)}") from exc
