"""Whatever a server, a proxy or somebody on the path may answer: only the service's own refusal is a denial, and nothing hangs."""

import gzip
import json
import os
import ssl
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfs.errors import KeyAccessError, KeyDeniedError, KeyServiceError
from modelfs.format.keysfile import KeysFile, keys_file, recipient
from modelfs.keys.aws import AwsProvider
from modelfs.keys.aws_answers import ANSWERS, Kind
from modelfs.keys.interface import Grant
from tests.aws.emulators import ACCESS_KEY, SECRET_KEY, credentials_file, environment, use
from tests.aws.impostor import JSON, KEY_ARN, Impostor, error, reply
from tests.helpers import REPOSITORY
from tests.leases.impostor import PROXY_PAGE, SILENT, Misbehave, hang, http, no_answers, send, server_context
from tests.vault.server import CONTEXT, DEK, KEY_ID, MODEL, WRONG_KEYS, dev_vault, manifest

KEYS: KeysFile = keys_file([recipient("awskms", KEY_ARN, "", b"wrapped")])
SECONDS = 1.0
"""For what takes all of it."""
ENOUGH_S = 20.0
DENIAL = {"__type": "AccessDeniedException", "message": "permission denied"}
REQUEST_ID = {"x_amzn_RequestId": "5d3ab6ea"}


@pytest.fixture(scope="module")
def context(authority: "dev_vault.Authority") -> ssl.SSLContext:
    return server_context(*authority.issue("impostor", is_server=True))


@pytest.fixture
def impostor(
    context: ssl.SSLContext, authority: "dev_vault.Authority", monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Impostor]:
    made = Impostor(context, DEK)
    use(monkeypatch, environment(made.address, credentials_file(tmp_path / "credentials"), authority.path))
    yield made
    made.close()


def prove(opened_before: bool = True, keys: KeysFile = KEYS, reference: str = KEY_ARN, seconds: float = ENOUGH_S) -> Grant:
    return AwsProvider(reference).prove(keys, manifest(), None, opened_before, seconds)


def test_the_impostor_is_good_enough_when_it_behaves(impostor: Impostor) -> None:
    grant = prove()
    assert (grant.dek, grant.session, grant.ttl_s) == (DEK, None, None)
    assert AwsProvider(KEY_ARN).wrap_key(DEK, CONTEXT).wrapped_key == b"wrapped"
    assert AwsProvider(KEY_ARN).rewrap_key(KEYS.recipients[0], CONTEXT, lambda _: True) == recipient("awskms", KEY_ARN, "", b"again")


def test_requests_name_our_key_and_the_context(impostor: Impostor) -> None:
    """Never the key that an entry names: keys.json is not signed."""
    pairs = {"modelfs:format": "modelfs/1", "modelfs:model": MODEL, "modelfs:key-id": KEY_ID}
    foreign = recipient("awskms", KEY_ARN, "kept", b"wrapped")
    alias = "arn:aws:kms:eu-central-1:111122223333:alias/modelfs"
    provider = AwsProvider(alias)
    provider.wrap_key(DEK, CONTEXT)
    prove(reference=alias)
    again = provider.rewrap_key(foreign, CONTEXT, lambda _: True)
    assert again is not None
    assert again.label == "kept"
    assert impostor.sent("Encrypt") == [{"KeyId": alias, "Plaintext": b64encode(DEK).decode(), "EncryptionContext": pairs}]
    wrapped = b64encode(b"wrapped").decode()
    assert impostor.sent("Decrypt") == [{"KeyId": alias, "CiphertextBlob": wrapped, "EncryptionContext": pairs}]
    assert impostor.sent("ReEncrypt") == [
        {
            "CiphertextBlob": wrapped,
            "SourceKeyId": alias,
            "DestinationKeyId": alias,
            "SourceEncryptionContext": pairs,
            "DestinationEncryptionContext": pairs,
        }
    ]
    assert [impostor.what_of(request) for request in impostor.requests if b64encode(DEK) in request.body] == ["Encrypt"]


OUTAGES = {code: error(code) for code, (kind, _reason) in ANSWERS.items() if kind in (Kind.OUTAGE, Kind.ALLOWED)}
UNREACHABLE: dict[str, bytes | Misbehave] = {
    **no_answers(JSON),
    **OUTAGES,
    "an unknown error": error("SomethingNewException"),
    "access denied, with status 500": error("AccessDeniedException", status=500),
    "disabled, with status 503": error("DisabledException", status=503),
    "invalid state: key store": error("KMSInvalidStateException", "The external key store proxy did not answer."),
    "invalid state: unavailable": error("KMSInvalidStateException", f"{KEY_ARN} is unavailable."),
    "500": reply({"__type": "KMSInternalException"}, 500),
    "403 HTML called JSON": http(403, PROXY_PAGE, JSON, **REQUEST_ID),
    "403 JSON called HTML": http(403, json.dumps(DENIAL).encode(), "text/html", **REQUEST_ID),
    "400 without a request id": http(400, json.dumps(DENIAL).encode(), JSON),
    "the code in a header alone": http(403, b"{}", JSON, x_amzn_ErrorType="AccessDeniedException", **REQUEST_ID),
    "XML of another protocol": http(
        403, b"<ErrorResponse><Error><Code>AccessDenied</Code></Error></ErrorResponse>", "text/xml", **REQUEST_ID
    ),
    "403 no body": http(403, b"", JSON, **REQUEST_ID),
    "400 JSON of something else": reply({"error": "access_denied"}, 400),
    "400 a list": reply(["AccessDeniedException"], 400),
    "400 the code is a number": reply({"__type": 7}, 400),
    "400 the code is a list": reply({"__type": ["AccessDeniedException"]}, 400),
    "400 cut off": http(400, json.dumps(DENIAL).encode()[:-4], JSON, **REQUEST_ID),
    "400 gzip": http(400, gzip.compress(json.dumps(DENIAL).encode()), JSON, Content_Encoding="gzip", **REQUEST_ID),
    "400 nested too deep": http(400, b'{"__type": ' + b"[" * 100000, JSON, **REQUEST_ID),
    "a denial that broke off": send(
        b"HTTP/1.1 400 x\r\nContent-Type: application/x-amz-json-1.1\r\nx-amzn-RequestId: 1\r\nContent-Length: 999\r\n\r\n"
        + json.dumps(DENIAL).encode()
    ),
    "200 without a key": reply({"KeyId": KEY_ARN}),
    "200 null": reply({"Plaintext": None}),
    "200 other types": reply({"Plaintext": 7}),
    "200 a list": reply([]),
}


@pytest.mark.parametrize("name", UNREACHABLE)
def test_unreachable(impostor: Impostor, name: str) -> None:
    impostor.overrides["Decrypt"] = UNREACHABLE[name]
    seconds = SECONDS if name in SILENT else ENOUGH_S
    started = time.monotonic()
    with pytest.raises(KeyServiceError) as caught:
        prove(seconds=seconds)
    assert time.monotonic() - started < seconds + 0.3
    for text in (SECRET_KEY, ACCESS_KEY, "permission denied", "a text of the service", "hotel", "blocked by policy", DEK.hex()):
        assert text not in str(caught.value)
    assert len(impostor.sent("Decrypt")) == 1, "a proof is one attempt"


DENIED = [code for code, (kind, _reason) in ANSWERS.items() if kind in (Kind.DENIED, Kind.ENTRY)]


@pytest.mark.parametrize("code", DENIED)
def test_denied(impostor: Impostor, code: str) -> None:
    impostor.overrides["Decrypt"] = error(code)
    with pytest.raises(KeyDeniedError, match=code) as caught:
        prove()
    assert ANSWERS[code][1] in str(caught.value)
    assert "a text of the service" not in str(caught.value)
    impostor.overrides["Decrypt"] = reply({"__type": f"com.amazonaws.kms#{code}", "Message": "with a name space"}, 403)
    with pytest.raises(KeyDeniedError):
        prove()


@pytest.mark.parametrize("code", DENIED)
def test_what_never_opened_before_is_to_be_mended(impostor: Impostor, code: str) -> None:
    impostor.overrides["Decrypt"] = error(code)
    with pytest.raises(KeyAccessError) as caught:
        prove(opened_before=False)
    assert isinstance(caught.value, KeyDeniedError) == (ANSWERS[code][0] is Kind.DENIED)
    assert not isinstance(caught.value, KeyServiceError)


@pytest.mark.parametrize("opened_before", [True, False])
@pytest.mark.parametrize("wrong", WRONG_KEYS.values(), ids=WRONG_KEYS)
def test_wrong_key_bytes_raise_an_alarm_and_are_no_denial(impostor: Impostor, wrong: bytes, opened_before: bool) -> None:
    impostor.dek = wrong
    with pytest.raises(KeyServiceError, match=r"^ALARM: ") as caught:
        prove(opened_before)
    assert not wrong or wrong.hex() not in str(caught.value)


@pytest.mark.parametrize(
    "answer",
    [
        {"CiphertextBlob": "d3JhcHBlZA=="},
        {"KeyId": KEY_ARN},
        {"KeyId": KEY_ARN, "CiphertextBlob": ""},
        {"KeyId": KEY_ARN, "CiphertextBlob": b64encode(b"x" * 6145).decode()},
        {"KeyId": KEY_ARN.replace("1234abcd", "ffffffff"), "CiphertextBlob": "d3JhcHBlZA=="},
        {"KeyId": KEY_ARN.replace("111122223333", "999999999999"), "CiphertextBlob": "d3JhcHBlZA=="},
        {"KeyId": "alias/modelfs", "CiphertextBlob": "d3JhcHBlZA=="},
        {"KeyId": KEY_ARN + "\n", "CiphertextBlob": "d3JhcHBlZA=="},
        {"KeyId": 7, "CiphertextBlob": 7},
    ],
)
def test_an_answer_that_is_no_wrapped_key_of_ours_is_not_published(impostor: Impostor, answer: dict[str, object]) -> None:
    impostor.overrides = {"ReEncrypt": reply(answer), "Encrypt": reply(answer)}
    with pytest.raises(KeyServiceError):
        AwsProvider(KEY_ARN).wrap_key(DEK, CONTEXT)
    with pytest.raises(KeyServiceError):
        AwsProvider(KEY_ARN).rewrap_key(KEYS.recipients[0], CONTEXT, lambda _: True)


def test_decoys_cost_no_more_than_the_deadline(impostor: Impostor) -> None:
    """A storage writer who plants entries makes a proof ask often, within the same time."""
    impostor.overrides["Decrypt"] = lambda connection: (time.sleep(0.3), connection.sendall(error("InvalidCiphertextException")))[0]
    many = keys_file([recipient("awskms", KEY_ARN, "", b"%d" % number) for number in range(40)])
    started = time.monotonic()
    with pytest.raises(KeyServiceError):
        prove(keys=many, seconds=SECONDS)
    assert time.monotonic() - started < SECONDS + 0.3
    assert len(impostor.sent("Decrypt")) <= 4


# TLS and addresses.


def test_a_certificate_of_another_authority(impostor: Impostor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    stranger = dev_vault.Authority(tmp_path / "other", "stranger")
    monkeypatch.setenv("AWS_CA_BUNDLE", str(stranger.path))
    with pytest.raises(KeyServiceError, match="certificate is not trusted"):
        prove()
    monkeypatch.delenv("AWS_CA_BUNDLE")
    with pytest.raises(KeyServiceError, match="certificate is not trusted"):
        prove()
    assert impostor.requests == []


@pytest.mark.parametrize("value", ["", " ", "0", "false", "False", "/nonexistent/ca.pem"])
@pytest.mark.parametrize("variable", ["AWS_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_nothing_in_the_environment_turns_verification_off(
    impostor: Impostor, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    monkeypatch.delenv("AWS_CA_BUNDLE")
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("PYTHONHTTPSVERIFY", "0")
    monkeypatch.setenv("AWS_NO_VERIFY_SSL", "true")
    with pytest.raises(KeyServiceError):
        prove()
    assert impostor.requests == []


@pytest.mark.parametrize("value", ["", "false"])
def test_nor_does_the_profile(impostor: Impostor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: str) -> None:
    config = tmp_path / "config"
    config.write_text(f"[default]\nca_bundle = {value}\nverify_ssl = false\n")
    monkeypatch.delenv("AWS_CA_BUNDLE")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(config))
    with pytest.raises(KeyAccessError):
        prove()
    assert impostor.requests == []


def test_a_certificate_for_another_host(
    authority: "dev_vault.Authority", context: ssl.SSLContext, impostor: Impostor, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Impostor(context, DEK, host="127.0.0.9")
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", other.address)
    try:
        with pytest.raises(KeyServiceError, match="certificate is not trusted"):
            prove()
        assert other.requests == []
    finally:
        other.close()


def test_session_keys_of_tls_are_written_nowhere(impostor: Impostor, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "tls-keys"))
    assert prove().dek == DEK
    assert not (tmp_path / "tls-keys").exists()


def test_redirects_are_followed_nowhere(impostor: Impostor, context: ssl.SSLContext) -> None:
    other = Impostor(context, DEK)
    try:
        for status in (301, 302, 303, 307, 308):
            impostor.overrides["Decrypt"] = http(status, b"", Location=f"{other.address}/")
            with pytest.raises(KeyServiceError, match="HTTPClientError" if status == 303 else "points elsewhere"):
                prove()
        assert other.requests == []
    finally:
        other.close()


PLAIN_HTTP = {
    "without leave": ("http://127.0.0.1:{port}", False, "plain http, on which"),
    "elsewhere": ("http://kms.example.com", True, "to another host"),
    "elsewhere by number": ("http://10.0.0.1", True, "to another host"),
    "a name that begins so": ("http://localhost.example.com", True, "to another host"),
    "a number that looks so": ("http://127.0.0.1.example.com", True, "to another host"),
    "all": ("http://0.0.0.0:{port}", True, "to another host"),
}


@pytest.mark.parametrize(("address", "insecure", "text"), PLAIN_HTTP.values(), ids=PLAIN_HTTP)
@pytest.mark.parametrize("variable", ["AWS_ENDPOINT_URL_KMS", "AWS_ENDPOINT_URL"])
def test_plain_http_is_refused(
    impostor: Impostor, monkeypatch: pytest.MonkeyPatch, variable: str, address: str, insecure: bool, text: str
) -> None:
    plain = Impostor(None, DEK)
    try:
        monkeypatch.delenv("AWS_ENDPOINT_URL_KMS")
        monkeypatch.setenv(variable, address.format(port=plain.address.rpartition(":")[2]))
        with pytest.raises(KeyAccessError, match=text):
            AwsProvider(KEY_ARN, insecure).prove(KEYS, manifest(), None, False, ENOUGH_S)
        assert plain.requests == []
    finally:
        plain.close()


def test_plain_http_to_loopback_takes_no_proxy(impostor: Impostor, monkeypatch: pytest.MonkeyPatch) -> None:
    plain, proxy = Impostor(None, DEK), Impostor(None, b"E" * 32)
    for name in ("HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.address)
    monkeypatch.setenv("AWS_ENDPOINT_URL_KMS", plain.address)
    try:
        assert AwsProvider(KEY_ARN, True).prove(KEYS, manifest(), None, False, ENOUGH_S).dek == DEK
        assert proxy.requests == []
    finally:
        plain.close()
        proxy.close()


# Credentials and configuration.


def test_without_credentials(impostor: Impostor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    with pytest.raises(KeyServiceError, match="no credentials"):
        prove()
    assert impostor.requests == []


def test_a_machine_without_metadata_does_not_cost_the_whole_deadline(impostor: Impostor, monkeypatch: pytest.MonkeyPatch) -> None:
    """The metadata service of a machine that is none of Amazon's: silence, here by an impostor that hangs."""
    silent = Impostor(None, DEK, {"": hang})
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", silent.address)
    started = time.monotonic()
    try:
        with pytest.raises(KeyServiceError, match="no credentials"):
            prove(seconds=2.0)
        assert time.monotonic() - started < 2.0
    finally:
        silent.close()


def test_without_a_region(impostor: Impostor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    monkeypatch.delenv("AWS_ENDPOINT_URL_KMS")
    with pytest.raises(KeyAccessError, match="no region"):
        prove(reference="alias/modelfs")


def test_without_the_profile_that_is_named(impostor: Impostor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_PROFILE", "nobody")
    with pytest.raises(KeyAccessError, match="AWS configuration cannot be used"):
        prove()


def test_a_blocked_import_names_the_extra() -> None:
    """modelfs works without the SDK; its scheme then says what to install."""
    code = (
        "import sys\n"
        "class Blocked:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('boto3', 'botocore'):\n"
        "            raise ModuleNotFoundError(name, name=name)\n"
        "sys.meta_path.insert(0, Blocked())\n"
        "import modelfs.cli.app, modelfs.mount.start, modelfs.keys\n"
        "from modelfs.errors import ConfigError\n"
        "assert not any(name.startswith('botocore.') for name in sys.modules)\n"
        "try:\n    modelfs.keys.open_kek('awskms:alias/x')\n"
        "except ConfigError as exc:\n    print(exc)\n"
    )
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "this kind of key needs the Python package botocore: install modelfs[aws]\n"


def test_asking_nobody_before_it_is_used(impostor: Impostor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    assert AwsProvider(KEY_ARN).is_recipient(KEYS.recipients[0])
    assert impostor.requests == []
