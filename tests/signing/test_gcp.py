"""Signing keys in Google Cloud KMS. No emulator exists: a gRPC server over the client library's own messages, which signs with a real key.

What it cannot show: Google's own login, and that the real service answers as this one does.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.cloud import kms
from google.cloud.kms_v1.services.key_management_service.transports import KeyManagementServiceGrpcTransport

from modelfs.crypto.signatures import load_trusted_keys, verify_envelope
from modelfs.crypto.signing import public_pem, sign_payload
from modelfs.errors import ConfigError, KeyAccessError, KeyDeniedError, KeyServiceError
from modelfs.keys import gcp_sign, open_signer

TYPE = "application/vnd.test"
VERSION = "projects/p/locations/europe-west3/keyRings/r/cryptoKeys/{}/cryptoKeyVersions/1"


class Fake:
    """The two calls of the service, on loopback. `errors` has what to answer instead, by the method's name."""

    def __init__(self) -> None:
        self.keys = {VERSION.format(curve.name): ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1())}
        self.signs_with: ec.EllipticCurvePrivateKey | None = None
        self.errors: dict[str, grpc.StatusCode] = {}
        methods: dict[str, tuple[Callable[[Any], Any], Any]] = {
            "GetPublicKey": (self._public_key, kms.GetPublicKeyRequest),
            "AsymmetricSign": (self._sign, kms.AsymmetricSignRequest),
        }
        handlers = {name: self._handler(name, *method) for name, method in methods.items()}
        self._server = grpc.server(ThreadPoolExecutor(2))
        self._server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("google.cloud.kms.v1.KeyManagementService", handlers)])
        port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self._channel = grpc.insecure_channel(f"127.0.0.1:{port}")
        self.client = kms.KeyManagementServiceClient(transport=KeyManagementServiceGrpcTransport(channel=self._channel))

    def _handler(self, name: str, answer: Callable[[Any], Any], kind: Any) -> Any:
        def handle(request: Any, context: grpc.ServicerContext) -> Any:
            if name in self.errors:
                context.abort(self.errors[name], "the service's own words, which nobody passes on")
            if request.name not in self.keys:
                context.abort(grpc.StatusCode.NOT_FOUND, "no such version")
            return answer(request)

        return grpc.unary_unary_rpc_method_handler(
            handle, request_deserializer=kind.deserialize, response_serializer=lambda answer: type(answer).serialize(answer)
        )

    def _public_key(self, request: Any) -> Any:
        key = self.keys[request.name].public_key()
        return kms.PublicKey(name=request.name, pem=key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())

    def _sign(self, request: Any) -> Any:
        key = self.signs_with or self.keys[request.name]
        digest, kind = (request.digest.sha256, SHA256()) if request.digest.sha256 else (request.digest.sha384, SHA384())
        return kms.AsymmetricSignResponse(name=request.name, signature=key.sign(digest, ec.ECDSA(Prehashed(kind))))

    def open(self, name: str) -> gcp_sign.CloudSigner:
        return gcp_sign.bind(name, gcp_sign.Client(self.client))

    def close(self) -> None:
        self._channel.close()
        self._server.stop(None).wait(5)


@pytest.fixture
def fake() -> Iterator[Fake]:
    made = Fake()
    yield made
    made.close()


@pytest.mark.parametrize("curve", ["secp256r1", "secp384r1"])
def test_signs_and_verifies(fake: Fake, tmp_path: Path, curve: str) -> None:
    signer = fake.open(VERSION.format(curve))
    envelope = sign_payload(b"payload", TYPE, signer)
    public = tmp_path / "gcp.pub"
    public.write_bytes(public_pem(signer))
    assert verify_envelope(envelope, load_trusted_keys([public]), "it") == (b"payload", [signer.public_key.keyid])


def test_another_keys_signature_is_never_published(fake: Fake) -> None:
    signer = fake.open(VERSION.format("secp256r1"))
    fake.signs_with = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(KeyServiceError, match="no signature of it"):
        sign_payload(b"payload", TYPE, signer)


ERRORS = {
    grpc.StatusCode.PERMISSION_DENIED: KeyDeniedError,
    grpc.StatusCode.UNAUTHENTICATED: KeyDeniedError,
    grpc.StatusCode.NOT_FOUND: KeyAccessError,
    grpc.StatusCode.FAILED_PRECONDITION: KeyAccessError,
    grpc.StatusCode.INVALID_ARGUMENT: KeyAccessError,
    grpc.StatusCode.RESOURCE_EXHAUSTED: KeyServiceError,
    grpc.StatusCode.UNAVAILABLE: KeyServiceError,
    grpc.StatusCode.INTERNAL: KeyServiceError,
}


@pytest.mark.parametrize(("status", "error"), ERRORS.items(), ids=[status.name for status in ERRORS])
def test_refusals_in_one_sentence(fake: Fake, status: grpc.StatusCode, error: type[KeyAccessError]) -> None:
    name = VERSION.format("secp256r1")
    signer = fake.open(name)
    fake.errors = {"AsymmetricSign": status}
    with pytest.raises(error) as caught:
        sign_payload(b"payload", TYPE, signer)
    assert type(caught.value) is error
    assert name in str(caught.value)
    assert "own words" not in str(caught.value)
    fake.errors = {"GetPublicKey": status}
    with pytest.raises(error):
        fake.open(name)


@pytest.mark.parametrize("uri", ["gcpkms:", "gcpkms:projects/p", "gcpkms:" + VERSION.format("k").rpartition("/cryptoKeyVersions")[0]])
def test_malformed_names(uri: str) -> None:
    with pytest.raises(ConfigError, match="does not name a version of a key"):
        open_signer(uri)
