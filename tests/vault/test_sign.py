"""A signing key that stays in the Vault: seals with it verify, its public key is exported, and what goes wrong says so."""

import os
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from modelfs.crypto.signatures import load_trusted_keys, verify_envelope
from modelfs.crypto.signing import sign_payload, trust_signer
from modelfs.errors import ConfigError, KeyAccessError, KeyDeniedError, KeyServiceError
from modelfs.keys import export_public_key, open_kek, open_signer
from modelfs.keys.vault_settings import TokenFile, VaultSettings
from tests.helpers import KeySet
from tests.leases.impostor import answer, server_context
from tests.vault.impostor import TOKEN, Impostor
from tests.vault.server import Server, dev_vault, write_secret

TYPE = "application/vnd.test"


@pytest.fixture
def publisher(server: Server) -> VaultSettings:
    return server.settings(TokenFile(path=server.directory / "publisher.token"))


def test_signs_and_verifies(server: Server, publisher: VaultSettings, tmp_path: Path) -> None:
    signer = open_signer("hv:release/1", publisher)
    envelope = sign_payload(b"payload", TYPE, signer)
    public = tmp_path / "release.pem.pub"
    public.write_bytes(export_public_key("hv:release/1", publisher))
    for trusted in (load_trusted_keys([public]), trust_signer(signer)):
        payload, signed_by = verify_envelope(envelope, trusted, "it")
        assert payload == b"payload"
        assert signed_by == [signer.public_key.keyid]
    assert publisher.auth.path.read_text() not in repr(vars(signer)) + repr(signer)


def test_the_version_is_the_one_that_was_named(server: Server) -> None:
    name = server.name("sign")
    server.root.secrets.transit.create_key(name, key_type="ed25519")
    server.root.secrets.transit.rotate_key(name)
    rules = f'path "transit/sign/{name}" {{ capabilities = ["update"] }}\npath "transit/keys/{name}" {{ capabilities = ["read"] }}\n'
    settings = server.settings(server.token_file(server.policy(rules=rules)))
    signers = [open_signer(f"hv:{name}/{version}", settings) for version in (1, 2)]
    assert signers[0].public_key != signers[1].public_key
    for signer, other in (signers, signers[::-1]):
        envelope = sign_payload(b"payload", TYPE, signer)
        assert verify_envelope(envelope, trust_signer(signer), "it")[0] == b"payload"
        with pytest.raises(Exception, match="signed by 0"):
            verify_envelope(envelope, trust_signer(other), "it")
    with pytest.raises(KeyAccessError, match="has no version 3"):
        open_signer(f"hv:{name}/3", settings)
    server.root.secrets.transit.update_key_configuration(name, min_encryption_version=2)
    with pytest.raises(KeyAccessError):  # OpenBao says 500
        sign_payload(b"payload", TYPE, signers[0])


def test_missing_permissions_are_named(server: Server) -> None:
    rules = {
        "keys": 'path "transit/sign/release" { capabilities = ["update"] }\n',
        "sign": 'path "transit/keys/release" { capabilities = ["read"] }\n',
    }
    with pytest.raises(KeyDeniedError, match="`read` on transit/keys/release"):
        open_signer("hv:release/1", server.settings(server.token_file(server.policy(rules=rules["keys"]))))
    signer = open_signer("hv:release/1", server.settings(server.token_file(server.policy(rules=rules["sign"]))))
    with pytest.raises(KeyDeniedError, match="`update` on transit/sign/release"):
        sign_payload(b"payload", TYPE, signer)


def test_keys_of_other_types_and_missing_ones(server: Server) -> None:
    name = server.name("p256")
    server.root.secrets.transit.create_key(name, key_type="ecdsa-p256")
    root = server.settings(TokenFile(path=server.directory / "root.token"))
    with pytest.raises(KeyAccessError, match="not of type ed25519"):
        open_signer(f"hv:{name}/1", root)
    with pytest.raises(KeyAccessError, match="no signing key nowhere"):
        open_signer("hv:nowhere/1", root)


@pytest.mark.parametrize(
    "uri", ["hv:", "hv:release", "hv:release/", "hv:release/0", "hv:release/x", "hv:a/b/1", "hv:../release/1", "hv:release/1\n"]
)
def test_malformed_names(publisher: VaultSettings, uri: str) -> None:
    for call in (open_signer, export_public_key):
        with pytest.raises(ConfigError, match="hv:NAME/VERSION"):
            call(uri, publisher)


def test_files_still_sign(keys_dir: KeySet) -> None:
    signer = open_signer(str(keys_dir.signing))
    assert verify_envelope(sign_payload(b"p", TYPE, signer), keys_dir.trusted(), "it")[0] == b"p"
    with pytest.raises(ConfigError, match="hv:NAME/VERSION"):
        export_public_key(str(keys_dir.signing), None)
    with pytest.raises(ConfigError, match="--vault-auth"):
        open_signer("hv:release/1")


def test_one_login_for_kek_and_signing_key(server: Server) -> None:
    """A wrapped secret id opens once, so both must use the same login."""
    role = server.role("modelfs-publisher")
    auth = server.approle(role, secret_id_wrapped=True)
    write_secret(auth.secret_id_file, server.root.auth.approle.generate_secret_id(role, wrap_ttl="60s")["wrap_info"]["token"])
    settings = server.settings(auth)
    mark = server.audit_mark()
    kek = open_kek("vault:transit/models", settings)
    signer = open_signer("hv:release/1", settings, [kek])
    kek.wrap_key(os.urandom(32), b"context")
    sign_payload(b"payload", TYPE, signer)
    assert server.paths(mark).count("auth/approle/login") == 1


@pytest.fixture
def impostor(tmp_path: Path) -> Iterator[tuple[Impostor, VaultSettings]]:
    authority = dev_vault.Authority(tmp_path)
    made = Impostor(server_context(*authority.issue("impostor", is_server=True)), b"")
    made.overrides["keys/release"] = answer({"data": {"type": "ed25519", "keys": {"1": {"public_key": b64encode(b"\1" * 32).decode()}}}})
    auth = TokenFile(path=write_secret(tmp_path / "token", TOKEN))
    yield made, VaultSettings(auth=auth, address=made.address, ca_file=authority.path)
    made.close()


NO_SIGNATURES = {
    "another key's": {"data": {"signature": "vault:v1:" + b64encode(b"\2" * 64).decode()}},
    "empty": {"data": {"signature": "vault:v1:"}},
    "not base64": {"data": {"signature": "vault:v1:!!"}},
    "no prefix": {"data": {"signature": "x"}},
    "a number": {"data": {"signature": 7}},
    "nothing": {"data": {}},
    "no data": {},
}


@pytest.mark.parametrize("reply", NO_SIGNATURES.values(), ids=NO_SIGNATURES)
def test_what_is_no_signature_is_never_published(impostor: tuple[Impostor, VaultSettings], reply: object) -> None:
    service, settings = impostor
    service.overrides["sign/"] = answer(reply)
    signer = open_signer("hv:release/1", settings)
    with pytest.raises(KeyServiceError):
        sign_payload(b"payload", TYPE, signer)


@pytest.mark.parametrize("public_key", ["", "AAAA", "not base64!", 7, None])
def test_what_is_no_public_key(impostor: tuple[Impostor, VaultSettings], public_key: object) -> None:
    service, settings = impostor
    service.overrides["keys/release"] = answer({"data": {"type": "ed25519", "keys": {"1": {"public_key": public_key}}}})
    with pytest.raises(KeyServiceError):
        open_signer("hv:release/1", settings)


def test_the_environment_lends_no_token(server: Server, publisher: VaultSettings, monkeypatch: pytest.MonkeyPatch) -> None:
    """VaultSigner by itself would take VAULT_ADDR and VAULT_TOKEN."""
    monkeypatch.setenv("VAULT_TOKEN", server.vault.root_token)
    monkeypatch.setenv("VAULT_ADDR", "https://127.0.0.1:1")
    before = dict(os.environ)
    sign_payload(b"payload", TYPE, open_signer("hv:release/1", publisher))
    assert dict(os.environ) == before
    weak = server.settings(server.token_file(server.policy()))
    with pytest.raises(KeyDeniedError):
        open_signer("hv:release/1", weak)
