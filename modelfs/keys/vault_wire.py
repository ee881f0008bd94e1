"""HTTP to one server, for keys: verified TLS 1.2 or later, one total deadline, bounded answers; no proxy, no redirect, no environment.

hvac's own transport (requests) follows redirects, takes proxies and CA files from the environment, and bounds neither the whole time nor
the size of an answer. Does not know what is in an answer: see vault_api.py.
"""

import contextlib
import http.client
import ipaddress
import logging
import os
import socket
import ssl
import time
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from modelfs.errors import ConfigError, KeyServiceError
from modelfs.keys.deadline import within

MAX_ANSWER_SIZE = 256 * 1024

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Endpoint:
    """A server's address, checked, and how its certificate is verified."""

    host: str
    port: int
    tls: ssl.SSLContext | None = field(repr=False)
    """None for plain http to a loopback address."""

    def __str__(self) -> str:
        """The address as a person writes it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{'http' if self.tls is None else 'https'}://{host}:{self.port}"


def open_endpoint(address: str, ca_file: Path | None, insecure_http: bool) -> Endpoint:
    """Check an address and prepare TLS. No network, no secret.

    Raises:
        ConfigError: Not `https://HOST[:PORT]`, plain http that is not allowed, or no usable CA file.
    """
    example = "use https://HOST:PORT, for example https://vault.example.com:8200"
    try:
        parts = urlsplit(address)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ConfigError(f"the key service's address is no URL: {example}") from None
    if parts.username is not None or parts.password is not None:
        raise ConfigError(f"the key service's address holds a user or password, which is never sent: {example}")
    if not host or parts.scheme not in ("https", "http") or parts.path.strip("/") or parts.query or parts.fragment:
        raise ConfigError(f"{address!r} is not the address of a key service: {example}")
    if parts.scheme == "http":
        if not insecure_http:
            raise ConfigError(
                f"{address} is plain http, on which keys could be read: use https (or --insecure-http, for a loopback address only)"
            )
        if not _names_loopback(host):
            raise ConfigError(f"{address} is plain http to another host, on which keys could be read: use https")
        return Endpoint(host, port or 80, None)
    return Endpoint(host, port or 443, _tls_context(ca_file))


def _names_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _tls_context(ca_file: Path | None) -> ssl.SSLContext:
    # Not create_default_context: that one writes session keys to SSLKEYLOGFILE.
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    if ca_file is None:
        context.load_default_certs()
        return context
    try:
        context.load_verify_locations(cafile=ca_file)
    except ssl.SSLError:
        raise ConfigError(f"the CA file {ca_file} holds no certificate in PEM") from None
    except OSError as exc:
        raise ConfigError(f"cannot read the CA file {ca_file}: {os.strerror(exc.errno or 0)}") from None
    return context


@dataclass(frozen=True)
class Reply:
    """An HTTP answer, believed in no way yet."""

    status: int
    content_type: str
    body: bytes = field(repr=False)


class Wire:
    """One connection for a few requests in a row, and one deadline for all of them."""

    def __init__(self, endpoint: Endpoint, timeout_s: float) -> None:
        """The clock starts now; the connection is made by the first request."""
        self.endpoint = endpoint
        self._timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._connection: http.client.HTTPConnection | None = None

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Reply:
        """One request and its answer.

        Raises:
            KeyServiceError: No whole answer in time, or not over a connection that may be believed.
        """
        try:
            return within(self._deadline - time.monotonic(), lambda: self._send(method, path, headers, body))
        except TimeoutError:
            self._hang_up()
            raise KeyServiceError(f"the key service {self.endpoint} did not answer within {self._timeout_s:.3g} s") from None
        except Exception as exc:
            # `from None`: an HTTP library's error may quote what it was about to send.
            raise KeyServiceError(f"the key service {self.endpoint} cannot be used: {_explain(exc)}") from None

    def _send(self, method: str, path: str, headers: dict[str, str], body: bytes | None) -> Reply:
        connection = self._connection or self._connect()
        connection.request(method, path, body, headers)
        answer = connection.getresponse()
        data = answer.read(MAX_ANSWER_SIZE + 1)
        if len(data) > MAX_ANSWER_SIZE:
            raise _UnfitError(f"its answer is longer than {MAX_ANSWER_SIZE} bytes")
        logger.debug("%s %s: %d", method, path, answer.status)  # a path holds no secret: tokens are in headers, credentials in bodies
        return Reply(answer.status, answer.headers.get("Content-Type", ""), data)

    def _connect(self) -> http.client.HTTPConnection:
        endpoint, left = self.endpoint, max(0.001, self._deadline - time.monotonic())
        if endpoint.tls is not None:
            connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                endpoint.host, endpoint.port, timeout=left, context=endpoint.tls
            )
        else:
            connection = http.client.HTTPConnection(endpoint.host, endpoint.port, timeout=left)
        connection.connect()
        self._connection = connection
        if endpoint.tls is None and not ipaddress.ip_address(connection.sock.getpeername()[0]).is_loopback:
            raise _UnfitError("its name leads to another host, and plain http is for a loopback address only")
        return connection

    def _hang_up(self) -> None:
        """Wake the thread that still waits, so that it ends."""
        if self._connection is not None and self._connection.sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(self._connection.sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """End the connection."""
        if self._connection is not None:
            self._connection.close()


class _UnfitError(Exception):
    """What is wrong, in words of ours."""


def _explain(exc: Exception) -> str:
    """Why a request failed, in words that hold nothing of the request or the answer."""
    if isinstance(exc, _UnfitError):
        return str(exc)
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"its certificate is not trusted ({exc.verify_message}); check the address and the CA file"
    if isinstance(exc, ssl.SSLError):
        return f"TLS failed ({exc.reason}); it must speak TLS 1.2 or later"
    if isinstance(exc, socket.gaierror):
        return "its name is not known; check the address"
    if isinstance(exc, http.client.HTTPException | ConnectionResetError):
        return f"it broke off or does not speak HTTP ({type(exc).__name__})"
    if isinstance(exc, OSError) and exc.errno:
        return f"{os.strerror(exc.errno)}; check the address"
    return type(exc).__name__
