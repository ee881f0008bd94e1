"""A server that answers as a key service would, until a test makes it misbehave. Over TLS, unless told otherwise."""

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Misbehave = Callable[[ssl.SSLSocket], None]
"""Takes the connection after a request was read; what it does is the answer."""


def http(status: int, body: bytes, content_type: str = "application/json", **headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status} x", f"Content-Type: {content_type}", f"Content-Length: {len(body)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def answer(value: Any, status: int = 200) -> bytes:
    return http(status, json.dumps(value).encode())


@dataclass(frozen=True)
class Request:
    """What came in."""

    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


@dataclass
class ServiceImpostor:
    """Listens on loopback; one thread for each connection. Subclasses know the usual answers."""

    context: ssl.SSLContext | None
    dek: bytes
    overrides: dict[str, bytes | Misbehave] = field(default_factory=dict)
    """Part of what `what_of` says of a request -> the bytes to answer with, or what to do."""
    requests: list[Request] = field(default_factory=list)
    host: str = "127.0.0.1"

    def __post_init__(self) -> None:
        self._listener = socket.create_server((self.host, 0))
        self._connections: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def address(self) -> str:
        return f"{'https' if self.context else 'http'}://{self.host}:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = self._listener.accept()[0]
                self._connections.append(connection)
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: Any) -> None:
        with contextlib.suppress(OSError, ValueError):
            if self.context:
                connection = self.context.wrap_socket(connection, server_side=True)
                self._connections.append(connection)
            file = connection.makefile("rb")
            while line := file.readline():
                _method, target, *_ = line.split()  # ValueError: a client that was killed in the middle of a line
                path = target.decode()
                headers = {}
                while (header := file.readline().strip()) != b"":
                    name, _, value = header.decode().partition(": ")
                    headers[name.lower()] = value
                request = Request(path, headers, file.read(int(headers.get("content-length", 0))))
                self.requests.append(request)
                what = self.what_of(request)
                action = next((do for part, do in self.overrides.items() if part in what), None)
                if action is None:
                    action = self.usual(request)
                if callable(action):
                    action(connection)
                    return
                connection.sendall(action)

    def what_of(self, request: Request) -> str:
        """Which call of the service a request is."""
        return request.path

    def usual(self, request: Request) -> bytes:
        """How the service answers."""
        raise NotImplementedError


def server_context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


def trickle(connection: ssl.SSLSocket) -> None:
    """A byte a moment, for ever: each within any timeout of a single read."""
    for byte in http(200, b"x" * 100000):
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def trickle_body(connection: ssl.SSLSocket) -> None:
    head, _, body = http(200, b" " * 100000).partition(b"\r\n\r\n")
    connection.sendall(head + b"\r\n\r\n")
    for byte in body:
        connection.sendall(bytes([byte]))
        time.sleep(0.05)


def hang(_connection: ssl.SSLSocket) -> None:
    time.sleep(30)


def hang_up(connection: ssl.SSLSocket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def flood(connection: ssl.SSLSocket) -> None:
    """An answer without an end."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n")
    for _ in range(10000):
        connection.sendall(b" " * 65536)


def endless_headers(connection: ssl.SSLSocket) -> None:
    connection.sendall(b"HTTP/1.1 200 OK\r\n")
    for number in range(100000):
        connection.sendall(b"X-%d: y\r\n" % number)


def send(data: bytes) -> Misbehave:
    def action(connection: ssl.SSLSocket) -> None:
        connection.sendall(data)
        connection.close()

    return action


def slowly(data: bytes, pause_s: float, at_first_s: float = 0.0) -> Misbehave:
    """An answer, a byte at a time."""

    def action(connection: ssl.SSLSocket) -> None:
        wait = threading.Event().wait
        wait(at_first_s)
        for byte in data:
            connection.sendall(bytes([byte]))
            wait(pause_s)

    return action


PROXY_PAGE = b"<html><body>403 Forbidden: blocked by policy</body></html>"
SILENT = ("hangs", "a byte a moment", "a byte of the body a moment")
"""Those of `no_answers` that last until the client's time is up."""


def no_answers(json_type: str = "application/json") -> dict[str, bytes | Misbehave]:
    """What no client may take for an answer, whatever the service; `json_type` is the Content-Type that it expects."""
    return {
        "502 HTML": http(502, b"<html>Bad Gateway</html>", "text/html"),
        "503 HTML": http(503, PROXY_PAGE, "text/html"),
        "429 HTML": http(429, PROXY_PAGE, "text/html"),
        "403 HTML of a proxy": http(403, PROXY_PAGE, "text/html"),
        "301": http(301, b"", Location="https://127.0.0.1:1/"),
        "307 to http": http(307, b"", Location="http://127.0.0.1:1/"),
        "200 empty": http(200, b"", json_type),
        "200 HTML": http(200, b"<html>Log in to the hotel</html>", "text/html"),
        "200 not UTF-8": http(200, b"\xff\xfe{}", json_type),
        "204": http(204, b"", json_type),
        "100 for ever": send(b"HTTP/1.1 100 Continue\r\n\r\n" * 5),
        "garbage": send(b"\0\1\2\3 not HTTP at all\r\n\r\n"),
        "HTTP/0.9": send(b"permission denied"),
        "short body": send(f'HTTP/1.1 403 x\r\nContent-Type: {json_type}\r\nContent-Length: 99\r\n\r\n{{"errors"'.encode()),
        "negative length": send(f"HTTP/1.1 200 x\r\nContent-Type: {json_type}\r\nContent-Length: -5\r\n\r\n{{}}".encode()),
        "bad chunks": send(b"HTTP/1.1 200 x\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n{}"),
        "huge body": flood,
        "huge declared body": http(200, b" " * 300000, json_type),
        "endless headers": endless_headers,
        "hangs up": hang_up,
        "hangs": hang,
        "a byte a moment": trickle,
        "a byte of the body a moment": trickle_body,
    }
