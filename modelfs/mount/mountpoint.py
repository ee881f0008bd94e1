"""Whether a directory can be mounted on. Without pyfuse3, so that it can be asked on a host that lacks it."""

import os
import stat
from pathlib import Path

from modelfs.errors import ConfigError, MountError
from modelfs.mount.mountinfo import top_mount

FS_TYPE = "fuse.modelfs"


def check_mountpoint(mountpoint: str, sealed: Path) -> None:
    """See that a canonical path is an empty directory outside of the sealed model, with no modelfs mount on it.

    Raises:
        MountError: A modelfs mount is there.
        ConfigError: It is no place to mount on.
    """
    top = top_mount(os.fsencode(mountpoint))
    if top is not None and top.fs_type == FS_TYPE:
        raise MountError(f"a modelfs mount is at {mountpoint} already: `modelfs unmount {mountpoint}` first (umount -l if it is dead)")
    if mountpoint == str(sealed) or mountpoint.startswith(f"{sealed}{os.sep}"):
        raise ConfigError(f"the mountpoint {mountpoint} lies in the sealed model: choose another directory")
    try:
        if not stat.S_ISDIR(os.lstat(mountpoint).st_mode):
            raise ConfigError(f"the mountpoint {mountpoint} is not a directory: make one")
        if os.listdir(mountpoint):
            raise ConfigError(f"the mountpoint {mountpoint} is not empty: choose an empty directory")
    except OSError as exc:
        raise ConfigError(f"cannot use the mountpoint {mountpoint}: {os.strerror(exc.errno or 0)}") from exc
