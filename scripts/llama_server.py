"""The unmodified llama.cpp HTTP server on a GGUF file: `llama_server.py FILE [MODE]`; MODE is how it loads: AUTO, MMAP, DIRECT_IO or NONE.

Listens on a free loopback port, prints its address as the only line of stdout once it is healthy, and ends when stdin is closed.
"""

import socket
import sys
import time
import urllib.error
import urllib.request

import xllamacpp


def main() -> None:
    """Serve until stdin ends."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    params = xllamacpp.CommonParams()
    params.model.path = sys.argv[1]
    params.load_mode = xllamacpp.llama_load_mode[f"LLAMA_LOAD_MODE_{sys.argv[2] if sys.argv[2:] else 'AUTO'}"]
    params.hostnames, params.port = ["127.0.0.1"], port
    params.n_ctx, params.n_parallel, params.cpuparams.n_threads = 512, 1, 1
    server = xllamacpp.Server(params)
    wait_until_healthy(server.listening_address)
    print(server.listening_address, flush=True)
    sys.stdin.read()


def wait_until_healthy(address: str) -> None:
    """Return when the server has loaded its model; one that is ended earlier may never end."""
    while True:
        try:
            with urllib.request.urlopen(f"{address}/health", timeout=10):
                return
        except urllib.error.URLError:
            time.sleep(0.05)


main()
