"""The worker's loop, over a socket in place of /dev/fuse: a packet is a request, and so is a reply."""

import errno
import logging
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from modelfs.control.fence import Fence, State
from modelfs.control.pins import Rows
from modelfs.errors import LimitExceededError
from modelfs.mount import serve as serve_module
from modelfs.mount.answers import KeylessAnswers, Refused
from modelfs.mount.serve import serve
from modelfs.mount.wire import Opcode, pack_open


class Scripted(KeylessAnswers):
    """Answers that a test chooses, by opcode."""

    def __init__(self) -> None:
        self.fenced = 0

    def check_fence(self) -> None:
        self.fenced += 1

    def open(self, inode: int, pid: int) -> bytes:
        return pack_open(inode)

    def lookup(self, parent: int, name: bytes) -> bytes:
        raise Refused(errno.ENOENT)

    def read(self, inode: int, offset: int, size: int) -> memoryview:
        return memoryview(bytes(range(256)))[offset : offset + size]

    def statfs(self) -> bytes:
        raise LimitExceededError("too much")

    def readlink(self, inode: int) -> bytes:
        raise RuntimeError("a bug")


class Kernel:
    """The other end: asks, and hears what is answered."""

    def __init__(self, end: socket.socket) -> None:
        self._end = end
        end.settimeout(10)

    def ask(self, opcode: int, body: bytes = b"", inode: int = 5, pid: int = 9) -> None:
        header = struct.pack("<IIQQIIIHH", 40 + len(body), opcode, 1000 + opcode, inode, 0, 0, pid, 0, 0)
        self._end.send(header + body)

    def answer(self) -> tuple[int, int, bytes]:
        data = self._end.recv(1 << 16)
        length, error, unique = struct.unpack_from("<IiQ", data)
        assert length == len(data)
        return unique, -error, data[16:]


@pytest.fixture
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Kernel, Scripted]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    answers = Scripted()
    really = serve_module.read_request

    def until_closed(fd: int, buffer: memoryview) -> object:
        try:
            return really(fd, buffer)
        except ValueError:  # the other end was closed: 0 bytes, where /dev/fuse says ENODEV
            raise OSError(errno.ENODEV, "") from None

    monkeypatch.setattr(serve_module, "read_request", until_closed)
    thread = threading.Thread(target=serve, args=(theirs.fileno(), answers))
    thread.start()
    yield Kernel(ours), answers
    ours.close()
    thread.join(10)
    assert not thread.is_alive(), "the loop outlived its connection"
    theirs.close()


def test_answers_carry_the_request_they_answer(kernel: tuple[Kernel, Scripted]) -> None:
    asking, answers = kernel
    asking.ask(Opcode.OPEN)
    assert asking.answer() == (1000 + Opcode.OPEN, 0, pack_open(5))
    asking.ask(Opcode.READ, struct.pack("<QQIIQII", 5, 10, 4, 0, 0, 0, 0))
    assert asking.answer() == (1000 + Opcode.READ, 0, bytes([10, 11, 12, 13]))
    assert answers.fenced == 4, "the fence is looked at before and after each request"


@pytest.mark.parametrize(
    ("opcode", "expected"),
    [
        (Opcode.LOOKUP, errno.ENOENT),
        (Opcode.STATFS, LimitExceededError("").errno),
        (Opcode.READLINK, errno.EIO),
        (Opcode.RELEASE, 0),
        (Opcode.RELEASEDIR, 0),
        (22, errno.ENOSYS),  # GETXATTR
        (25, errno.ENOSYS),  # FLUSH
        (9999, errno.ENOSYS),
    ],
)
def test_errors_become_errno(kernel: tuple[Kernel, Scripted], opcode: int, expected: int, caplog: pytest.LogCaptureFixture) -> None:
    asking, _ = kernel
    with caplog.at_level(logging.ERROR):
        asking.ask(opcode, b"name\0")
        assert asking.answer() == (1000 + opcode, expected, b"")
    assert ("a bug" in caplog.text) == (opcode == Opcode.READLINK)


def test_what_wants_no_reply_gets_none(kernel: tuple[Kernel, Scripted]) -> None:
    asking, _ = kernel
    for opcode in (Opcode.FORGET, Opcode.BATCH_FORGET, Opcode.INTERRUPT):
        asking.ask(opcode, bytes(16))
    asking.ask(Opcode.OPEN)
    assert asking.answer()[0] == 1000 + Opcode.OPEN


def test_a_body_that_is_too_short_is_answered_with_an_error(kernel: tuple[Kernel, Scripted]) -> None:
    asking, _ = kernel
    asking.ask(Opcode.READ, b"short")
    assert asking.answer() == (1000 + Opcode.READ, errno.EIO, b"")


def test_without_keys_everything_is_dark_but_for_the_residency_check() -> None:
    fence, rows = Fence(), Rows()
    rows.write([(0, 0o40555), (4097, 0o100444)])
    answers = KeylessAnswers(fence, rows)
    fence.open_epoch()
    fence.close(State.LOCKED)
    asked = [
        lambda: answers.lookup(1, b"name"),
        lambda: answers.attributes(2, 77),
        lambda: answers.open(2, 77),
        lambda: answers.read(2, 0, 10),
        lambda: answers.readlink(2),
        lambda: answers.readdir(1, 0, 4096, with_attributes=True),
        answers.statfs,
    ]
    for ask in asked:
        with pytest.raises(Refused) as refused:
            ask()
        assert refused.value.errno == errno.EKEYEXPIRED
    fence.checker_pid = 77
    assert struct.unpack_from("<Q", answers.attributes(2, 77), 16 + 8)[0] == 4097
    assert answers.open(2, 77) == pack_open(2)
    for ask in (lambda: answers.attributes(3, 77), lambda: answers.attributes(2, 78), lambda: answers.read(2, 0, 10)):
        with pytest.raises(Refused):
            ask()
    fence.close(State.REVOKED)
    with pytest.raises(Refused) as refused:
        answers.read(2, 0, 10)
    assert refused.value.errno == errno.EKEYREVOKED
