"""pyfuse3's only part in a mount: libfuse mounts, and INIT is answered. Every later request is answered by serve.py."""

import pyfuse3
import trio


class InitOperations(pyfuse3.Operations):
    """Answers INIT with what a read-only view needs of the kernel."""

    supports_dot_lookup = False  # open_inode finds what the kernel knows; it must never ask a dark mount for more
    enable_writeback_cache = False

    def __init__(self) -> None:
        """Answer nothing yet."""
        super().__init__()
        self._scope: trio.CancelScope | None = None

    async def run_until_init(self) -> None:
        """Read requests until the kernel's INIT is answered, and not one more."""
        with trio.CancelScope() as self._scope:
            await pyfuse3.main(1, 1)

    def init(self) -> None:
        """INIT is being answered: the next await in the loop ends it."""
        if self._scope is not None:
            self._scope.cancel()
