"""The key page: the prover leaves the DEK there for keyed workers, and on a page apart its token for the next prover.

Control maps both, because it is the parent of provers, and reads neither. Warden and workers let go of the token's page.
memfd_secret(2) where the kernel has it, so that not even another process of root reads it through /proc.
"""

import ctypes
import mmap
import os

from modelfs.control.process import libc

_SYS_MEMFD_SECRET = 447
_MADV_DONTDUMP = 16
_KEY_SIZE = 32
MAX_SESSION_SIZE = 3072


class KeyPage:
    """Handle on the shared pages; inherited over fork."""

    def __init__(self, sessions: int = 1) -> None:
        """Make empty pages, with room for the logins at so many KEKs."""
        self._page = _secret_page() or _locked_page()
        self._sessions = [_secret_page() or _locked_page() for _ in range(sessions)]

    def write(self, dek: bytes) -> None:
        """Leave a DEK (32 bytes)."""
        if len(dek) != _KEY_SIZE:
            raise ValueError("a DEK is 32 bytes")
        self._page[:_KEY_SIZE] = dek

    def read(self) -> bytes:
        """The DEK, or 32 zero bytes. Only in a process that will end: Python cannot wipe this copy."""
        return self._page[:_KEY_SIZE]

    def wipe(self) -> None:
        """Overwrite the key, for every process at once."""
        self._page[:_KEY_SIZE] = bytes(_KEY_SIZE)

    def write_session(self, session: bytes, position: int = 0) -> None:
        """Leave what the next prover needs to go on with the same token, at most MAX_SESSION_SIZE bytes; b"" for nothing.

        Args:
            session: From a grant.
            position: Of the KEK in the host's list: each has a page of its own, so that no login is sent to another service, and an outage
                of one does not lose what it knew of its login.
        """
        if len(session) > MAX_SESSION_SIZE:
            raise ValueError("a provider's session is too long")
        header = len(session).to_bytes(4, "big")
        self._sessions[position][: 4 + MAX_SESSION_SIZE] = header + session + bytes(MAX_SESSION_SIZE - len(session))

    def read_session(self, position: int = 0) -> bytes | None:
        """What `write_session` left for this KEK, or None. Only in a prover."""
        page = self._sessions[position]
        length = int.from_bytes(page[:4], "big")
        return page[4 : 4 + length] if 0 < length <= MAX_SESSION_SIZE else None

    def forget_session(self) -> None:
        """Unmap the tokens' pages in this process and those that it forks: whoever needs no token cannot have one."""
        for page in self._sessions:
            page.close()

    def wipe_all(self) -> None:
        """Overwrite key and sessions: after a revocation nobody asks again."""
        self.wipe()
        for position in range(len(self._sessions)):
            self.write_session(b"", position)


def has_secret_memory() -> bool:
    """Whether memfd_secret works here."""
    page = _secret_page()
    if page is None:
        return False
    page.close()
    return True


def _secret_page() -> mmap.mmap | None:
    fd = libc.syscall(_SYS_MEMFD_SECRET, 0)
    if fd < 0:
        return None
    try:
        os.ftruncate(fd, mmap.PAGESIZE)
        page = mmap.mmap(fd, mmap.PAGESIZE)
        page[0] = 0  # fault it in now: the kernel may refuse to lock more memory
        return page
    except (OSError, ValueError):
        return None
    finally:
        os.close(fd)


def _locked_page() -> mmap.mmap:
    page = mmap.mmap(-1, mmap.PAGESIZE)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    libc.mlock(ctypes.c_void_p(address), mmap.PAGESIZE)
    page.madvise(_MADV_DONTDUMP)
    return page
