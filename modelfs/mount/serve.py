"""A worker's loop: one request read, one answered. The read path of the whole daemon is here, in answers.py and in reader/blob.py."""

import contextlib
import errno
import logging
import os

from modelfs.cache.scratch import PAGE, page_aligned
from modelfs.errors import ModelfsError
from modelfs.mount.answers import REPLY_SIZE, Answers, Refused
from modelfs.mount.wire import WITHOUT_REPLY, Opcode, Request, pack_header, parse_name, parse_read, read_request

logger = logging.getLogger(__name__)


def serve(fd: int, answers: Answers) -> None:
    """Answer requests until the connection ends.

    Args:
        fd: This process's own clone of the session's descriptor.
        answers: What to say.

    Raises:
        OSError: The descriptor fails in a way that no kernel should.
    """
    buffer = page_aligned(REPLY_SIZE + PAGE)
    while True:
        try:
            request = read_request(fd, buffer)
        except OSError as exc:
            if exc.errno == errno.ENODEV:
                return
            if exc.errno in (errno.ENOENT, errno.EAGAIN):
                continue  # the request was withdrawn before it was read
            raise
        if request.opcode in WITHOUT_REPLY:
            continue
        error, payload = _answer(answers, request)
        header = pack_header(request.unique, error, len(payload))
        answers.check_fence()
        # ENOENT: whoever asked was killed, or after a resend somebody else has answered.
        with contextlib.suppress(FileNotFoundError):
            os.writev(fd, [header, payload])


def _answer(answers: Answers, request: Request) -> tuple[int, bytes | memoryview]:
    """(errno, reply); the one place where errors become errno."""
    answers.check_fence()
    try:
        return 0, _dispatch(answers, request)
    except Refused as exc:
        return exc.errno, b""
    except ModelfsError as exc:
        logger.error("%s: %s", _name(request.opcode), exc)
        return exc.errno, b""
    except Exception:
        logger.exception("a bug in %s: the reader gets EIO", _name(request.opcode))
        return errno.EIO, b""


def _dispatch(answers: Answers, request: Request) -> bytes | memoryview:
    _, _, inode, pid, body = request
    match request.opcode:
        case Opcode.READ:
            return answers.read(inode, *parse_read(body))
        case Opcode.LOOKUP:
            return answers.lookup(inode, parse_name(body))
        case Opcode.GETATTR:
            return answers.attributes(inode, pid)
        case Opcode.OPEN | Opcode.OPENDIR:
            return answers.open(inode, pid)
        case Opcode.READDIR | Opcode.READDIRPLUS:
            after, size = parse_read(body)
            return answers.readdir(inode, after, size, with_attributes=request.opcode == Opcode.READDIRPLUS)
        case Opcode.READLINK:
            return answers.readlink(inode)
        case Opcode.STATFS:
            return answers.statfs()
        case Opcode.RELEASE | Opcode.RELEASEDIR | Opcode.DESTROY:
            return b""
        case _:
            raise Refused(errno.ENOSYS)


def _name(opcode: int) -> str:
    return Opcode(opcode).name if opcode in Opcode.__members__.values() else f"opcode {opcode}"
