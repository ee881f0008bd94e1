"""A reader that compares what a mount gives with the plaintext, as a process of its own.

reader.py loop MODE FILE PLAIN   reads at random until stdin closes; MODE is buffered, direct or mmap
reader.py touch FILE             maps FILE and touches every page, without end
reader.py hold FILE              opens and maps FILE, reads all of it, waits for stdin to close, then says what is left
"""

import ctypes
import errno
import json
import mmap
import os
import random
import select
import signal
import sys

libc = ctypes.CDLL(None, use_errno=True)


def say(**fields: object) -> None:
    print(json.dumps(fields), flush=True)


def told_to_stop() -> bool:
    return bool(select.select([sys.stdin], [], [], 0)[0])


def filled_pages(mapping: mmap.mmap) -> int:
    """Pages of a file that are in the page cache and hold content, by mincore(2) on a mapping that nobody touches.

    cachestat(2) counts empty ones, too, which the kernel has made for a read that was refused, and may keep.
    """
    present = (ctypes.c_ubyte * -(-len(mapping) // mmap.PAGESIZE))()
    start = ctypes.c_char.from_buffer(mapping)
    failed = libc.mincore(ctypes.byref(start), ctypes.c_size_t(len(mapping)), present)
    del start
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(byte & 1 for byte in present)


def loop(mode: str, path: str, plain_path: str) -> None:
    with open(plain_path, "rb") as file:
        plain = file.read()
    flags = os.O_RDONLY | (os.O_DIRECT if mode == "direct" else 0)
    fd = os.open(path, flags)
    buffer = mmap.mmap(-1, 1 << 20)
    mapping = mmap.mmap(fd, 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED) if mode == "mmap" else None
    if mapping:
        mapping.madvise(mmap.MADV_RANDOM)
    reads = wrong = 0
    errors: list[str] = []
    say(ready=True)
    while not told_to_stop() and not wrong:
        for _ in range(20):
            length = random.randrange(1, 1 << 18)
            offset = random.randrange(0, max(1, len(plain) - length))
            if mode == "direct":
                offset, length = offset & ~4095, (length + 4095) & ~4095
            try:
                if mapping:
                    got = mapping[offset : offset + min(length, 65536)]
                elif mode == "direct":
                    count = os.preadv(fd, [memoryview(buffer)[:length]], offset)
                    got = buffer[:count]
                else:
                    os.posix_fadvise(fd, offset, length, os.POSIX_FADV_DONTNEED)
                    got = os.pread(fd, length, offset)
                wrong += got != plain[offset : offset + len(got)] or not got
                if wrong:
                    break
            except OSError as exc:
                errors.append(errno.errorcode.get(exc.errno or 0, str(exc)))
            reads += 1
        if mapping:  # drop what is mapped, so that the next touch faults again
            mapping.madvise(mmap.MADV_DONTNEED)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    say(reads=reads, wrong=wrong, errors=errors)


def touch(path: str) -> None:
    with open(path, "rb") as file:
        mapping = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
        sum(mapping[::4096])
        say(ready=True)
        while True:
            sum(mapping[at] for at in range(0, len(mapping), 4096))


def hold(path: str) -> None:
    fd = os.open(path, os.O_RDONLY)
    size = os.fstat(fd).st_size
    mapping = mmap.mmap(fd, 0, prot=mmap.PROT_READ, flags=mmap.MAP_SHARED)
    sum(mapping[at] for at in range(0, size, 4096))
    untouched = mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)  # from_buffer wants it writable
    say(ready=True, resident=filled_pages(untouched) * 4096, size=size)
    sys.stdin.read()
    resident = filled_pages(untouched) * 4096
    try:
        os.pread(fd, 4096, 0)
        read = "ok"
    except OSError as exc:
        read = errno.errorcode[exc.errno or 0]
    pid = os.fork()
    if pid == 0:
        mapping[0]
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    touch = signal.Signals(os.WTERMSIG(status)).name if os.WIFSIGNALED(status) else "ok"
    say(read=read, resident=resident, touch=touch)


if __name__ == "__main__":
    {"loop": loop, "touch": touch, "hold": hold}[sys.argv[1]](*sys.argv[2:])
