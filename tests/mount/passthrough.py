"""A read-only pass-through FUSE file system: `passthrough.py SOURCE MOUNTPOINT`. Stopped by SIGSTOP, it is a store that hangs."""

import errno
import os
import stat
import sys

import pyfuse3
import trio


class Passthrough(pyfuse3.Operations):
    """Inodes are indexes into a list of paths."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.paths = ["", source]

    def _attributes(self, inode: int) -> pyfuse3.EntryAttributes:
        info = os.lstat(self.paths[inode])
        attributes = pyfuse3.EntryAttributes()
        attributes.st_ino = pyfuse3.InodeT(inode)
        for name in ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size", "st_mtime_ns"):
            setattr(attributes, name, getattr(info, name))
        attributes.entry_timeout = attributes.attr_timeout = 60
        return attributes

    async def lookup(self, parent: int, name: bytes, ctx: object) -> pyfuse3.EntryAttributes:
        path = os.path.join(self.paths[parent], os.fsdecode(name))
        if not os.path.lexists(path):
            raise pyfuse3.FUSEError(errno.ENOENT)
        if path not in self.paths:
            self.paths.append(path)
        return self._attributes(self.paths.index(path))

    async def getattr(self, inode: int, ctx: object) -> pyfuse3.EntryAttributes:
        return self._attributes(inode)

    async def opendir(self, inode: int, ctx: object) -> int:
        return inode

    async def readdir(self, fh: int, start: int, token: object) -> None:
        names = sorted(os.listdir(self.paths[fh]))
        for number, name in enumerate(names[start:], start + 1):
            entry = await self.lookup(fh, os.fsencode(name), None)
            if not pyfuse3.readdir_reply(token, os.fsencode(name), entry, number):
                break

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        assert stat.S_ISREG(os.lstat(self.paths[inode]).st_mode)
        return pyfuse3.FileInfo(fh=os.open(self.paths[inode], os.O_RDONLY), keep_cache=False)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        return os.pread(fh, size, off)

    async def release(self, fh: int) -> None:
        os.close(fh)

    async def forget(self, inodes: object) -> None:
        pass


if __name__ == "__main__":
    pyfuse3.init(Passthrough(sys.argv[1]), sys.argv[2], {"ro", "fsname=passthrough", "subtype=passthrough"})
    trio.run(pyfuse3.main)
    pyfuse3.close(unmount=False)
