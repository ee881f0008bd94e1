"""`gcpkms:` against the stand-in: what counts as a denial, what as no answer, checksums, deadlines, logs."""

import json
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import google_crc32c
import pytest

from modelfs.errors import ConfigError, KeyAccessError, KeyDeniedError, KeyServiceError
from modelfs.format.keysfile import KeysFile, Recipient, keys_file, recipient
from modelfs.keys import open_kek
from modelfs.keys.gcp import GcpProvider, in_time, open_provider
from modelfs.keys.interface import Grant
from tests.gcp.fake import DECRYPT, ENCRYPT, FakeKms, Misbehave, answer, page
from tests.helpers import REPOSITORY
from tests.vault.server import CONTEXT, DEK, manifest

Login = Callable[[Path], None]


class Host:
    """A key, an account that may use it, and one wrapped DEK."""

    def __init__(self, gcp: FakeKms, login: Login, name: str) -> None:
        self.kms, self.name = gcp, name
        self.key = gcp.key(name)
        self.credentials = gcp.account(name, self.key, ENCRYPT, DECRYPT)
        login(self.credentials)
        self.entry: Recipient = self.provider().wrap_key(DEK, CONTEXT)

    @property
    def uri(self) -> str:
        return f"gcpkms:{self.key}?endpoint={self.kms.endpoint}"

    def provider(self) -> GcpProvider:
        found = open_kek(self.uri)
        assert isinstance(found, GcpProvider)
        return found

    def prove(self, opened_before: bool = True, timeout_s: float = 5, keys: KeysFile | None = None) -> Grant:
        return self.provider().prove(keys or keys_file([self.entry]), manifest(), None, opened_before, timeout_s)


@pytest.fixture
def host(gcp: FakeKms, gcp_login: Login, request: pytest.FixtureRequest) -> Iterator[Host]:
    name = "h" + "".join(filter(str.isalnum, request.node.name))[-50:]
    yield Host(gcp, gcp_login, name)
    gcp.misbehave, gcp.alter = None, lambda found: found


def test_a_wrapped_key_is_bound_to_model_and_key_id_by_the_service(host: Host) -> None:
    assert host.entry.key_ref == host.key
    assert host.provider().unwrap_key(host.entry, CONTEXT) == DEK
    with pytest.raises(KeyAccessError, match="INVALID_ARGUMENT"):
        host.provider().unwrap_key(host.entry, CONTEXT.replace(b"demo", b"dem0"))


def test_a_new_primary_version_opens_what_the_old_one_wrapped_and_rewrapping_takes_the_new_one(host: Host) -> None:
    host.kms.keys[host.key].versions.append(os.urandom(32))
    assert host.prove().dek == DEK
    renewed = host.provider().rewrap_key(host.entry, CONTEXT, lambda dek: dek == DEK)
    assert renewed is not None
    host.kms.keys[host.key].states[1] = "DISABLED"
    assert host.provider().unwrap_key(renewed, CONTEXT) == DEK
    with pytest.raises(KeyDeniedError):
        host.prove()


# What counts.


@pytest.mark.parametrize("state", ["DISABLED", "DESTROY_SCHEDULED", "DESTROYED"])
def test_a_version_that_is_not_enabled_denies_what_it_opened_before(host: Host, state: str) -> None:
    host.kms.keys[host.key].states[1] = state
    with pytest.raises(KeyDeniedError, match="FAILED_PRECONDITION"):
        host.prove()
    with pytest.raises(KeyAccessError) as found:
        host.prove(opened_before=False)
    assert type(found.value) is KeyAccessError


def test_permission_taken_away_is_a_denial_that_names_it(host: Host) -> None:
    host.kms.revoke(host.name)
    for opened_before in (True, False):
        with pytest.raises(KeyDeniedError, match=r"useToDecrypt on gcpkms:projects/.*PERMISSION_DENIED \(IAM_PERMISSION_DENIED\)"):
            host.prove(opened_before)
    with pytest.raises(KeyDeniedError, match="useToEncrypt"):
        host.provider().wrap_key(DEK, CONTEXT)


def test_a_key_that_is_gone_is_a_denial_of_what_it_opened_before(host: Host) -> None:
    del host.kms.keys[host.key]
    with pytest.raises(KeyDeniedError, match="NOT_FOUND"):
        host.prove()
    with pytest.raises(KeyAccessError, match="check that the key exists"):
        host.provider().wrap_key(DEK, CONTEXT)


MISMATCH = b'{"error": {"code": 400, "message": "", "status": "FAILED_PRECONDITION"}}'
HTML = b"<html><body>403 Forbidden: blocked by policy</body></html>"
NO_ANSWERS: dict[str, Misbehave] = {
    "quota": answer("RESOURCE_EXHAUSTED"),
    "internal": answer("INTERNAL"),
    "unavailable": answer("UNAVAILABLE"),
    "login refused": answer("UNAUTHENTICATED"),
    "a proxy's page": page(403, HTML),
    "a proxy's page that says JSON": page(403, HTML, "application/json"),
    "another JSON": page(403, b'{"message": "forbidden"}', "application/json"),
    "an error whose code is not its status": page(403, MISMATCH, "application/json"),
    "a list": page(404, b"[]", "application/json"),
    "no JSON": page(200, b"ok", "application/json"),
    "an empty answer": page(200, b"{}", "application/json"),
    "an unknown field": page(200, b'{"plaintext": "QUFB", "hello": 1}', "application/json"),
    "no bytes": page(200, b'{"plaintext": "!"}', "application/json"),
    "a redirect": lambda handler: redirect(handler, "https://localhost:1/elsewhere"),
    "hung up": lambda handler: handler.connection.close(),
}  # fmt: skip


def redirect(handler: Any, where: str) -> None:
    handler.send_response(307)
    handler.send_header("Location", where)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


@pytest.mark.parametrize("name", NO_ANSWERS)
def test_no_answer(host: Host, name: str) -> None:
    host.kms.misbehave = NO_ANSWERS[name]
    with pytest.raises(KeyServiceError):
        host.prove()
    host.kms.misbehave = None
    assert host.prove().dek == DEK


def test_a_redirect_is_not_followed(host: Host) -> None:
    asked = len(host.kms.asked)
    host.kms.misbehave = lambda handler: (
        redirect(handler, f"https://{host.kms.endpoint}{handler.path}") if "again" not in handler.path else None
    )
    with pytest.raises(KeyServiceError):
        host.provider().wrap_key(DEK, CONTEXT)
    assert len(host.kms.asked) == asked


def test_nobody_there_and_a_name_that_is_none(host: Host) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for endpoint in (f"localhost:{port}", "no-such-host.invalid"):
        provider = open_provider(f"{host.key}?endpoint={endpoint}")
        with pytest.raises(KeyServiceError, match="cannot be reached"):
            provider.prove(keys_file([host.entry]), manifest(), None, True, 5)


def test_a_certificate_of_another_authority(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    other = FakeKms(tmp_path / "other")
    monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(other.ca.path))
    asked = len(host.kms.asked)
    with pytest.raises(KeyServiceError, match="SSLError"):
        host.prove()
    assert len(host.kms.asked) == asked


def trickle(handler: Any) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "100000")
    handler.end_headers()
    for _ in range(200):
        handler.wfile.write(b" ")
        time.sleep(0.05)


@pytest.mark.parametrize("misbehave", [trickle, lambda _: time.sleep(10)], ids=["a byte a moment", "silent"])
def test_one_deadline_for_everything(host: Host, misbehave: Misbehave) -> None:
    host.kms.misbehave = misbehave
    started = time.monotonic()
    with pytest.raises(KeyServiceError):
        host.prove(timeout_s=0.5)
    assert time.monotonic() - started < 2


def test_in_time_hands_on_what_was_raised_and_found() -> None:
    assert in_time(5, lambda: 7) == 7
    with pytest.raises(KeyDeniedError, match="no"):
        in_time(5, lambda: (_ for _ in ()).throw(KeyDeniedError("no")))
    with pytest.raises(KeyServiceError, match="within"):
        in_time(0.05, threading.Event().wait)


def test_no_credentials(host: Host, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path / "none.json"))
    with pytest.raises(KeyServiceError, match="no login at Google"):
        host.prove()


def test_an_account_that_the_service_does_not_know_is_no_denial(host: Host, gcp_login: Login, tmp_path: Path) -> None:
    gcp_login(FakeKms(tmp_path / "elsewhere").account("stranger", host.key, DECRYPT))
    with pytest.raises(KeyServiceError, match="401"):
        host.prove()


# Checksums and wrong bytes.


def test_a_plaintext_altered_on_its_way_is_no_answer(host: Host) -> None:
    def flip(found: Any) -> Any:
        if hasattr(found, "plaintext"):
            found.plaintext = bytes([found.plaintext[0] ^ 1]) + found.plaintext[1:]
        return found

    host.kms.alter = flip
    with pytest.raises(KeyServiceError, match="CRC32C"):
        host.prove()


def test_other_key_bytes_with_a_right_checksum_raise_an_alarm(host: Host) -> None:
    def replace(found: Any) -> Any:
        if hasattr(found, "plaintext"):
            found.plaintext = b"E" * 32
            found.plaintext_crc32c = google_crc32c.value(b"E" * 32)
        return found

    host.kms.alter = replace
    with pytest.raises(KeyServiceError, match="ALARM"):
        host.prove()


@pytest.mark.parametrize("field", ["ciphertext", "verified_plaintext_crc32c", "verified_additional_authenticated_data_crc32c"])
def test_a_wrapping_that_did_not_arrive_whole_is_not_kept(host: Host, field: str) -> None:
    def spoil(found: Any) -> Any:
        setattr(found, field, b"other" if field == "ciphertext" else False)
        return found

    host.kms.alter = spoil
    with pytest.raises(KeyServiceError, match="CRC32C"):
        host.provider().wrap_key(DEK, CONTEXT)


def test_a_request_altered_on_its_way_is_asked_again_before_it_counts(host: Host) -> None:
    """The service says INVALID_ARGUMENT to a checksum that disagrees: the words that it has for a wrapped key that does not open."""
    refusals = iter([answer("INVALID_ARGUMENT", "The checksum in field ciphertext_crc32c did not match")])

    def once(handler: Any) -> None:
        host.kms.misbehave = None
        next(refusals)(handler)

    host.kms.misbehave = once
    assert host.prove().dek == DEK


def test_entries_that_do_not_open_are_passed_over(host: Host) -> None:
    planted = [recipient("gcpkms", host.key, "", bytes([number]) * 60) for number in range(3)]
    assert host.prove(keys=keys_file([*planted, host.entry])).dek == DEK


# What is said.


def test_nothing_secret_is_logged_even_if_the_environment_asks_for_it(host: Host, tmp_path: Path) -> None:
    (tmp_path / "keys.json").write_bytes(keys_file([host.entry]).model_dump_json().encode())
    program = (
        "import logging, sys\n"
        "logging.basicConfig(level=logging.DEBUG)\n"
        "from modelfs.keys import open_kek\n"
        "from modelfs.format.keysfile import KeysFile\n"
        "from tests.vault.server import CONTEXT, DEK\n"
        f"entry = KeysFile.model_validate_json(open({str(tmp_path / 'keys.json')!r}).read()).recipients[0]\n"
        f"provider = open_kek({host.uri!r})\n"
        "assert provider.unwrap_key(entry, CONTEXT) == DEK\n"
        "provider.wrap_key(DEK, CONTEXT)\n"
        "logging.getLogger('proof').debug('the log works')\n"
    )
    env = {**os.environ, "GOOGLE_SDK_PYTHON_LOGGING_SCOPE": "google", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert "the log works" in done.stderr
    private = json.loads(host.credentials.read_text())["private_key"]
    import base64

    for secret in (DEK, host.entry.wrapped_key):
        for text in (base64.b64encode(secret).decode(), base64.urlsafe_b64encode(secret).decode(), secret.hex(), repr(secret)[2:-1]):
            assert text not in done.stdout + done.stderr
    assert private[40:80] not in done.stderr
    assert "Bearer" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "reference",
    [
        "models",
        "projects/p/locations/l/keyRings/r/cryptoKeys/k/cryptoKeyVersions/1",
        "projects/p/locations/l/keyRings/r/cryptoKeys/k?endpoint=",
        "projects/p/locations/l/keyRings/r/cryptoKeys/k?endpoint=http://kms",
        "projects/p/locations/l/keyRings/r/cryptoKeys/k?endpoint=kms/x",
        "projects/p/locations/l/keyRings/r/cryptoKeys/k?host=kms",
        "projects/p/locations/l/keyRings/r/cryptoKeys/../k",
    ],
)
def test_a_malformed_reference_is_one_sentence(reference: str) -> None:
    with pytest.raises(ConfigError, match=r"gcpkms:.*(use gcpkms:projects|only \?endpoint=)"):
        open_kek(f"gcpkms:{reference}")


def test_without_the_package_it_says_which_extra_to_install() -> None:
    program = (
        "import sys\n"
        "sys.modules['google_crc32c'] = None\n"
        "import modelfs.cli.app\n"
        "from modelfs.errors import ConfigError\n"
        "from modelfs.keys import open_kek\n"
        "assert not [name for name in sys.modules if name.split('.')[0] in ('google', 'grpc')]\n"
        "try:\n"
        "    open_kek('gcpkms:projects/p/locations/l/keyRings/r/cryptoKeys/k')\n"
        "except ConfigError as exc:\n"
        "    print(exc)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "this kind of key needs the Python package google_crc32c: install modelfs[gcp]\n"


def test_the_library_is_silent_from_the_start() -> None:
    assert logging.getLogger("google").level == logging.CRITICAL
