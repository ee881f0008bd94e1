"""What the kernel says is mounted where, read from mountinfo, which never asks the file system itself."""

import os
import re
from typing import NamedTuple

MOUNTINFO = "/proc/self/mountinfo"

_LINE = re.compile(rb"(\d+) \d+ (\d+:\d+) [^ ]+ ([^ ]+) [^ ]+(?: [^ ]+)*? - ([^ ]+) ([^ ]*) [^ ]*", re.DOTALL)
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
    for line in data.split(b"\n"):  # not splitlines(): the kernel escapes no carriage return, and anybody may mount at such a name
        match = _LINE.fullmatch(line)
        if match:
            mount_id, device, mountpoint, fs_type, source = match.groups()
            mounts.append(Mount(int(mount_id), device.decode(), _unescape(mountpoint), os.fsdecode(fs_type), _unescape(source)))
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


def mountpoints_of(device: str) -> list[bytes]:
    """Where a device is mounted in this mount namespace: also after a directory above was renamed."""
    return [mount.mountpoint for mount in read_mounts() if mount.device == device]
