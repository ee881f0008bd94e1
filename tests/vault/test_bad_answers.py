"""Whatever a server, a proxy or somebody on the path may answer: only the service's own refusal is a denial, and nothing hangs."""

import gzip
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelfs.errors import ConfigError, KeyDeniedError, KeyServiceError
from modelfs.format.keysfile import KeysFile, keys_file, recipient
from modelfs.keys.interface import Grant
from modelfs.keys.vault import VaultProvider, connect
from modelfs.keys.vault_session import Session, boottime
from modelfs.keys.vault_settings import TokenFile, VaultSettings
from modelfs.keys.vault_wire import open_endpoint
from tests.leases.impostor import PROXY_PAGE, Misbehave, answer, http, no_answers, server_context
from tests.vault.impostor import TOKEN, Impostor
from tests.vault.server import DEK, WRONG_KEYS, dev_vault, manifest, write_secret

KEYS: KeysFile = keys_file([recipient("vault", "transit/models", "", b"vault:v3:AAAA")])
SECONDS = 0.6


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> "dev_vault.Authority":
    return dev_vault.Authority(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def context(authority: "dev_vault.Authority") -> ssl.SSLContext:
    return server_context(*authority.issue("impostor", is_server=True))


@pytest.fixture
def impostor(context: ssl.SSLContext) -> Iterator[Impostor]:
    made = Impostor(context, DEK)
    yield made
    made.close()


@pytest.fixture
def prove(impostor: Impostor, authority: "dev_vault.Authority", tmp_path: Path) -> Callable[..., Grant]:
    """A proof with a login that is an hour from its end."""
    auth = TokenFile(path=write_secret(tmp_path / "token", TOKEN))
    settings = VaultSettings(auth=auth, address=impostor.address, ca_file=authority.path)

    def do(opened_before: bool = True, session: bool = True) -> Grant:
        now = boottime()
        held = Session(TOKEN, "acc", True, 3600, now, now + 3599, now + 7200).to_bytes() if session else None
        provider = VaultProvider("transit/models", connect(settings))
        return provider.prove(KEYS, manifest(), held, opened_before, SECONDS)

    return do


def error(status: int, *errors: object, **fields: object) -> bytes:
    return answer({"errors": list(errors), **fields}, status)


def test_the_impostor_is_good_enough_when_it_behaves(prove: Callable[..., Grant], impostor: Impostor) -> None:
    for session in (True, False):
        grant = prove(session=session)
        assert (grant.dek, grant.key_version) == (DEK, 3)
    assert {token for _path, token in impostor.seen} == {TOKEN}


ENDPOINTS = ["renew-self", "decrypt"]

UNREACHABLE: dict[str, bytes | Misbehave] = {
    **no_answers(),
    "500": error(500, "internal error"),
    "501 not initialised": error(501),
    "503 sealed": error(503, "Vault is sealed"),
    "412": error(412, "required index state not present"),
    "429": error(429, "rate limit quota exceeded"),
    "472": error(472),
    "473": error(473),
    "401": error(401, "permission denied"),
    "405": error(405, "unsupported operation"),
    "403 HTML called JSON": http(403, PROXY_PAGE),
    "403 JSON called HTML": http(403, b'{"errors": ["permission denied"]}', "text/html"),
    "403 no body": http(403, b""),
    "403 JSON of something else": answer({"error": "access_denied"}, 403),
    "403 errors is a text": answer({"errors": "permission denied"}, 403),
    "403 errors of numbers": error(403, 1, 2),
    "403 no errors": error(403),
    "403 a list": answer(["permission denied"], 403),
    "403 cut off": http(403, b'{"errors": ["permission denied"'),
    "403 gzip": http(403, gzip.compress(b'{"errors": ["permission denied"]}'), Content_Encoding="gzip"),
    "403 nested too deep": http(403, b'{"errors": ' + b"[" * 100000),
    "200 without data": answer({"request_id": "x"}),
    "200 data null": answer({"data": None, "auth": None}),
    "200 other types": answer({"data": {"plaintext": 7}, "auth": {"lease_duration": "long"}}),
    "200 a list": answer([]),
}


@pytest.mark.parametrize("endpoint", ENDPOINTS)
@pytest.mark.parametrize("name", UNREACHABLE)
def test_unreachable(prove: Callable[..., Grant], impostor: Impostor, name: str, endpoint: str) -> None:
    impostor.overrides[endpoint] = UNREACHABLE[name]
    started = time.monotonic()
    with pytest.raises(KeyServiceError) as caught:
        prove()
    assert time.monotonic() - started < SECONDS + 0.3
    for text in (TOKEN, "permission denied", "hotel", "blocked by policy", DEK.hex()):
        assert text not in str(caught.value)
    assert not any(path.endswith("/login") for path, _token in impostor.seen)


DENIED = {
    "renewal: permission denied": ("renew-self", error(403, "permission denied"), "was revoked"),
    "renewal: any text, more fields": ("renew-self", error(403, "x", warnings=None), "was revoked"),
    "decrypt: permission denied": ("decrypt", error(403, "1 error occurred:\n\t* permission denied\n\n"), "transit/decrypt/models"),
    "decrypt: key deleted": ("decrypt", error(400, "encryption key not found"), "the key does not exist"),
    "decrypt: engine gone": ("decrypt", error(404, 'no handler for route "transit/decrypt/models".'), "no such secrets engine"),
    "decrypt: 404 without a text": ("decrypt", error(404), "there is no such thing"),
}


@pytest.mark.parametrize(("endpoint", "reply", "text"), DENIED.values(), ids=DENIED)
def test_denied(prove: Callable[..., Grant], impostor: Impostor, endpoint: str, reply: bytes, text: str) -> None:
    impostor.overrides[endpoint] = reply
    with pytest.raises(KeyDeniedError, match=text):
        prove()


@pytest.mark.parametrize("status", [400, 404])
def test_a_renewal_that_is_refused_otherwise_is_no_denial(prove: Callable[..., Grant], impostor: Impostor, status: int) -> None:
    impostor.overrides["renew-self"] = error(status, "lease is not renewable")
    with pytest.raises(KeyServiceError):
        prove()


@pytest.mark.parametrize("opened_before", [True, False])
@pytest.mark.parametrize("wrong", WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_wrong_key_bytes_raise_an_alarm_and_are_no_denial(
    prove: Callable[..., Grant], impostor: Impostor, wrong: bytes, opened_before: bool
) -> None:
    impostor.dek = wrong
    with pytest.raises(KeyServiceError, match=r"^ALARM: ") as caught:
        prove(opened_before)
    assert not wrong or wrong.hex() not in str(caught.value)


def test_plaintext_that_is_no_base64_is_an_alarm_too(prove: Callable[..., Grant], impostor: Impostor) -> None:
    impostor.overrides["decrypt"] = answer({"data": {"plaintext": "not base64!"}})
    with pytest.raises(KeyServiceError, match="ALARM"):
        prove()


def test_what_the_service_says_is_never_repeated(prove: Callable[..., Grant], impostor: Impostor) -> None:
    for endpoint in ENDPOINTS:
        for status in (400, 403, 404, 500):
            impostor.overrides = {endpoint: error(status, f"echo of {TOKEN}\x1b[31m", "z" * 5000)}
            with pytest.raises((KeyServiceError, KeyDeniedError)) as caught:
                prove()
            assert TOKEN not in str(caught.value)
            assert "\x1b" not in str(caught.value)
            assert len(str(caught.value)) < 600


def test_redirects_are_followed_nowhere(prove: Callable[..., Grant], impostor: Impostor, context: ssl.SSLContext) -> None:
    other = Impostor(context, DEK)
    try:
        impostor.overrides["decrypt"] = http(307, b"", Location=f"{other.address}/v1/transit/decrypt/models")
        with pytest.raises(KeyServiceError, match="points elsewhere"):
            prove()
        impostor.overrides["decrypt"] = http(307, b"", Location=f"{impostor.address}/v1/transit/again")
        with pytest.raises(KeyServiceError, match="points elsewhere"):
            prove()
        assert other.seen == []
        assert not any("again" in path for path, _ in impostor.seen)
    finally:
        other.close()


def test_proxies_and_credentials_of_the_environment_are_not_used(
    prove: Callable[..., Grant], impostor: Impostor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    keylog = tmp_path / "tls-keys"
    for name, value in {
        "VAULT_TOKEN": "s.env",
        "VAULT_NAMESPACE": "env",
        "REQUESTS_CA_BUNDLE": "/dev/null",
        "SSLKEYLOGFILE": str(keylog),
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / ".vault-token").write_text("s.home")
    assert prove(session=False).dek == DEK
    assert {token for _path, token in impostor.seen} == {TOKEN}
    assert not keylog.exists()


# TLS.


def attempt(address: str, ca_file: Path | None, tmp_path: Path) -> str:
    auth = TokenFile(path=write_secret(tmp_path / "token", TOKEN))
    provider = VaultProvider("transit/models", connect(VaultSettings(auth=auth, address=address, ca_file=ca_file)))
    with pytest.raises(KeyServiceError) as caught:
        provider.prove(KEYS, manifest(), None, True, SECONDS)
    return str(caught.value)


def test_a_certificate_of_another_authority(impostor: Impostor, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stranger = dev_vault.Authority(tmp_path / "other", "stranger")
    for ca_file in (stranger.path, None):
        assert "certificate is not trusted" in attempt(impostor.address, ca_file, tmp_path)
    assert impostor.seen == []


@pytest.mark.parametrize("is_server", [True, False], ids=["for another address", "for clients only"])
def test_a_certificate_for_something_else(authority: "dev_vault.Authority", tmp_path: Path, is_server: bool) -> None:
    certificate = authority.issue(f"else-{is_server}", is_server=is_server)
    impostor = Impostor(server_context(*certificate), DEK, host="127.0.0.9")
    try:
        assert "certificate is not trusted" in attempt(impostor.address, authority.path, tmp_path)
        assert impostor.seen == []
    finally:
        impostor.close()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1], ids=["TLS 1.0", "TLS 1.1"])
def test_tls_below_1_2(authority: "dev_vault.Authority", tmp_path: Path, version: ssl.TLSVersion) -> None:
    context = server_context(*authority.issue(f"old-{version.name}", is_server=True))
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = version
    context.maximum_version = version
    impostor = Impostor(context, DEK)
    try:
        # A client that would speak it gets through: so it is we who refuse.
        lax = ssl.create_default_context(cafile=authority.path)
        lax.set_ciphers("ALL:@SECLEVEL=0")
        lax.minimum_version = ssl.TLSVersion.TLSv1
        port = int(impostor.address.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port)) as plain, lax.wrap_socket(plain, server_hostname="127.0.0.1") as connection:
            assert connection.version() in ("TLSv1", "TLSv1.1")
        assert "TLS 1.2 or later" in attempt(impostor.address, authority.path, tmp_path)
        assert impostor.seen == []
    finally:
        impostor.close()


def test_plain_http_behind_an_https_address(tmp_path: Path, authority: "dev_vault.Authority") -> None:
    impostor = Impostor(None, DEK)
    try:
        attempt(impostor.address.replace("http:", "https:"), authority.path, tmp_path)
        assert not any(TOKEN in token for _path, token in impostor.seen)
    finally:
        impostor.close()


# Addresses.

BAD_ADDRESSES = {
    "http elsewhere": ("http://vault.example.com:8200", True, "to another host"),
    "http elsewhere by number": ("http://10.0.0.1:8200", True, "to another host"),
    "http to a name that begins so": ("http://localhost.example.com", True, "to another host"),
    "http to a number that looks so": ("http://127.0.0.1.example.com", True, "to another host"),
    "http to all": ("http://0.0.0.0:8200", True, "to another host"),
    "http without leave": ("http://127.0.0.1:8200", False, "plain http"),
    "no scheme": ("vault.example.com:8200", True, "not the address"),
    "other scheme": ("ftp://vault", True, "not the address"),
    "socket": ("unix:///run/vault.sock", True, "not the address"),
    "no host": ("https://", True, "not the address"),
    "path": ("https://vault/v1", True, "not the address"),
    "query": ("https://vault?x=y", True, "not the address"),
    "bad port": ("https://vault:99999999", True, "no URL"),
    "bad brackets": ("https://[::1", True, "no URL"),
}


@pytest.mark.parametrize(("address", "insecure", "text"), BAD_ADDRESSES.values(), ids=BAD_ADDRESSES)
def test_addresses_that_are_refused(address: str, insecure: bool, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        open_endpoint(address, None, insecure)


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(ConfigError) as caught:
        open_endpoint("https://user:hunter2@vault:8200", None, False)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("https://vault", "https://vault:443"),
        ("https://[::1]:8200/", "https://[::1]:8200"),
        ("http://127.9.9.9:1", "http://127.9.9.9:1"),
        ("http://localhost:8200", "http://localhost:8200"),
        ("http://[::1]:8200", "http://[::1]:8200"),
    ],
)
def test_addresses_that_are_taken(address: str, shown: str) -> None:
    assert str(open_endpoint(address, None, True)) == shown


def test_unusable_ca_files(tmp_path: Path) -> None:
    (tmp_path / "empty").write_text("")
    (tmp_path / "text").write_text("no certificate")
    for name in ("missing", "empty", "text"):
        with pytest.raises(ConfigError, match="CA file"):
            open_endpoint("https://vault", tmp_path / name, False)


def test_deeply_nested_json_is_garbage(prove: Callable[..., Grant], impostor: Impostor) -> None:
    deep = json.dumps({"data": {}})[:-1].encode() + b', "x": ' + b"[" * 60000 + b"]" * 60000 + b"}"
    impostor.overrides["decrypt"] = http(200, deep)
    with pytest.raises(KeyServiceError):
        prove()
