"""TLS before a server that speaks plain http: what a mounted model is tested with is https."""

import contextlib
import socket
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

HOST = "127.0.0.1"
_PASSED = ("authorization", "content-type", "x-amz-date", "x-amz-security-token", "x-amz-target", "x-goog-api-client")
_OPENER = build_opener(ProxyHandler({}))


class TlsFront:
    """Ends TLS, and passes requests and answers on, as a load balancer does."""

    def __init__(self, context: ssl.SSLContext, port: int) -> None:
        """Pass on to a port of this host."""
        target = f"http://{HOST}:{port}"

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = 30

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name: value for name, value in self.headers.items() if name.lower() in (*_PASSED, "host")}
                try:
                    with _OPENER.open(Request(target + self.path, body, headers, method=self.command), timeout=20) as answer:
                        self._pass_on(answer.status, answer)
                except HTTPError as error:
                    self._pass_on(error.code, error)
                except OSError:
                    self.close_connection = True

            do_GET = do_POST

            def _pass_on(self, status: int, answer: Any) -> None:
                body = answer.read()
                self.send_response(status)
                for name, value in answer.headers.items():
                    if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                        self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def finish_request(self, request: Any, client_address: Any) -> None:
                # In the connection's own thread: one that never shakes hands must hold up nobody.
                with contextlib.suppress(OSError), context.wrap_socket(request, server_side=True) as connection:
                    super().finish_request(connection, client_address)

            def handle_error(self, *_: object) -> None:
                """Say nothing: a client may leave whenever it likes."""

        self._server = Server((HOST, 0), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def address(self) -> str:
        return f"https://{HOST}:{self.port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def free_port() -> int:
    """A port of this host on which nothing listens."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        found: int = probe.getsockname()[1]
    return found
