"""What the kernel says is mounted where, read from mountinfo, which never asks the file system itself."""

import re
from typing import NamedTuple

MOUNTINFO = "/proc/self/mountinfo"

_OCTAL = re.compile(rb"\\([0-7]{3})")


class Mount(NamedTuple):
    """One line of mountinfo."""

    mount_id: int
    device: str
    """`major:minor`."""
    mountpoint: bytes
    fs_type: str
    source: bytes


def parse_mountinfo(data: bytes) -> list[Mount]:
    """All mounts, in mount order: the last one at a path is the top one (proc_pid_mountinfo(5))."""
    mounts = []
    for line in data.splitlines():
        fields = line.split(b" ")
        dash = fields.index(b"-", 6)
        mountpoint, source = (_unescape(field) for field in (fields[4], fields[dash + 2]))
        mounts.append(Mount(int(fields[0]), fields[2].decode(), mountpoint, fields[dash + 1].decode(), source))
    return mounts


def _unescape(field: bytes) -> bytes:
    return _OCTAL.sub(lambda match: bytes([int(match[1], 8)]), field)


def read_mounts() -> list[Mount]:
    """All mounts of this mount namespace."""
    with open(MOUNTINFO, "rb") as file:
        return parse_mountinfo(file.read())


def top_mount(mountpoint: bytes) -> Mount | None:
    """What is mounted at a path, on top; None if nothing is."""
    found = [mount for mount in read_mounts() if mount.mountpoint == mountpoint]
    return found[-1] if found else None


def is_attached(device: str, mountpoint: bytes) -> bool:
    """Whether a mount of `device` is at `mountpoint`, on top or below another."""
    return any(mount.device == device and mount.mountpoint == mountpoint for mount in read_mounts())
