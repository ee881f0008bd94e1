"""What stands between a mount and its key service: a relay of bytes that a test can lead elsewhere, or close."""

import contextlib
import socket
import threading

HOST = "127.0.0.1"


class Switch:
    """One address for the mount. TLS goes through untouched, so behind it may be the real server or an impostor."""

    def __init__(self, port: int) -> None:
        """Relay to a port of this host."""
        self._target = port
        # Bound and never listening: nobody else gets the port while connections are refused.
        self._holder = self._bind(0)
        self.port: int = self._holder.getsockname()[1]
        self._listener: socket.socket | None = None
        self.lead_to(port)

    @property
    def address(self) -> str:
        return f"https://{HOST}:{self.port}"

    def lead_to(self, port: int) -> None:
        """Relay every new connection to another port of this host."""
        self._target = port
        if self._listener is None:
            self._listener = self._bind(self.port)
            self._listener.listen()
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def refuse(self) -> None:
        """Refuse connections, as a host does on which nothing listens."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
            self._listener.close()
            self._listener = None

    def close(self) -> None:
        self.refuse()
        self._holder.close()

    def _bind(self, port: int) -> socket.socket:
        made = socket.socket()
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        made.bind((HOST, port))
        return made

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = listener.accept()[0]
                threading.Thread(target=self._relay, args=(connection,), daemon=True).start()

    def _relay(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError), socket.create_connection((HOST, self._target)) as server:
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            _pump(client, server)
            back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65536):
            sink.sendall(data)
    for side in (source, sink):
        with contextlib.suppress(OSError):
            side.shutdown(socket.SHUT_RDWR)
