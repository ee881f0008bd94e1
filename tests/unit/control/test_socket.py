"""The control socket: who may speak, how much, and that a bad client blocks nobody."""

import contextlib
import errno
import json
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from modelfs.control import socket as control
from modelfs.control.process import fork_child, wait_child
from modelfs.errors import MountError
from tests.mount.conftest import wait_until


@pytest.fixture
def runtime(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    base = tmp_path_factory.mktemp("socket")  # not tmp_path, which the test's name makes too long for a socket's path
    monkeypatch.setattr(control, "runtime_dir", lambda: base / "run")
    return base


@pytest.fixture
def served(runtime: Path) -> Iterator[Path]:
    """A server that echoes; the path of its socket."""
    server = control.listen("/some/mountpoint")
    scope, tokens, started = trio.CancelScope(), [], threading.Event()

    async def echo(request: control.Answer) -> control.Answer:
        return {"echo": request}

    async def main() -> None:
        tokens.append(trio.lowlevel.current_trio_token())
        started.set()
        with scope:
            await control.serve(server, echo)

    thread = threading.Thread(target=lambda: trio.run(main))
    thread.start()
    assert started.wait(10)
    yield control.socket_path("/some/mountpoint")
    trio.from_thread.run_sync(scope.cancel, trio_token=tokens[0])
    thread.join(10)
    server.close()
    assert not thread.is_alive()


def raw(path: Path, data: bytes) -> dict[str, object]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(10)
        client.connect(str(path))
        with contextlib.suppress(OSError):  # who is refused at once is not heard
            client.sendall(data)
            client.shutdown(socket.SHUT_WR)
        answer = b""
        while not answer.endswith(b"\n") and (part := client.recv(65536)):
            answer += part
    return dict(json.loads(answer))


def test_who_is_refused_before_he_has_spoken_is_told_so(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket"))
        server.listen()

        def refuse() -> None:
            client, _ = server.accept()
            client.sendall(b'{"error": "permission denied"}\n')
            client.shutdown(socket.SHUT_RD)
            refused.set()
            client.close()

        refused = threading.Event()
        thread = threading.Thread(target=refuse)
        thread.start()
        with socket.socket(socket.AF_UNIX) as first:
            first.connect(str(tmp_path / "socket"))
            assert refused.wait(10)
            with pytest.raises(BrokenPipeError):
                first.sendall(b"x")
        thread.join()
        thread = threading.Thread(target=refuse)
        thread.start()
        with pytest.raises(MountError, match="permission denied"):
            control.request(tmp_path / "socket", {"do": "x" * 500_000}, 10)
        thread.join()


def test_a_request_is_answered(served: Path) -> None:
    assert control.request(served, {"do": "x"}, 5) == {"echo": {"do": "x"}}


@pytest.mark.parametrize(
    "data",
    [b"", b"\n", b"{", b"[1]\n", b"nonsense\n", b"\xff\xfe\n", b'{"a": 1}', b"[" * 4000 + b"\n", b"x" * 5000 + b"\n"],
    ids=["nothing", "empty line", "cut off", "no object", "no JSON", "no UTF-8", "no line end", "deep", "too long"],
)
def test_a_bad_request_gets_an_error_and_blocks_nobody(served: Path, data: bytes) -> None:
    with socket.socket(socket.AF_UNIX) as idle:
        idle.connect(str(served))
        assert "error" in raw(served, data)
        assert control.request(served, {"do": "x"}, 5) == {"echo": {"do": "x"}}


def test_the_socket_is_its_owner_s_alone(served: Path) -> None:
    assert os.stat(served).st_mode & 0o777 == 0o600
    assert os.stat(served.parent).st_mode & 0o777 == 0o700


@pytest.fixture
def root() -> None:
    """Being somebody else takes root."""
    if os.geteuid() != 0:
        pytest.skip("needs root")


@pytest.mark.usefixtures("root")
def test_another_user_is_refused_even_where_the_modes_let_him_in(served: Path) -> None:
    served.parent.chmod(0o755)
    served.chmod(0o666)

    def ask() -> int:
        os.chdir(served.parent)
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
        return 0 if raw(Path(served.name), b'{"do": "x"}\n') == {"error": "permission denied"} else 1

    assert wait_child(fork_child(ask), 10) == 0
    assert control.request(served, {"do": "x"}, 5) == {"echo": {"do": "x"}}


@pytest.mark.usefixtures("root")
def test_what_another_user_answers_is_not_believed(tmp_path: Path) -> None:
    """Who has made /tmp/modelfs-UID before its owner could tell him of an unmount that never was."""
    tmp_path.chmod(0o777)
    ready, told = os.pipe()

    def become(user: int) -> None:
        os.chdir(tmp_path)
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)

    def forge() -> int:
        become(65534)
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("forged.sock")
            os.chmod("forged.sock", 0o666)
            server.listen()
            os.write(told, b"x")
            for _ in range(2):
                with contextlib.suppress(OSError):
                    server.accept()[0].sendall(b'{"proof": {}}\n')
        return 0

    def ask() -> int:
        become(41234)
        try:
            control.request(Path("forged.sock"), {"do": "unmount"}, 5)
        except MountError as exc:
            return 0 if "another user's process" in str(exc) else 2
        return 1

    forger = fork_child(forge)
    os.read(ready, 1)
    assert wait_child(fork_child(ask), 10) == 0
    assert control.request(tmp_path / "forged.sock", {"do": "unmount"}, 5) == {"proof": {}}, "it is there, and root is free to ask"
    assert wait_child(forger, 10) == 0
    os.close(ready)
    os.close(told)


def test_without_a_descriptor_a_request_waits(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    accept, failures = trio.SocketListener.accept, [errno.EMFILE, errno.ENFILE]

    async def scarce(listener: trio.SocketListener) -> trio.SocketStream:
        if failures:
            raise OSError(failures.pop(), "none left")
        return await accept(listener)

    monkeypatch.setattr(trio.SocketListener, "accept", scarce)
    for _ in range(3):  # the first one is waited for already
        assert control.request(served, {"do": "x"}, 5) == {"echo": {"do": "x"}}
    assert not failures


def test_many_idle_clients_take_neither_all_descriptors_nor_all_places(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "REQUEST_SECONDS", 1)
    before = len(os.listdir("/proc/self/fd"))
    with contextlib.ExitStack() as stack:
        idle = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(control.MAX_CLIENTS + 8)]
        for client in idle:
            client.connect(str(served))
        assert len(os.listdir("/proc/self/fd")) <= before + len(idle) + control.MAX_CLIENTS
        answers: list[object] = []

        def is_served() -> bool:  # who is told to try again in a few seconds does so
            with contextlib.suppress(MountError):
                answers.append(control.request(served, {"do": "x"}, 60))
            return bool(answers)

        wait_until(is_served, 30, "an answer")
        assert answers == [{"echo": {"do": "x"}}]


def test_more_clients_than_can_wait_are_told(runtime: Path) -> None:
    with control.listen("/some/mountpoint"), contextlib.ExitStack() as stack:
        path = control.socket_path("/some/mountpoint")
        for _ in range(control.MAX_CLIENTS + 1):  # the kernel takes one more
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        with pytest.raises(MountError, match="too many clients"):
            control.request(path, {"do": "status"}, 1)


def test_a_client_that_does_not_read_its_answer_is_left(served: Path) -> None:
    with socket.socket(socket.AF_UNIX) as deaf:
        deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        deaf.connect(str(served))
        deaf.sendall(b'{"do": "' + b"x" * 4000 + b'"}\n')
        assert control.request(served, {"do": "x"}, 5) == {"echo": {"do": "x"}}


def test_nobody_there(runtime: Path) -> None:
    with pytest.raises(MountError, match="no modelfs mount"):
        control.request(runtime / "nothing.sock", {"do": "status"}, 1)


def test_a_live_socket_is_not_taken(served: Path) -> None:
    with pytest.raises(MountError, match="mounted already"):
        control.listen("/some/mountpoint")


def test_a_directory_that_others_may_write_is_refused(runtime: Path) -> None:
    (runtime / "run").mkdir()
    (runtime / "run").chmod(0o777)
    with pytest.raises(MountError, match="not owned by this user alone"):
        control.listen("/some/mountpoint")


def test_canonical_mountpoint_resolves_symlinks(tmp_path: Path) -> None:
    (tmp_path / "real" / "mnt").mkdir(parents=True)
    (tmp_path / "above").symlink_to("real")
    (tmp_path / "direct").symlink_to("real/mnt")
    want = os.path.realpath(tmp_path / "real" / "mnt")
    for name in ("real/mnt", "above/mnt", "direct", "real/../above/mnt/"):
        assert control.canonical_mountpoint(tmp_path / name) == want


def test_canonical_mountpoint_refuses_a_loop(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(MountError, match="too many symlinks"):
        control.canonical_mountpoint(tmp_path / "loop")
