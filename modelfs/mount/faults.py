"""Log lines about bad blocks: each fault once a minute, and never a storm."""

import logging
import time
from collections.abc import Callable

from modelfs.cache.lru import LruMap

WINDOW_S = 60.0
LINES_IN_WINDOW = 20

logger = logging.getLogger(__name__)


class FaultLog:
    """One worker's reports. The same text is logged once in a window, and at most LINES_IN_WINDOW different ones."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        """Start with nothing reported."""
        self._clock = clock
        self._seen: LruMap[str, float] = LruMap(1024)
        self._window = float("-inf")
        self._lines = 0

    def report(self, text: str) -> None:
        """Log a fault (file, block, what was expected), unless it was just said.

        It may be that nobody has read it yet, and the kernel only reads ahead: a request does not say, and an operator wants to know.
        """
        now = self._clock()
        last = self._seen.find(text)
        if last is not None and now - last < WINDOW_S:
            return
        self._seen.put(text, now)
        if now - self._window >= WINDOW_S:
            self._window, self._lines = now, 0
        self._lines += 1
        if self._lines <= LINES_IN_WINDOW:
            logger.error("%s: whoever reads it gets EIO; `modelfs verify` lists every fault, fetch the blob again", text)
        elif self._lines == LINES_IN_WINDOW + 1:
            logger.error("more bad blocks: not logged for a minute; `modelfs verify` lists every fault")
