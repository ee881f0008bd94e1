"""A stand-in for Google Cloud KMS, of which no emulator exists: the client library's own message types, on REST and on gRPC, over TLS.

It checks logins (service accounts' self-signed tokens), permissions, checksums and associated data, and answers as Google documents it
(AIP-193 errors). That its wire form is what other clients expect is shown by a second client, `gcloud kms`, and by the library's gRPC
transport (test_fake.py).
"""

import base64
import contextlib
import json
import os
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import google_crc32c
import grpc
import jwt
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, generate_private_key
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from google.cloud import kms_v1

from tests.vault.server import dev_vault, write_secret

AUDIENCE = "https://cloudkms.googleapis.com/"
RING = "projects/models/locations/europe-west3/keyRings/hosts/cryptoKeys"
ENCRYPT = "cloudkms.cryptoKeyVersions.useToEncrypt"
DECRYPT = "cloudkms.cryptoKeyVersions.useToDecrypt"
GET = "cloudkms.cryptoKeys.get"
SIGN = "cloudkms.cryptoKeyVersions.useToSign"
VIEW = "cloudkms.cryptoKeyVersions.viewPublicKey"

_HTTP = {"INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403, "NOT_FOUND": 404}
_HTTP |= {"RESOURCE_EXHAUSTED": 429, "INTERNAL": 500, "UNAVAILABLE": 503}


class Status(Exception):
    """An error as the service gives it."""

    def __init__(self, status: str, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.status, self.message, self.reason = status, message, reason

    def as_json(self) -> bytes:
        info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": self.reason, "domain": "cloudkms.googleapis.com"}
        details = [info] if self.reason else []
        error = {"code": _HTTP[self.status], "message": self.message, "status": self.status, "details": details}
        return json.dumps({"error": error}).encode()


@dataclass
class Key:
    """A symmetric CryptoKey: its versions, of which the last is the primary one."""

    versions: list[bytes] = field(default_factory=lambda: [os.urandom(32)])
    states: dict[int, str] = field(default_factory=dict)
    """Versions (from 1) that are not ENABLED: DISABLED, DESTROY_SCHEDULED, DESTROYED."""

    def check(self, number: int) -> None:
        state = self.states.get(number, "ENABLED")
        if state != "ENABLED":
            raise Status("FAILED_PRECONDITION", f"CryptoKeyVersion {number} is not enabled, current state is: {state}.")


Misbehave = Callable[[BaseHTTPRequestHandler], None]


class FakeKms:
    """Keys and permissions; `rest` and `grpc` are its ports while `running`."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir(exist_ok=True)
        self.directory = directory
        self.keys: dict[str, Key] = {}
        self.signing_keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        """By the name of a version."""
        self.accounts: dict[str, RSAPrivateKey] = {}
        self.granted: set[tuple[str, str, str]] = set()
        """(email, permission, key)."""
        self.asked: list[tuple[str, str, str]] = []
        """(method, key, email) of every call that came through the login."""
        self.misbehave: Misbehave | None = None
        """Takes a REST request instead of the service."""
        self.alter: Callable[[Any], Any] = lambda answer: answer
        """What becomes of an answer on its way."""
        self.needs_login = True
        self.ca = dev_vault.Authority(directory, "fake KMS CA")
        self.certificate = self.ca.issue("kms", is_server=True)

    # -- what an administrator does

    def key(self, name: str) -> str:
        """Make a key; its resource name."""
        resource = f"{RING}/{name}"
        self.keys[resource] = Key()
        return resource

    def signing_key(self, name: str, curve: ec.EllipticCurve) -> str:
        """Make a key for signing; the resource name of its first version."""
        version = f"{RING}/{name}/cryptoKeyVersions/1"
        self.keys[version] = Key()
        self.signing_keys[version] = ec.generate_private_key(curve)
        return version

    def account(self, name: str, key: str, *permissions: str) -> Path:
        """Make a service account that may do that with a key; its key file."""
        email = f"{name}@models.iam.gserviceaccount.com"
        private = self.accounts[email] = generate_private_key(65537, 2048)
        self.granted.update((email, permission, key) for permission in permissions)
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()
        info = {"type": "service_account", "project_id": "models", "private_key_id": "1", "private_key": pem, "client_email": email}
        info["token_uri"] = "https://localhost:1/token"  # nobody is asked: such tokens are signed by the account itself
        return write_secret(self.directory / f"{name}.json", json.dumps(info))

    def revoke(self, name: str) -> None:
        self.granted = {grant for grant in self.granted if grant[0].partition("@")[0] != name}

    # -- the service

    def encrypt(self, request: Any, email: str) -> Any:
        key = self._permitted("encrypt", request.name, email, ENCRYPT)
        _checked(request, "plaintext")
        _checked(request, "additional_authenticated_data")
        number = len(key.versions)
        key.check(number)
        nonce = os.urandom(12)
        body = AESGCM(key.versions[-1]).encrypt(nonce, request.plaintext, request.additional_authenticated_data)
        wrapped = number.to_bytes(2, "big") + nonce + body
        return kms_v1.EncryptResponse(
            name=f"{request.name}/cryptoKeyVersions/{number}",
            ciphertext=wrapped,
            ciphertext_crc32c=google_crc32c.value(wrapped),
            verified_plaintext_crc32c=True,
            verified_additional_authenticated_data_crc32c=True,
            protection_level=kms_v1.ProtectionLevel.SOFTWARE,
        )

    def decrypt(self, request: Any, email: str) -> Any:
        key = self._permitted("decrypt", request.name, email, DECRYPT)
        _checked(request, "ciphertext")
        _checked(request, "additional_authenticated_data")
        wrapped = request.ciphertext
        number = int.from_bytes(wrapped[:2], "big")
        wrong = Status("INVALID_ARGUMENT", "Decryption failed: verify that 'name' refers to the correct CryptoKey.")
        if not 1 <= number <= len(key.versions) or len(wrapped) < 30:
            raise wrong
        key.check(number)
        try:
            plain = AESGCM(key.versions[number - 1]).decrypt(wrapped[2:14], wrapped[14:], request.additional_authenticated_data)
        except InvalidTag:
            raise wrong from None
        return kms_v1.DecryptResponse(
            plaintext=plain,
            plaintext_crc32c=google_crc32c.value(plain),
            used_primary=number == len(key.versions),
            protection_level=kms_v1.ProtectionLevel.SOFTWARE,
        )

    def get_crypto_key(self, request: Any, email: str) -> Any:
        key = self._permitted("get_crypto_key", request.name, email, GET)
        state = kms_v1.CryptoKeyVersion.CryptoKeyVersionState[key.states.get(len(key.versions), "ENABLED")]
        primary = kms_v1.CryptoKeyVersion(name=f"{request.name}/cryptoKeyVersions/{len(key.versions)}", state=state)
        return kms_v1.CryptoKey(name=request.name, purpose=kms_v1.CryptoKey.CryptoKeyPurpose.ENCRYPT_DECRYPT, primary=primary)

    def get_public_key(self, request: Any, email: str) -> Any:
        self._permitted("get_public_key", request.name, email, VIEW).check(1)
        public = self.signing_keys[request.name].public_key()
        return kms_v1.PublicKey(name=request.name, pem=public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())

    def asymmetric_sign(self, request: Any, email: str) -> Any:
        self._permitted("asymmetric_sign", request.name, email, SIGN).check(1)
        key = self.signing_keys[request.name]
        kind, digest = (SHA256(), request.digest.sha256) if key.key_size == 256 else (SHA384(), request.digest.sha384)
        if len(digest) != kind.digest_size:
            raise Status("INVALID_ARGUMENT", "The digest does not fit the key's algorithm.")
        return kms_v1.AsymmetricSignResponse(name=request.name, signature=key.sign(digest, ec.ECDSA(Prehashed(kind))))

    def _permitted(self, method: str, name: str, email: str, permission: str) -> Key:
        self.asked.append((method, name, email))
        if self.needs_login and (email, permission, name) not in self.granted:
            text = f"Permission '{permission}' denied on resource '{name}' (or it may not exist)."
            raise Status("PERMISSION_DENIED", text, "IAM_PERMISSION_DENIED")
        if name not in self.keys:
            raise Status("NOT_FOUND", f"CryptoKey {name} not found.")
        return self.keys[name]

    def login(self, authorization: str | None) -> str:
        """The account of a token that it has signed for this service."""
        if not self.needs_login:
            return ""
        wrong = Status("UNAUTHENTICATED", "Request had invalid authentication credentials.", "ACCESS_TOKEN_TYPE_UNSUPPORTED")
        kind, _, token = (authorization or "").partition(" ")
        try:
            email = jwt.decode(token, options={"verify_signature": False}).get("iss", "")
            public = self.accounts[email].public_key()
            jwt.decode(token, public, algorithms=["RS256"], audience=AUDIENCE, leeway=10)
        except (jwt.PyJWTError, KeyError):
            raise wrong from None
        if kind.lower() != "bearer":
            raise wrong
        return str(email)

    # -- the wire

    @contextlib.contextmanager
    def running(self, *, use_tls: bool = True) -> Iterator["FakeKms"]:
        """Serve REST on `self.rest` and gRPC over TLS on `self.grpc`."""
        server = _Server(("127.0.0.1", 0), _handler(self))
        if use_tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.certificate)
            server.context = context
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.rest = server.server_address[1]
        other = grpc.server(ThreadPoolExecutor(4), handlers=[_grpc_handlers(self)])
        certificate, key = (path.read_bytes() for path in self.certificate)
        self.grpc = other.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(key, certificate)]))
        other.start()
        try:
            yield self
        finally:
            other.stop(None).wait()
            server.shutdown()
            server.server_close()

    @property
    def endpoint(self) -> str:
        return f"localhost:{self.rest}"

    def environment(self, credentials: Path) -> dict[str, str]:
        """What leads the client library here."""
        return {
            "GOOGLE_APPLICATION_CREDENTIALS": str(credentials),
            "REQUESTS_CA_BUNDLE": str(self.ca.path),
            "GOOGLE_CLOUD_PROJECT": "models",
        }


def _checked(request: Any, name: str) -> None:
    crc = getattr(request, f"{name}_crc32c")
    if crc is not None and crc != google_crc32c.value(getattr(request, name)):
        raise Status("INVALID_ARGUMENT", f"The checksum in field {name}_crc32c did not match the data in field {name}.")


_TYPES = {
    "encrypt": (kms_v1.EncryptRequest, kms_v1.EncryptResponse),
    "decrypt": (kms_v1.DecryptRequest, kms_v1.DecryptResponse),
    "get_crypto_key": (kms_v1.GetCryptoKeyRequest, kms_v1.CryptoKey),
    "get_public_key": (kms_v1.GetPublicKeyRequest, kms_v1.PublicKey),
    "asymmetric_sign": (kms_v1.AsymmetricSignRequest, kms_v1.AsymmetricSignResponse),
}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    context: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        with contextlib.suppress(OSError):
            if self.context is not None:
                request = self.context.wrap_socket(request, server_side=True)
            super().finish_request(request, client_address)
            with contextlib.suppress(OSError):
                request.shutdown(socket.SHUT_RDWR)
            request.close()


def _handler(kms: FakeKms) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            """Silent."""

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if kms.misbehave is not None:
                self.close_connection = True
                kms.misbehave(self)
                return
            try:
                path = self.path.partition("?")[0].removeprefix("/v1/")
                name, _, method = path.rpartition(":") if ":" in path else (path, "", "get_crypto_key")
                if path.endswith("/publicKey"):
                    name, method = path.removesuffix("/publicKey"), "get_public_key"
                method = {"asymmetricSign": "asymmetric_sign"}.get(method, method)
                asks, _ = _TYPES[method]
                request = asks.from_json(body) if body else asks()
                request.name = name
                answer = kms.alter(getattr(kms, method)(request, kms.login(self.headers.get("Authorization"))))
                self.answer(200, type(answer).to_json(answer).encode())
            except Status as status:
                self.answer(_HTTP[status.status], status.as_json())

        do_GET = do_POST

        def answer(self, code: int, body: bytes, content_type: str = "application/json; charset=UTF-8") -> None:
            self.send_response(code)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler


def _grpc_handlers(kms: FakeKms) -> Any:
    def handler(name: str) -> Any:
        asks, answers = _TYPES[name]

        def serve(request: Any, context: Any) -> Any:
            try:
                authorization = dict(context.invocation_metadata()).get("authorization")
                return kms.alter(getattr(kms, name)(request, kms.login(authorization)))
            except Status as status:
                context.abort(grpc.StatusCode[status.status], status.message)

        return grpc.unary_unary_rpc_method_handler(serve, asks.deserialize, answers.serialize)

    names = {"encrypt": "Encrypt", "decrypt": "Decrypt", "get_crypto_key": "GetCryptoKey"}
    names |= {"get_public_key": "GetPublicKey", "asymmetric_sign": "AsymmetricSign"}
    methods = {spelled: handler(name) for name, spelled in names.items()}
    return grpc.method_handlers_generic_handler("google.cloud.kms.v1.KeyManagementService", methods)


def answer(status: str, message: str = "no", reason: str = "") -> Misbehave:
    """A well-formed error of the service."""
    found = Status(status, message, reason)
    return lambda handler: handler.answer(_HTTP[status], found.as_json())


def page(code: int, body: bytes, content_type: str = "text/html") -> Misbehave:
    """Something that no service of Google's has said."""
    return lambda handler: handler.answer(code, body, content_type)


def as_base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
