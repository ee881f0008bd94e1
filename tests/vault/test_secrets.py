"""Nothing that is logged, raised, printed or represented holds a token, a secret id, a private key or a DEK: raw, hex or base64."""

import logging
import traceback
from base64 import b64encode, urlsafe_b64encode
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs.control.keypage import KeyPage
from modelfs.errors import FormatError, KeyAccessError
from modelfs.format.canonical import serialize
from modelfs.format.index import DirEntry, FileEntry, Index, parse_index
from modelfs.format.journal import JournalRecord
from modelfs.format.keysfile import keys_file, recipient
from modelfs.format.manifest import BlobEntry
from modelfs.keys import open_signer
from modelfs.keys.file import FileProvider
from modelfs.keys.interface import Grant
from modelfs.keys.vault import VaultProvider
from modelfs.keys.vault_session import Session
from modelfs.seal.encrypt import FinishedBlob
from modelfs.seal.journal import Pending
from modelfs.seal.scan import SourceFile
from tests.vault.server import CONTEXT, DEK, TIMEOUT, Server, manifest, write_secret


def shapes(secret: bytes) -> set[str]:
    """How a secret could look in a text, base64 in both alphabets at any offset included."""
    found = {secret.decode("latin-1"), secret.hex(), secret.hex().upper(), repr(secret)[2:-1]}
    for shift in range(3):
        for encode in (b64encode, urlsafe_b64encode):
            encoded = encode(b"\0" * shift + secret).decode()
            found.add(encoded[(shift * 8 + 5) // 6 + (1 if shift else 0) : -4])
    assert all(len(text) > 12 for text in found)
    return found


@pytest.fixture
def told(caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> Callable[[], str]:
    """Everything that was logged at any level, and printed."""
    caplog.set_level(logging.DEBUG)
    for name in ("hvac", "urllib3", "requests", "http.client", "modelfs", "securesystemslib"):
        logging.getLogger(name).setLevel(logging.DEBUG)

    def text() -> str:
        out, err = capfd.readouterr()
        return caplog.text + repr(caplog.records) + out + err

    return text


def test_a_whole_life_at_debug_level(server: Server, told: Callable[[], str]) -> None:
    key = server.key()
    auth = server.approle(server.role(server.policy(key)))
    provider = server.provider(auth, key)
    collected = []
    entry = provider.wrap_key(DEK, CONTEXT)
    grant = provider.prove(keys_file([entry]), manifest(), None, False, TIMEOUT)
    again = server.provider(auth, key).prove(keys_file([entry]), manifest(), grant.session, True, TIMEOUT)
    session = Session.from_bytes(again.session or b"")
    for thing in (provider, grant, again, session, provider.connection, provider.connection.session, auth, server.settings(auth)):
        collected += [repr(thing), str(thing)]
    server.root.auth.token.revoke_accessor(session.accessor)
    signer_auth = server.token_file(server.policy(rules='path "transit/sign/release" { capabilities = ["update"] }'))
    failures: list[Callable[[], object]] = [
        lambda: server.provider(auth, key).prove(keys_file([entry]), manifest(), again.session, True, TIMEOUT),
        lambda: server.provider(auth, "transit/other").wrap_key(DEK, CONTEXT),
        lambda: server.provider(server.token_file(server.policy()), key).unwrap_key(entry, CONTEXT),
        lambda: open_signer("hv:release/1", server.settings(signer_auth)),
    ]
    for fail in failures:
        with pytest.raises(KeyAccessError) as caught:
            fail()
        collected += traceback.format_exception(caught.value)
    secrets = [
        DEK,
        session.token.encode(),
        auth.secret_id_file.read_bytes(),
        auth.role_id_file.read_bytes(),
        server.vault.root_token.encode(),
        signer_auth.path.read_bytes(),
    ]
    everything = "".join(collected) + told()
    for secret in secrets:
        for shape in shapes(secret):
            assert shape not in everything


def test_what_holds_a_key_does_not_show_it() -> None:
    """Of everything that has a DEK or a blob key in it: neither as text nor in the error of a malformed one."""
    digest, blob = "0" * 64, BlobEntry(id="0" * 32, root="0" * 64, size=1)
    entry = FileEntry(blob="0" * 32, digest=digest, key=DEK.hex(), kind="file", mode=0o444, mtime=0, path="a", size=1)
    record = JournalRecord(digest=digest, key=DEK.hex(), path="a", root=digest, size=1, source=[1, 2, 3, 4, 5])
    index = Index(entries=[DirEntry(kind="dir", mode=0o555, mtime=0, path=""), entry], format="modelfs/1/index")
    source = SourceFile(path="a", real=Path("a"), size=1, mode=0o444, mtime=0, identity=(1, 2, 3, 4, 5))
    keys = KeyPage()
    keys.write(DEK)
    keys.write_session(DEK)
    holders = [
        entry, record, index, keys, Grant(DEK, DEK, 1.0, 1), FinishedBlob(source, blob, DEK, digest), FileProvider(DEK),
        Pending(manifest(), DEK, keys_file([recipient("file", "0" * 32, "", b"x" * 60)]), [("0" * 32, record)]),
    ]  # fmt: skip
    told = [form(holder) for holder in holders for form in (repr, str)]
    for text in (
        serialize(index).replace(b'"kind":"file"', b'"kind":"pipe"'),
        serialize(index)[:-9],
        serialize(index).replace(b"key", b"Key"),
    ):
        assert DEK.hex().encode() in text
        with pytest.raises(FormatError) as caught:
            parse_index(text)
        told += traceback.format_exception(caught.value)
    for shape in shapes(DEK):
        assert shape not in "".join(told)


def test_a_secret_in_the_wrong_place_is_not_repeated(server: Server, told: Callable[[], str]) -> None:
    """Malformed secret files: the message names the file."""
    auth = server.approle(server.role(server.policy()))
    collected = ""
    for text in ("two secret-words-in-a-row", "line-of-a-secret\nX-Header: injected-secret", "sécret-of-latin-letters"):
        for path in (auth.secret_id_file, auth.role_id_file):
            good = path.read_text()
            write_secret(path, text)
            with pytest.raises(KeyAccessError) as caught:
                server.provider(auth).prove(server.wrapped(), manifest(), None, False, TIMEOUT)
            write_secret(path, good)
            collected += "".join(traceback.format_exception(caught.value))
    collected += told()
    assert "secret-words" not in collected
    assert "line-of-a-secret" not in collected
    assert "latin-letters" not in collected


def test_no_plaintext_key_in_the_servers_audit_log(server: Server) -> None:
    provider: VaultProvider = server.provider(server.token_file(server.policy()))
    provider.unwrap_key(provider.wrap_key(DEK, CONTEXT), CONTEXT)
    text = server.vault.audit_log.read_text()
    assert "transit/decrypt/models" in text
    for shape in shapes(DEK):
        assert shape not in text
