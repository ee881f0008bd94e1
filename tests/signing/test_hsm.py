"""Signing keys in a PKCS#11 token: a real module (SoftHSM2), real keys; the PIN comes from a file and goes nowhere else."""

import contextlib
import fcntl
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

from modelfs.crypto.signatures import load_trusted_keys, verify_envelope
from modelfs.crypto.signing import sign_payload, trust_signer
from modelfs.errors import ConfigError, KeyAccessError, KeyDeniedError
from modelfs.keys import export_public_key, open_signer
from tests.helpers import REPOSITORY, KeySet, Sealed, write_tree
from tests.signing.token import PIN, WRONG_PIN, Token, make_token
from tests.vault.server import dev_vault

TYPE = "application/vnd.test"


@pytest.fixture(scope="module")
def key(token: Token) -> str:
    return token.make_key(1)


@pytest.mark.parametrize(("keyid", "curve"), [(11, "prime256v1"), (12, "secp384r1")])
def test_signs_and_verifies(token: Token, tmp_path: Path, keyid: int, curve: str) -> None:
    uri = token.make_key(keyid, curve)
    signer = open_signer(uri, pin_file=token.pin_file)
    envelope = sign_payload(b"payload", TYPE, signer)
    public = tmp_path / "hsm.pub"
    public.write_bytes(export_public_key(uri, None, token.pin_file))
    for trusted in (load_trusted_keys([public]), trust_signer(signer)):
        assert verify_envelope(envelope, trusted, "it") == (b"payload", [signer.public_key.keyid])


def test_openssl_agrees(token: Token, key: str, tmp_path: Path) -> None:
    """Somebody else's verification of the same signature."""
    from base64 import b64decode

    from modelfs.crypto.signatures import pre_authentication_encoding

    envelope = sign_payload(b"payload", TYPE, open_signer(key, pin_file=token.pin_file))
    for name, data in {
        "pub": export_public_key(key, None),
        "sig": b64decode(envelope.signatures[0].sig),
        "data": pre_authentication_encoding(b"payload", TYPE),
    }.items():
        (tmp_path / name).write_bytes(data)
    command = ["openssl", "dgst", "-sha256", "-verify", "pub", "-signature", "sig", "data"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False).stdout == "Verified OK\n"


def test_the_public_key_needs_no_pin(token: Token, key: str) -> None:
    assert b"BEGIN PUBLIC KEY" in export_public_key(key, None)
    with pytest.raises(ConfigError, match="--pin-file"):
        sign_payload(b"payload", TYPE, open_signer(key))


def test_a_wrong_pin_is_tried_once(token: Token, key: str) -> None:
    wrong = token.write_pin(WRONG_PIN, "wrong")
    with pytest.raises(KeyDeniedError, match="refuses the PIN") as caught:
        sign_payload(b"payload", TYPE, open_signer(key, pin_file=wrong))
    assert WRONG_PIN not in str(caught.value)
    assert caught.value.__suppress_context__
    sign_payload(b"payload", TYPE, open_signer(key, pin_file=token.pin_file))


@pytest.mark.parametrize(("text", "mode", "said"), [
    ("", 0o600, "not one line"), ("1\n2\n", 0o600, "not one line"), ("1" * 300, 0o600, "longer"), (PIN, 0o644, "chmod 600"),
])  # fmt: skip
def test_unusable_pin_files(token: Token, key: str, text: str, mode: int, said: str) -> None:
    path = token.write_pin(text, "unusable", mode)
    with pytest.raises(ConfigError, match=said):
        sign_payload(b"payload", TYPE, open_signer(key, pin_file=path))


def test_keys_that_are_not_there_or_of_another_kind(token: Token) -> None:
    rsa = token.make_key(31, "rsa:2048")
    for uri in (token.uri(99), rsa, "hsm:1?label=nowhere"):
        with pytest.raises(KeyAccessError, match="cannot be used") as caught:
            open_signer(uri, pin_file=token.pin_file)
        assert "\n" not in str(caught.value)
    other = token.make_key(32, "secp521r1")
    with pytest.raises((KeyAccessError, ConfigError)):
        open_signer(other, pin_file=token.pin_file)


@pytest.mark.parametrize("uri", ["hsm:x", "hsm:1?pin-value=1234", "hsm:1?label=", "hsm:1?label=a&pin=1", "hsm:-1", "hsm:1\n"])
def test_malformed_names(token: Token, uri: str) -> None:
    with pytest.raises(ConfigError, match="hsm:ID"):
        open_signer(uri)


@pytest.mark.parametrize("module", ["", "/nowhere/module.so", __file__])
def test_no_module(token: Token, module: str, tmp_path: Path) -> None:
    """In a process of its own: this one has loaded a module already."""
    command = [sys.executable, "-m", "modelfs", "pubkey", "hsm:1", "--out", str(tmp_path / "pub")]
    env = {**os.environ, **token.environment, "PYKCS11LIB": module}
    done = subprocess.run(command, env=env, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode in (2, 5)
    assert done.stderr.count("\n") == 1
    assert "PYKCS11LIB" in done.stderr


NO_ERRORS_LEFT = """
import ssl
from modelfs.keys import open_signer

client_out, server_out = ssl.MemoryBIO(), ssl.MemoryBIO()
server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server_side.load_cert_chain({certificate!r}, {private!r})
server = server_side.wrap_bio(client_out, server_out, server_side=True)
client = ssl.create_default_context(cafile={ca!r}).wrap_bio(server_out, client_out, server_hostname="localhost")
for _ in range(2):
    for side in (client, server):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            pass

try:
    client.read()  # what the handshake has left: to take it would clear the queue
except ssl.SSLWantReadError:
    pass
open_signer({uri!r})
try:
    client.read()
except ssl.SSLWantReadError:
    print("open")
server.write(b"answer")
print(client.read().decode())
"""


def test_a_tls_connection_outlives_the_use_of_a_token(token: Token, key: str, tmp_path: Path) -> None:
    """SoftHSM shares OpenSSL with Python, and leaves errors in the thread's queue, where the next read takes them for the connection's.

    In a process of its own: it happens when the module is loaded, too.
    """
    authority = dev_vault.Authority(tmp_path)
    certificate, private = authority.issue("server", is_server=True)
    program = NO_ERRORS_LEFT.format(certificate=str(certificate), private=str(private), ca=str(authority.path), uri=key)
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout, done.stderr) == ("open\nanswer\n", "")


def test_a_token_that_does_not_answer_is_left_behind(tmp_path: Path) -> None:
    """SoftHSM waits for the locks of its files; the command still ends, though its thread does not."""
    token = make_token(tmp_path)
    uri = token.make_key(1)
    program = "import sys, modelfs.keys.hsm_sign as h; h.TIMEOUT_S = 1; from modelfs.cli.app import main; sys.argv[0] = 'modelfs'; main()"
    with contextlib.ExitStack() as held:
        for path in (tmp_path / "tokens").rglob("*.*"):
            fcntl.lockf(held.enter_context(open(path, "r+b")), fcntl.LOCK_EX)
        done = subprocess.run(
            [sys.executable, "-c", program, "pubkey", uri, "--out", str(tmp_path / "pub")],
            env={**os.environ, **token.environment}, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=60,
        )  # fmt: skip
    assert (done.returncode, done.stderr.count("\n")) == (5, 1)
    assert f"the token of {uri} did not answer within 1 s" in done.stderr
    assert not (tmp_path / "pub").exists()


def test_seal_with_a_token_and_the_pin_is_nowhere(
    token: Token, key: str, keys_dir: KeySet, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    from modelfs.cli.app import main

    source, sealed, public = write_tree(tmp_path / "src", {"f": b"x" * 5000}), tmp_path / "sealed", tmp_path / "hsm.pub"
    caplog.set_level(logging.DEBUG)
    for arguments in (
        ["pubkey", key, "--out", public],
        [
            "seal",
            source,
            sealed,
            "--model",
            "demo",
            "--release",
            1,
            "--kek",
            f"file:{keys_dir.kek}",
            "--sign-key",
            key,
            "--pin-file",
            token.pin_file,
        ],
        ["verify", sealed, "--trust", public],
    ):
        monkeypatch.setattr(sys, "argv", ["modelfs", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert ended.value.code in (0, None), capfd.readouterr().err
    said = capfd.readouterr()
    written = b"".join(file.read_bytes() for file in sealed.rglob("*") if file.is_file())
    assert PIN not in said.out + said.err + caplog.text
    assert PIN.encode() not in written
    assert Sealed(sealed, source, keys_dir).path.exists()
