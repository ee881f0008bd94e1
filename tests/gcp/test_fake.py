"""Is the stand-in what other clients of Google Cloud KMS expect? `gcloud kms`, where it is installed, and the library's gRPC transport."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import google.auth
import google.auth.transport.grpc
import google_crc32c
import grpc
import pytest
from google.api_core.exceptions import InvalidArgument, PermissionDenied
from google.cloud import kms_v1

from modelfs.format.keysfile import recipient
from modelfs.keys.gcp import open_provider
from tests.gcp.fake import DECRYPT, ENCRYPT, GET, FakeKms
from tests.vault.server import CONTEXT, DEK

Login = Callable[[Path], None]


def over_grpc(gcp: FakeKms) -> kms_v1.KeyManagementServiceClient:
    """The library's usual transport, logged in as the environment says."""
    credentials, _ = google.auth.default()
    credentials = credentials.with_always_use_jwt_access(True)
    credentials._create_self_signed_jwt("https://cloudkms.googleapis.com/")
    call = grpc.composite_channel_credentials(
        grpc.ssl_channel_credentials(gcp.ca.path.read_bytes()),
        grpc.metadata_call_credentials(google.auth.transport.grpc.AuthMetadataPlugin(credentials, None)),
    )
    channel = grpc.secure_channel(f"localhost:{gcp.grpc}", call)
    transport = kms_v1.services.key_management_service.transports.KeyManagementServiceGrpcTransport(channel=channel)
    return kms_v1.KeyManagementServiceClient(transport=transport)


def test_the_library_s_grpc_transport_opens_what_the_provider_wrapped(gcp: FakeKms, gcp_login: Login) -> None:
    key = gcp.key("grpc")
    gcp_login(gcp.account("grpc", key, ENCRYPT, DECRYPT, GET))
    entry = open_provider(f"{key}?endpoint={gcp.endpoint}").wrap_key(DEK, CONTEXT)
    client = over_grpc(gcp)
    asked = {"name": key, "ciphertext": entry.wrapped_key, "additional_authenticated_data": CONTEXT}
    answer = client.decrypt(request=asked, retry=None, timeout=5)
    assert answer.plaintext == DEK
    assert answer.plaintext_crc32c == google_crc32c.value(DEK)
    assert client.get_crypto_key(name=key, retry=None, timeout=5).primary.name == f"{key}/cryptoKeyVersions/1"
    with pytest.raises(InvalidArgument):
        client.decrypt(request={**asked, "additional_authenticated_data": b"other"}, retry=None, timeout=5)
    with pytest.raises(InvalidArgument, match="checksum"):
        client.decrypt(request={**asked, "ciphertext_crc32c": 1}, retry=None, timeout=5)
    gcp.revoke("grpc")
    with pytest.raises(PermissionDenied):
        client.decrypt(request=asked, retry=None, timeout=5)


if shutil.which("gcloud"):  # comes from Google, not with this project: where it is, it must agree

    def test_gcloud_kms_opens_what_the_provider_wrapped_and_the_other_way_round(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        with FakeKms(tmp_path / "kms").running() as over_tls:
            key = over_tls.key("gcloud")
            for name, value in over_tls.environment(over_tls.account("gcloud", key, ENCRYPT, DECRYPT)).items():
                monkeypatch.setenv(name, value)
            provider = open_provider(f"{key}?endpoint={over_tls.endpoint}")
            entry = provider.wrap_key(DEK, CONTEXT)
            over_tls.needs_login = False
            with over_tls.running(use_tls=False):
                (tmp_path / "aad").write_bytes(CONTEXT)
                (tmp_path / "wrapped").write_bytes(entry.wrapped_key)
                (tmp_path / "dek").write_bytes(DEK)
                assert gcloud(over_tls, key, "decrypt", "wrapped", "opened", tmp_path).returncode == 0
                assert (tmp_path / "opened").read_bytes() == DEK
                assert gcloud(over_tls, key, "encrypt", "theirs", "dek", tmp_path).returncode == 0
                (tmp_path / "aad").write_bytes(b"other")
                refused = gcloud(over_tls, key, "decrypt", "wrapped", "none", tmp_path)
                assert refused.returncode != 0
                assert "INVALID_ARGUMENT" in refused.stderr
        over_tls.needs_login = True
        with over_tls.running():
            provider = open_provider(f"{key}?endpoint={over_tls.endpoint}")
            theirs = recipient(entry.scheme, entry.key_ref, "", (tmp_path / "theirs").read_bytes())
            assert provider.unwrap_key(theirs, CONTEXT) == DEK

    def gcloud(kms: FakeKms, key: str, verb: str, ciphertext: str, plaintext: str, place: Path) -> subprocess.CompletedProcess[str]:
        parts = key.split("/")
        command = ["gcloud", "kms", verb, "--key", parts[7], "--keyring", parts[5], "--location", parts[3], "--project", parts[1]]
        command += ["--ciphertext-file", str(place / ciphertext), "--plaintext-file", str(place / plaintext)]
        env = {name: value for name, value in os.environ.items() if not name.startswith(("GOOGLE_", "REQUESTS_", "PYTHON"))}
        env |= {
            "CLOUDSDK_API_ENDPOINT_OVERRIDES_CLOUDKMS": f"http://127.0.0.1:{kms.rest}/",
            "CLOUDSDK_AUTH_DISABLE_CREDENTIALS": "true",
            "CLOUDSDK_CONFIG": str(place / "gcloud"),
            "CLOUDSDK_CORE_DISABLE_PROMPTS": "1",
            "CLOUDSDK_CORE_DISABLE_USAGE_REPORTING": "true",
        }
        command += ["--additional-authenticated-data-file", str(place / "aad")]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
