"""Who else vouches for a host: an identity provider that signs JWTs, and the API server of a Kubernetes cluster."""

import contextlib
import json
import ssl
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt as pyjwt
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from tests.vault.server import Server


def public_pem(key: EllipticCurvePrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


def signed_token(key: EllipticCurvePrivateKey, **claims: Any) -> str:
    private = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    fields = {"iss": "test", "aud": "modelfs", "sub": "host-a", "exp": int(time.time()) + 600, "iat": int(time.time()), **claims}
    return pyjwt.encode(fields, private, algorithm="ES256")


class ClusterApi(BaseHTTPRequestHandler):
    """The one call of a Kubernetes API server that the service makes: is this token good, and whose is it?"""

    good = ""

    def do_POST(self) -> None:
        review = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        user = {"username": "system:serviceaccount:models:modelfs", "uid": "1-2-3", "groups": ["system:serviceaccounts"]}
        is_good = self.path.endswith("/tokenreviews") and review["spec"]["token"] == self.good
        good = {"authenticated": True, "user": user, "audiences": ["cluster"]}
        status: dict[str, Any] = good if is_good else {"authenticated": False, "error": "no"}
        answer = {**review, "apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "status": status}
        body = json.dumps(answer).encode()
        self.send_response(201)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@contextlib.contextmanager
def cluster_api(server: Server) -> Iterator[str]:
    """Its address; the certificate is of the server's own authority."""
    certificate, key = server.vault.ca.issue("cluster", is_server=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    api = ThreadingHTTPServer(("127.0.0.1", 0), ClusterApi)
    api.socket = context.wrap_socket(api.socket, server_side=True)
    threading.Thread(target=api.serve_forever, daemon=True).start()
    try:
        yield f"https://127.0.0.1:{api.server_address[1]}"
    finally:
        api.shutdown()
        api.server_close()
