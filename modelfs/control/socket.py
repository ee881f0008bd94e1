"""The control socket: one per mount, newline-delimited JSON, one request and one answer for each connection.

Only root and the user who mounted may speak; a request has 4 KiB and 5 seconds; one bad client blocks nobody.
"""

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import select
import signal
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import trio

from modelfs.control.process import is_running
from modelfs.errors import MountError

MAX_REQUEST_SIZE = 4096
MAX_ANSWER_SIZE = 1 << 20
REQUEST_SECONDS = 5
ACCEPT_SECONDS = 0.2
"""Between two attempts while no descriptor can be had."""
MAX_CLIENTS = 128
"""At once; more wait until one has its answer or its time is up. Each costs a descriptor, of which control must not run out."""

logger = logging.getLogger(__name__)

Answer = dict[str, Any]
Handler = Callable[[Answer], Awaitable[Answer]]


def runtime_dir() -> Path:
    """Where the sockets are: /run/modelfs for root, $XDG_RUNTIME_DIR/modelfs or /tmp/modelfs-UID for others."""
    if os.geteuid() == 0:
        return Path("/run/modelfs")
    base = os.environ.get("XDG_RUNTIME_DIR")
    return Path(base) / "modelfs" if base else Path(f"/tmp/modelfs-{os.geteuid()}")  # noqa: S108  where client and daemon both look, whatever TMPDIR says; made 0700, and both check whose it is


def canonical_mountpoint(path: Path) -> str:
    """The absolute path of a mountpoint, without asking the file system that may be mounted there.

    Everything above it is resolved; the last component is only read as a symlink, which no FUSE daemon is asked for.
    """
    text = os.path.abspath(path)
    for _ in range(40):
        text = os.path.join(os.path.realpath(os.path.dirname(text)), os.path.basename(text))
        try:
            target = os.readlink(text)
        except OSError:
            return text
        text = os.path.normpath(os.path.join(os.path.dirname(text), target))
    raise MountError(f"{path} goes through too many symlinks: name the directory itself")


def socket_path(mountpoint: str) -> Path:
    """The socket of a mount at a canonical mountpoint."""
    return runtime_dir() / (hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:32] + ".sock")


@contextlib.contextmanager
def mountpoint_lock(mountpoint: str) -> Iterator[None]:
    """Hold a mountpoint for the life of a mount: of two daemons that start at once, one is refused.

    Raises:
        MountError: Another process holds it, or the directory is not ours alone.
    """
    path = socket_path(mountpoint).with_suffix(".lock")
    _check_runtime_dir()
    try:
        while True:
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(fd).st_nlink:  # else its last holder has just removed it
                    break
            except BaseException:
                os.close(fd)
                raise
            os.close(fd)
    except BlockingIOError:
        raise MountError(f"{mountpoint} is mounted already, or just being mounted: see `modelfs status`") from None
    except OSError as exc:
        raise MountError(f"cannot make the lock {path}: {os.strerror(exc.errno or 0)}") from exc
    try:
        yield
    finally:
        path.unlink(missing_ok=True)
        os.close(fd)


def _check_runtime_dir() -> None:
    directory = runtime_dir()
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        info = os.lstat(directory)
    except OSError as exc:
        raise MountError(f"cannot use {directory}: {os.strerror(exc.errno or 0)}") from exc
    if info.st_uid != os.geteuid() or info.st_mode & 0o022:
        raise MountError(f"{directory} is not owned by this user alone: remove it, or mend its mode")


def listen(mountpoint: str) -> socket.socket:
    """Bind the socket of a mount, which only its owner may open. The caller holds `mountpoint_lock`.

    Raises:
        MountError: A live mount has it, or the directory is not ours alone.
    """
    path = socket_path(mountpoint)
    _check_runtime_dir()
    try:
        if path.exists():
            if is_live(path):
                raise MountError(f"{mountpoint} is mounted already: `modelfs unmount {mountpoint}` first")
            path.unlink()  # left by a process that died
        server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        old = os.umask(0o177)
        try:
            server.bind(str(path))
        finally:
            os.umask(old)
        server.listen(MAX_CLIENTS)
        return server
    except OSError as exc:
        raise MountError(f"cannot make the control socket {path}: {os.strerror(exc.errno or 0)}") from exc


def is_live(path: Path) -> bool:
    """Whether some process listens at a socket."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return False
        except FileNotFoundError:
            return False
        return True


async def serve(server: socket.socket, handler: Handler) -> None:
    """Answer requests until cancelled."""
    listener = trio.SocketListener(trio.socket.from_stdlib_socket(server))

    async def converse(stream: trio.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                answer = await _answer(stream, handler)
                with trio.move_on_after(REQUEST_SECONDS):  # whoever does not read it
                    await stream.send_all(json.dumps(answer).encode() + b"\n")
        places.release()

    places = trio.Semaphore(MAX_CLIENTS)
    async with trio.open_nursery() as nursery:
        while True:
            await places.acquire()
            nursery.start_soon(converse, await _accept(listener))


async def _accept(listener: trio.SocketListener) -> trio.SocketStream:
    """The next one who asks. Where no descriptor is left he waits until another one has been answered."""
    has_told = False
    while True:
        try:
            return await listener.accept()
        except OSError as exc:
            if not has_told:
                logger.warning("requests wait: %s", os.strerror(exc.errno or 0))
            has_told = True
            await trio.sleep(ACCEPT_SECONDS)


async def _answer(stream: trio.SocketStream, handler: Handler) -> Answer:
    credentials = stream.socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    _, uid, _ = struct.unpack("3i", credentials)
    if uid not in (0, os.geteuid()):
        return {"error": "permission denied"}
    data = b""
    with trio.move_on_after(REQUEST_SECONDS):
        while not data.endswith(b"\n") and len(data) <= MAX_REQUEST_SIZE:
            part = await stream.receive_some(MAX_REQUEST_SIZE + 1)
            if not part:
                break
            data += part
    if not data.endswith(b"\n") or len(data) > MAX_REQUEST_SIZE:
        return {"error": f"a request is one line of JSON of at most {MAX_REQUEST_SIZE} bytes, sent within {REQUEST_SECONDS} s"}
    try:
        request = json.loads(data)
    except (ValueError, RecursionError):
        return {"error": "a request is one line of JSON"}
    if not isinstance(request, dict):
        return {"error": "a request is a JSON object"}
    return await handler(request)


def request(path: Path, message: Answer, timeout_s: float, wait_for_end: bool = False) -> Answer:
    """Ask a mount's control process.

    Args:
        path: From `socket_path`.
        message: The request.
        timeout_s: For the whole answer.
        wait_for_end: Return only when that process has ended, after an unmount.

    Raises:
        MountError: Nobody listens, the answer is late or is an error.
    """
    pid = 0
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(timeout_s)
            client.connect(str(path))
            pid, uid, _ = struct.unpack("3i", client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
            if os.geteuid() not in (0, uid):  # in /tmp anybody can have made the directory before us, and answer whatever he likes
                raise MountError(f"at {path} another user's process {pid} listens, and is not believed: have root remove {path.parent}")
            with contextlib.suppress(BrokenPipeError):  # refused before it was heard: the answer says why
                client.sendall(json.dumps(message).encode() + b"\n")
            data = b""
            while not data.endswith(b"\n") and len(data) < MAX_ANSWER_SIZE:
                part = client.recv(65536)
                if not part:
                    break
                data += part
        answer = json.loads(data)
    except (FileNotFoundError, ConnectionRefusedError):
        raise MountError("no modelfs mount answers there: see `modelfs status` for those that do") from None
    except PermissionError:
        raise MountError("this mount belongs to another user: ask them, or root") from None
    except TimeoutError:
        raise NotAnsweringError(pid) from None
    except BlockingIOError:
        raise MountError("too many clients speak to this mount at once: try again in a few seconds") from None
    except (OSError, ValueError):
        raise MountError("the mount is just ending: `modelfs status` shows whether it is gone") from None
    if wait_for_end:
        _wait_for_end(pid, 5.0)
    if "error" in answer:
        raise MountError(str(answer["error"])[:500])
    return dict(answer)


class NotAnsweringError(MountError):
    """A control process listens and does not answer: it is stopped, or hangs."""

    def __init__(self, pid: int) -> None:
        """Remember whom to end."""
        super().__init__(
            f"the mount's control process {pid} does not answer: `modelfs unmount` ends it, and the warden takes the mount down"
        )
        self.pid = pid


def end_process(pid: int, timeout_s: float) -> None:
    """SIGKILL a process and wait for its end."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    _wait_for_end(pid, timeout_s)


def _wait_for_end(pid: int, timeout_s: float) -> None:
    with contextlib.suppress(ProcessLookupError):
        fd = os.pidfd_open(pid)
        try:
            poll = select.poll()
            poll.register(fd, select.POLLIN)
            if is_running(pid):
                poll.poll(int(timeout_s * 1000))
        finally:
            os.close(fd)
