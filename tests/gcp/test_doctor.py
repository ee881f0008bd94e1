"""`modelfs doctor --kek gcpkms:...`: what it says of a key that works, and of every one that does not."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs.doctor.gcp import check_gcp
from tests.gcp.fake import DECRYPT, ENCRYPT, FakeKms, answer
from tests.mount.conftest import modelfs

Login = Callable[[Path], None]


def test_each_answer(gcp: FakeKms, gcp_login: Login) -> None:
    key = gcp.key("doctor")
    gcp_login(gcp.account("doctor", key, ENCRYPT, DECRYPT))
    uri = f"gcpkms:{key}?endpoint={gcp.endpoint}"

    def said() -> tuple[str, str]:
        (check,) = check_gcp(uri)
        assert check.name == "gcp-key"
        assert (check.level == "ok") == (not check.advice)
        return check.level, check.found

    assert said() == ("ok", f"gcpkms:{key} answers, and this host may unwrap with it")
    gcp.misbehave = answer("UNAVAILABLE")
    assert said() == ("error", "Google Cloud KMS gave no answer that counts (HTTP 503)")
    gcp.misbehave = None
    gcp.revoke("doctor")
    level, found = said()
    assert level == "error"
    assert "denies cloudkms.cryptoKeyVersions.useToDecrypt" in found
    gcp.needs_login = False
    del gcp.keys[key]
    level, found = said()
    gcp.needs_login = True
    assert (level, "NOT_FOUND" in found) == ("error", True)


def test_the_command(gcp: FakeKms, gcp_login: Login, tmp_path: Path) -> None:
    key = gcp.key("command")
    credentials = gcp.account("command", key, DECRYPT)
    gcp_login(credentials)
    uri = f"gcpkms:{key}?endpoint={gcp.endpoint}"
    done = modelfs("doctor", "--kek", uri, "--state-dir", tmp_path / "state", "--json")
    found = {check["name"]: check["level"] for check in json.loads(done.stdout)["checks"]}
    assert found["gcp-key"] == "ok", done.stdout
    gcp.revoke("command")
    done = modelfs("doctor", "--kek", uri, "--state-dir", tmp_path / "state")
    assert done.returncode in (2, 5)
    assert "error   gcp-key:" in done.stdout


@pytest.mark.parametrize("uri", ["gcpkms:models", "gcpkms:"])
def test_a_malformed_key_is_one_sentence(uri: str) -> None:
    done = modelfs("doctor", "--kek", uri)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
