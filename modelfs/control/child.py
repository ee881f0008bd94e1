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


async def in_child(action: Callable[[], dict[str, Any]], timeout_s: float) -> dict[str, Any]:
    """The result of `action`, which goes on in its child should this process be killed, and is done here should the child not do it.

    Args:
        action: Its result has to be JSON of at most MAX_ANSWER_SIZE bytes. Doing it twice must be the same as doing it once.
        timeout_s: After which the child is killed.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def main() -> int:
        os.set_blocking(writing, True)
        with open(writing, "w") as file:
            json.dump(action(), file)
        return 0

    try:
        pid = fork_child(main)
    finally:
        os.close(writing)
    data = b""
    try:
        with trio.move_on_after(timeout_s):
            while part := await _receive(reading):
                data += part
    finally:
        kill_child(pid)
        wait_child(pid, REAP_SECONDS)
        os.close(reading)
    try:
        return dict(json.loads(data))
    except ValueError:
        logger.error("a child that had something to do has not done it: done here instead")
        return action()


async def _receive(fd: int) -> bytes:
    await trio.lowlevel.wait_readable(fd)
    return os.read(fd, MAX_ANSWER_SIZE)
