"""Signing keys in Azure Key Vault. There is no emulator to install: an HTTPS server that answers Azure's own client, challenge included,
and signs with a real key. What it cannot show: Azure's own login, and that the real service answers as this one does.
"""

import json
import ssl
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from time import time
from typing import Any

import pytest
from azure.core.credentials import AccessToken
from azure.keyvault.keys import KeyClient
from azure.keyvault.keys.crypto import CryptographyClient
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from modelfs.crypto.signatures import load_trusted_keys, verify_envelope
from modelfs.crypto.signing import public_pem, sign_payload
from modelfs.errors import ConfigError, KeyAccessError, KeyDeniedError, KeyServiceError
from modelfs.keys import azure_sign, open_signer
from tests.leases.impostor import server_context
from tests.vault.server import dev_vault

TYPE = "application/vnd.test"
NAME, KEY_VERSION, TOKEN = "release", "0" * 32, "azure-token-that-nobody-may-see"


def encode(data: bytes) -> str:
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def decode(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Credential:
    """A login that has been done."""

    def get_token(self, *_: str, **__: Any) -> AccessToken:
        return AccessToken(TOKEN, int(time()) + 3600)


class Fake:
    """GET of a key and POST of sign, as the service's REST interface has them. `status` answers anything else."""

    def __init__(self, directory: Path, curve: ec.EllipticCurve) -> None:
        authority = dev_vault.Authority(directory)
        self.key = self.signs_with = ec.generate_private_key(curve)
        self.status = 200
        fake = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *_: object) -> None:
                pass

            def do_GET(self) -> None:
                self.answer(lambda _: {"key": fake.public(), "attributes": {"enabled": True}})

            def do_POST(self) -> None:
                self.answer(lambda asked: {"kid": fake.kid, "value": encode(fake.sign(asked["alg"], decode(asked["value"])))})

            def answer(self, make: Any) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                status, headers = fake.status, {}
                if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                    status = 401
                    headers = {"WWW-Authenticate": 'Bearer authorization="https://login.invalid/t", resource="https://vault.azure.net"'}
                value = make(json.loads(body or b"{}")) if status == 200 else {"error": {"code": "X", "message": "the service's own words"}}
                data = json.dumps(value).encode()
                self.send_response(status)
                for name, text in {**headers, "Content-Type": "application/json", "Content-Length": str(len(data))}.items():
                    self.send_header(name, text)
                self.end_headers()
                self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        context: ssl.SSLContext = server_context(*authority.issue("keyvault", is_server=True))
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.address = f"https://127.0.0.1:{self._server.server_port}"
        self.kid = f"{self.address}/keys/{NAME}/{KEY_VERSION}"
        bounded = {**azure_sign.BOUNDED, "connection_verify": str(authority.path), "verify_challenge_resource": False}
        self.clients = (
            KeyClient(self.address, Credential(), **bounded),
            CryptographyClient(self.kid, Credential(), **bounded),
        )

    def public(self) -> dict[str, Any]:
        numbers, size = self.key.public_key().public_numbers(), self.key.key_size // 8
        point = {"x": encode(numbers.x.to_bytes(size, "big")), "y": encode(numbers.y.to_bytes(size, "big"))}
        return {"kid": self.kid, "kty": "EC", "crv": f"P-{self.key.key_size}", "key_ops": ["sign", "verify"], **point}

    def sign(self, algorithm: str, digest: bytes) -> bytes:
        kind, size = {"ES256": (SHA256(), 32), "ES384": (SHA384(), 48)}[algorithm]
        pair = decode_dss_signature(self.signs_with.sign(digest, ec.ECDSA(Prehashed(kind))))
        return b"".join(number.to_bytes(size, "big") for number in pair)

    def open(self) -> azure_sign.KeyVaultSigner:
        return azure_sign.bind(self.kid.replace("https:", "azurekms:"), NAME, KEY_VERSION, *self.clients)

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture(params=[ec.SECP256R1(), ec.SECP384R1()], ids=["P-256", "P-384"])
def fake(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Fake]:
    made = Fake(tmp_path, request.param)
    yield made
    made.close()


def test_signs_and_verifies(fake: Fake, tmp_path: Path) -> None:
    signer = fake.open()
    envelope = sign_payload(b"payload", TYPE, signer)
    public = tmp_path / "azure.pub"
    public.write_bytes(public_pem(signer))
    assert verify_envelope(envelope, load_trusted_keys([public]), "it") == (b"payload", [signer.public_key.keyid])


def test_another_keys_signature_is_never_published(fake: Fake) -> None:
    signer = fake.open()
    fake.signs_with = ec.generate_private_key(fake.key.curve)
    with pytest.raises(KeyServiceError, match="no signature of it"):
        sign_payload(b"payload", TYPE, signer)


@pytest.mark.parametrize(
    ("status", "error"), [(403, KeyDeniedError), (404, KeyAccessError), (429, KeyServiceError), (503, KeyServiceError)]
)
def test_refusals_in_one_sentence(fake: Fake, status: int, error: type[KeyAccessError]) -> None:
    signer = fake.open()
    fake.status = status
    for call in (lambda: sign_payload(b"payload", TYPE, signer), fake.open):
        with pytest.raises(error) as caught:
            call()
        assert type(caught.value) is error
        assert "own words" not in str(caught.value)
        assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("uri", ["azurekms:", "azurekms://v.vault.azure.net/keys/k", "azurekms://a@b/keys/k/" + "0" * 32])
def test_malformed_names(uri: str) -> None:
    with pytest.raises(ConfigError, match="does not name a version of a key"):
        open_signer(uri)
