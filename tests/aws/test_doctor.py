"""`modelfs doctor --kek awskms:...`: what an operator can get wrong about a key in AWS KMS."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfs.doctor.aws import check_aws
from modelfs.doctor.check import Check
from tests.aws.emulators import SECRET_KEY, Emulator, credentials_file, environment, use
from tests.aws.impostor import KEY_ARN, Impostor, error, reply
from tests.mount.conftest import modelfs
from tests.vault.server import DEK


@pytest.fixture
def impostor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Impostor]:
    made = Impostor(None, DEK, {"Decrypt": error("DryRunOperationException")})
    use(monkeypatch, environment(made.address, credentials_file(tmp_path / "credentials")))
    yield made
    made.close()


def checks(model: str | None = None) -> dict[str, Check]:
    found = {check.name: check for check in check_aws(f"awskms:{KEY_ARN}", True, model)}
    assert not any(SECRET_KEY in check.found + check.advice or "a text of the service" in check.found for check in found.values())
    return found


def test_all_is_well(impostor: Impostor) -> None:
    found = checks("llama")
    assert {name: check.level for name, check in found.items()} == {
        "aws-login": "ok",
        "aws-endpoint": "warning",
        "aws-key": "ok",
        "aws-decrypt": "ok",
    }
    assert "credentials file" in found["aws-login"].found
    [sent] = impostor.sent("Decrypt")
    assert (sent["DryRun"], sent["DryRunModifiers"], sent["KeyId"]) == (True, ["IGNORE_CIPHERTEXT"], KEY_ARN)
    assert sent["EncryptionContext"]["modelfs:model"] == "llama"


KEYS = {
    "disabled": (reply({"KeyMetadata": {"KeyState": "Disabled"}}), "error", "is disabled"),
    "pending deletion": (reply({"KeyMetadata": {"KeyState": "PendingDeletion"}}), "error", "is pending deletion"),
    "no material": (reply({"KeyMetadata": {"KeyState": "PendingImport"}}), "error", "no key material"),
    "for signatures": (reply({"KeyMetadata": {"KeyState": "Enabled", "KeyUsage": "SIGN_VERIFY"}}), "error", "symmetric"),
    "unknown state": (reply({"KeyMetadata": {"KeyState": "Dancing"}}), "unknown", "a state of its own"),
    "nothing": (reply({}), "unknown", "a state of its own"),
    "not allowed": (error("AccessDeniedException"), "unknown", "may not describe"),
    "not there": (error("NotFoundException"), "error", "no such key"),
    "throttled": (error("ThrottlingException"), "error", "too many requests"),
}


@pytest.mark.parametrize(("answer", "level", "text"), KEYS.values(), ids=KEYS)
def test_the_key(impostor: Impostor, answer: bytes, level: str, text: str) -> None:
    impostor.overrides["DescribeKey"] = answer
    check = checks()["aws-key"]
    assert (check.level, text in check.found) == (level, True), check


PERMISSIONS = {
    "denied": (error("AccessDeniedException"), "error", "no permission"),
    "disabled": (error("DisabledException"), "error", "is disabled"),
    "throttled": (error("ThrottlingException"), "unknown", "too many requests"),
    "an emulator": (error("InvalidCiphertextException"), "unknown", "does not know dry runs"),
    "no dry run": (reply({"Plaintext": "", "KeyId": KEY_ARN}), "unknown", "does not know dry runs"),
}


@pytest.mark.parametrize(("answer", "level", "text"), PERMISSIONS.values(), ids=PERMISSIONS)
def test_the_permission(impostor: Impostor, answer: bytes, level: str, text: str) -> None:
    impostor.overrides["Decrypt"] = answer
    check = checks()["aws-decrypt"]
    assert (check.level, text in check.found) == (level, True), check


def test_without_credentials_nothing_is_asked(impostor: Impostor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    found = checks()
    assert [(check.name, check.level) for check in found.values()] == [("aws-login", "error")]
    assert impostor.requests == []


def test_an_endpoint_that_is_not_allowed(impostor: Impostor) -> None:
    found = {check.name: check for check in check_aws(f"awskms:{KEY_ARN}", False, None)}
    assert found["aws-key"].level == "error"
    assert "plain http" in found["aws-key"].found
    assert impostor.requests == []


def test_the_command(ministack: Emulator, tmp_path: Path) -> None:
    variables = environment(ministack.address, credentials_file(tmp_path / "credentials"))
    base = ["doctor", "--kek", f"awskms:{ministack.key()}", "--state-dir", tmp_path / "state", "--json"]
    done = modelfs(*base, "--insecure-http", environment=variables)
    found = {check["name"]: check["level"] for check in json.loads(done.stdout)["checks"]}
    assert {name: level for name, level in found.items() if name.startswith("aws-")} == {
        "aws-login": "ok",
        "aws-endpoint": "warning",
        "aws-key": "ok",
        "aws-decrypt": "unknown",
    }
    assert SECRET_KEY not in done.stdout + done.stderr
    done = modelfs(*base, environment=variables)
    assert done.returncode in (2, 5)
    assert "plain http" in done.stdout
    done = modelfs("doctor", "--kek", "awskms:rubbish", "--state-dir", tmp_path / "state", environment=variables)
    assert (done.returncode, "does not name a key" in done.stderr) == (2, True)
