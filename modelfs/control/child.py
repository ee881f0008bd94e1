"""What may block runs in a child, while control goes on answering status and unmount."""

import json
import logging
import os
from collections.abc import Callable
from typing import Any

import trio

from modelfs.control.process import fork_child, kill_child, wait_child

MAX_ANSWER_SIZE = 1 << 20
REAP_SECONDS = 1.0

logger = logging.getLogger(__name__)


async def in_child(action: Callable[[], dict[str, Any]], timeout_s: float) -> dict[str, Any] | None:
    """The result of `action`, which goes on in its child should this process be killed; None if no child has done it.

    Args:
        action: Its result has to be JSON of at most MAX_ANSWER_SIZE bytes.
        timeout_s: After which the child is killed.
    """
    try:
        reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as exc:
        logger.error("no pipe to a child can be had: %s", os.strerror(exc.errno or 0))
        return None

    def main() -> int:
        os.set_blocking(writing, True)
        with open(writing, "wb") as file:
            file.write(json.dumps(action()).encode() + b"\n")
        return 0

    data = b""
    try:
        try:
            pid = fork_child(main)
        finally:
            os.close(writing)
        try:
            with trio.move_on_after(timeout_s):  # to the line's end, not to the pipe's: what the child leaves may hold that open
                while not data.endswith(b"\n") and (part := await _receive(reading)):
                    data += part
        finally:
            kill_child(pid)
            wait_child(pid, REAP_SECONDS)
    except OSError as exc:
        logger.error("no child can be had: %s", os.strerror(exc.errno or 0))
        return None
    finally:
        os.close(reading)
    return dict(json.loads(data)) if data.endswith(b"\n") else None


async def _receive(fd: int) -> bytes:
    await trio.lowlevel.wait_readable(fd)
    return os.read(fd, MAX_ANSWER_SIZE)
