"""A pass-through FUSE file system whose reads go wrong as a file says: `bad_store.py SOURCE MOUNTPOINT FAULT`.

FAULT holds one JSON object: {} for none, {"errno": N}, {"sleep": S}, or {"flip": P}: of each read, with probability P, one bit is wrong.
Nothing of it is cached by the kernel, so that every pread is answered anew.
"""

import json
import random
import sys

import pyfuse3
import trio

from tests.mount.passthrough import Passthrough


class BadStore(Passthrough):
    """Reads go wrong; everything else works."""

    def __init__(self, source: str, fault: str) -> None:
        super().__init__(source)
        self.fault = fault
        self.chance = random.Random(1)

    async def open(self, inode: int, flags: int, ctx: object) -> pyfuse3.FileInfo:
        info = await super().open(inode, flags, ctx)
        info.direct_io = True
        return info

    async def read(self, fh: int, off: int, size: int) -> bytes:
        with open(self.fault) as file:
            fault = json.load(file)
        if "errno" in fault:
            raise pyfuse3.FUSEError(fault["errno"])
        if "sleep" in fault:
            await trio.sleep(fault["sleep"])
        data = await super().read(fh, off, size)
        if data and self.chance.random() < fault.get("flip", 0):
            at = self.chance.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ 1 << self.chance.randrange(8)]) + data[at + 1 :]
        return data


if __name__ == "__main__":
    pyfuse3.init(BadStore(sys.argv[1], sys.argv[3]), sys.argv[2], {"ro", "fsname=badstore", "subtype=badstore", "allow_other"})
    trio.run(pyfuse3.main)
    pyfuse3.close(unmount=False)
