"""Every way to log in, against a real server: AppRole, a wrapped secret id, TLS certificate, JWT, Kubernetes, token files, namespaces."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePrivateKey, generate_private_key

from modelfs.errors import ConfigError, KeyDeniedError, KeyServiceError
from modelfs.keys.vault_session import Session
from modelfs.keys.vault_settings import AppRole, AuthMethod, Certificate, Jwt, Kubernetes, TokenFile
from tests.vault.identities import ClusterApi, cluster_api, public_pem, signed_token
from tests.vault.server import CONTEXT, DEK, TIMEOUT, Server, dev_vault, manifest, write_secret


def prove_twice(server: Server, auth: AuthMethod, **options: Any) -> Session:
    """A login and a renewal, each as a process of its own would do it."""
    keys = server.wrapped()
    grant = server.provider(auth, **options).prove(keys, manifest(), None, False, TIMEOUT)
    mark = server.audit_mark()
    again = server.provider(auth, **options).prove(keys, manifest(), grant.session, True, TIMEOUT)
    assert (grant.dek, again.dek) == (DEK, DEK)
    assert not [path for path in server.paths(mark) if path.endswith("/login") or "wrapping" in path], "a proof logged in again"
    assert again.session is not None
    session = Session.from_bytes(again.session)
    assert again.accessor == session.accessor
    return session


def test_approle(server: Server) -> None:
    session = prove_twice(server, server.approle(server.role(server.policy())))
    assert session.end_at is not None
    assert session.expires_at is not None
    assert 86390 < session.end_at - session.started_at <= 86400
    assert session.renewable
    assert session.expires_at - session.started_at < 3700, "the login was left longer than its role's ttl"


def test_the_login_is_as_short_lived_as_its_role_says(server: Server) -> None:
    """Finding out when a token ends must not prolong it."""
    session = prove_twice(server, server.approle(server.role(server.policy(), token_ttl="60s")))
    ttl = server.root.auth.token.lookup_accessor(session.accessor)["data"]["ttl"]
    assert 50 <= ttl <= 60


def test_approle_with_a_wrapped_secret_id(server: Server) -> None:
    role = server.role(server.policy(), token_ttl="4s", token_max_ttl="5s")
    wrapped = server.root.auth.approle.generate_secret_id(role, wrap_ttl="60s")["wrap_info"]["token"]
    auth = server.approle(role, secret_id_wrapped=True)
    write_secret(auth.secret_id_file, wrapped)
    keys = server.wrapped()
    mark = server.audit_mark()
    grant = server.provider(auth).prove(keys, manifest(), None, False, TIMEOUT)
    assert wrapped.encode() not in (grant.session or b"")
    session = Session.from_bytes(grant.session or b"")
    time.sleep(4.2)
    later = server.provider(auth).prove(keys, manifest(), grant.session, True, TIMEOUT)
    assert Session.from_bytes(later.session or b"").accessor != session.accessor, "no second login"
    paths = server.paths(mark)
    assert (paths.count("sys/wrapping/unwrap"), paths.count("auth/approle/login")) == (1, 2)
    with pytest.raises(KeyServiceError, match="unwrapped before; if that was not this host, somebody else has it"):
        server.provider(auth).prove(keys, manifest(), None, False, TIMEOUT)


def test_a_wrapping_token_of_something_else_is_not_unwrapped(server: Server) -> None:
    """Somebody swapped the file: what was wrapped was not made by the role."""
    auth = server.approle(server.role(server.policy()), secret_id_wrapped=True)
    swapped = server.root.sys.wrap({"secret_id": "planted"}, ttl=60)["wrap_info"]["token"]
    write_secret(auth.secret_id_file, swapped)
    with pytest.raises(KeyServiceError, match="treat it as swapped"):
        server.provider(auth).prove(server.wrapped(), manifest(), None, False, TIMEOUT)
    assert server.root.write_data("sys/wrapping/lookup", data={"token": swapped}), "it was opened nevertheless"


def test_a_wrong_secret_id_is_no_denial(server: Server) -> None:
    """The service says 400, which counts as a denial for wrapped keys only."""
    auth = server.approle(server.role(server.policy()))
    write_secret(auth.secret_id_file, "00000000-0000-0000-0000-000000000000")
    with pytest.raises(KeyServiceError, match="refuses the login by approle at auth/approle: the role id or secret id is not valid"):
        server.provider(auth).prove(server.wrapped(), manifest(), None, False, TIMEOUT)


def test_a_method_that_is_not_mounted(server: Server) -> None:
    auth = server.approle(server.role(server.policy()), mount="nowhere")
    with pytest.raises((KeyServiceError, KeyDeniedError), match="auth/nowhere"):
        server.provider(auth).prove(server.wrapped(), manifest(), None, False, TIMEOUT)


@pytest.fixture(scope="module")
def cert_policy(server: Server) -> str:
    server.root.sys.enable_auth_method("cert")
    return server.policy()


def test_tls_certificate(server: Server, cert_policy: str) -> None:
    certificate, key = server.vault.ca.issue("host-a", is_server=False)
    server.root.auth.cert.create_ca_certificate_role(
        "hosts",
        certificate=server.vault.ca.path.read_text(),
        allowed_common_names="host-*",
        token_policies=[cert_policy],
        token_ttl="1h",
        token_max_ttl="24h",
    )
    for role in ("hosts", None):
        assert prove_twice(server, Certificate(cert_file=certificate, key_file=key, role=role)).renewable
    stranger = dev_vault.Authority(_directory(server, "stranger"), "stranger").issue("host-b", is_server=False)
    with pytest.raises((KeyServiceError, KeyDeniedError), match="login by cert"):
        server.provider(Certificate(cert_file=stranger[0], key_file=stranger[1])).prove(server.wrapped(), manifest(), None, False, TIMEOUT)


def _directory(server: Server, name: str) -> Path:
    path = server.directory / server.name(name)
    path.mkdir()
    return path


def test_tls_certificate_files(server: Server, cert_policy: str) -> None:
    certificate, key = server.vault.ca.issue("host-c", is_server=False)
    key.chmod(0o644)
    with pytest.raises(KeyServiceError, match="chmod 600"):
        server.provider(Certificate(cert_file=certificate, key_file=key)).prove(server.wrapped(), manifest(), None, False, TIMEOUT)
    key.chmod(0o600)
    other = server.vault.ca.issue("host-d", is_server=False)[1]
    for wrong in (other, certificate):
        wrong.chmod(0o600)
        with pytest.raises(KeyServiceError, match="not a certificate and its unencrypted key"):
            server.provider(Certificate(cert_file=certificate, key_file=wrong)).prove(server.wrapped(), manifest(), None, False, TIMEOUT)


@pytest.fixture(scope="module")
def signer() -> EllipticCurvePrivateKey:
    return generate_private_key(SECP256R1())


def test_jwt(server: Server, signer: EllipticCurvePrivateKey) -> None:
    server.root.sys.enable_auth_method("jwt", path="ci")
    server.root.auth.jwt.configure(jwt_validation_pubkeys=[public_pem(signer)], bound_issuer="test", path="ci")
    server.root.auth.jwt.create_role(
        "host",
        user_claim="sub",
        allowed_redirect_uris=[],
        role_type="jwt",
        bound_audiences=["modelfs"],
        bound_subject="host-a",
        token_policies=[server.policy()],
        token_ttl=3600,
        token_max_ttl=86400,
        path="ci",
    )
    path = server.directory / "jwt"
    auth = Jwt(role="host", token_file=write_secret(path, signed_token(signer)), mount="ci")
    assert prove_twice(server, auth).end_at is not None
    for claims in ({"sub": "host-b"}, {"aud": "else"}, {"exp": 1}):
        write_secret(path, signed_token(signer, **claims))
        with pytest.raises((KeyServiceError, KeyDeniedError), match="login by jwt") as caught:
            server.provider(auth).prove(server.wrapped(), manifest(), None, False, TIMEOUT)
        assert "host-b" not in str(caught.value)
        assert "else" not in str(caught.value)


@pytest.fixture
def cluster(server: Server) -> Iterator[str]:
    with cluster_api(server) as address:
        yield address


def test_kubernetes(server: Server, cluster: str, signer: EllipticCurvePrivateKey) -> None:
    account = {"namespace": "models", "serviceaccount": {"name": "modelfs", "uid": "1-2-3"}}
    claims = {"iss": "kubernetes", "aud": ["cluster"], "kubernetes.io": account}
    token = signed_token(signer, sub="system:serviceaccount:models:modelfs", **claims)
    ClusterApi.good = token
    server.root.sys.enable_auth_method("kubernetes")
    server.root.auth.kubernetes.configure(
        kubernetes_host=cluster, kubernetes_ca_cert=server.vault.ca.path.read_text(), token_reviewer_jwt=token
    )
    server.root.auth.kubernetes.create_role(
        "host",
        bound_service_account_names=["modelfs"],
        bound_service_account_namespaces=["models"],
        policies=[server.policy()],
        ttl="1h",
        max_ttl="24h",
    )
    path = write_secret(server.directory / "sa-token", token)
    path.chmod(0o644)  # as the kubelet leaves it
    link = server.directory / "sa-link"
    link.symlink_to(path)
    auth = Kubernetes(role="host", token_file=link)
    assert prove_twice(server, auth).renewable
    path.chmod(0o666)
    with pytest.raises(KeyServiceError, match="open to group or others"):
        server.provider(auth).prove(server.wrapped(), manifest(), None, False, TIMEOUT)
    path.chmod(0o600)
    write_secret(path, signed_token(signer, sub="system:serviceaccount:models:other", **claims))
    with pytest.raises(KeyDeniedError, match="denies the login by kubernetes"):
        server.provider(auth).prove(server.wrapped(), manifest(), None, False, TIMEOUT)


def test_token_files(server: Server) -> None:
    policy = server.policy()
    assert prove_twice(server, server.token_file(policy)).end_at is not None
    assert prove_twice(server, server.token_file(policy, explicit_max_ttl="2h")).end_at is not None
    periodic = prove_twice(server, server.token_file(policy, period="10m"))
    assert (periodic.end_at, periodic.ttl_s, periodic.renewable) == (None, 600, True)
    fixed = prove_twice(server, server.token_file(policy, renewable=False))
    assert (fixed.renewable, fixed.end_at) == (False, None)
    assert fixed.expires_at is not None
    root = TokenFile(path=write_secret(server.directory / "root-login", server.vault.root_token + "\n"))
    unending = prove_twice(server, root)
    assert (unending.renewable, unending.expires_at, unending.left_s(0)) == (False, None, None)


BAD_FILES = {
    "empty": ("", 0o600, "one word"),
    "two words": ("two words", 0o600, "one word"),
    "two lines": ("s.x\ny", 0o600, "one word"),
    "not ASCII": ("s\xe9", 0o600, "one word"),
    "open to the group": ("s.good", 0o640, "chmod 600"),
    "long": ("x" * 20000, 0o600, "longer than"),
}


@pytest.mark.parametrize(("text", "mode", "error"), BAD_FILES.values(), ids=BAD_FILES)
def test_unusable_token_files_say_why(server: Server, tmp_path: Path, text: str, mode: int, error: str) -> None:
    path = write_secret(tmp_path / "token", text)
    path.chmod(mode)
    with pytest.raises(KeyServiceError, match=error) as caught:
        server.provider(TokenFile(path=path)).prove(server.wrapped(), manifest(), None, False, TIMEOUT)
    assert not text or text not in str(caught.value)


def test_a_token_that_was_never_good_is_denied(server: Server) -> None:
    auth = TokenFile(path=write_secret(server.directory / "never", "s.000000000000000000000000"))
    with pytest.raises(KeyDeniedError, match="not valid"):
        server.provider(auth).prove(server.wrapped(), manifest(), None, False, TIMEOUT)


def test_batch_tokens_only_when_allowed(server: Server) -> None:
    policy = server.policy()
    for auth in (server.token_file(policy, type="batch"), server.approle(server.role(policy, token_type="batch"))):
        with pytest.raises(KeyServiceError, match="batch token, which nobody can revoke"):
            server.provider(auth).prove(server.wrapped(), manifest(), None, False, TIMEOUT)
        session = prove_twice(server, auth, allow_batch_tokens=True)
        assert (session.renewable, session.end_at) == (False, None)
        assert session.expires_at is not None


def test_tokens_for_a_number_of_uses_are_refused(server: Server) -> None:
    """They would end in the middle of a mount, and look like revoked."""
    policy = server.policy()
    for auth in (server.token_file(policy, num_uses=50), server.approle(server.role(policy, token_num_uses=50))):
        with pytest.raises(KeyServiceError, match="limited number of uses"):
            server.provider(auth).prove(server.wrapped(), manifest(), None, False, TIMEOUT)


def test_a_token_that_may_not_renew_itself_names_the_permission(server: Server) -> None:
    name = server.name("policy")
    server.root.sys.create_or_update_policy(
        name, 'path "transit/decrypt/models" { capabilities = ["update"] }\npath "auth/token/lookup-self" { capabilities = ["read"] }'
    )
    with pytest.raises(KeyDeniedError, match="`update` on auth/token/renew-self"):
        server.provider(server.token_file(name)).prove(server.wrapped(), manifest(), None, False, TIMEOUT)


def test_namespace(server: Server) -> None:
    server.root.write_data("sys/namespaces/team", data={})
    inside = server.vault.client(namespace="team")
    inside.sys.enable_secrets_engine("transit")
    inside.secrets.transit.create_key("models", derived=True)
    inside.sys.create_or_update_policy("host", (dev_vault.POLICIES / "host.hcl").read_text())
    inside.sys.create_or_update_policy("all", 'path "*" { capabilities = ["update"] }')
    inside.sys.enable_auth_method("approle")
    inside.auth.approle.create_or_update_approle("host", token_policies=["host", "all"], token_ttl="1h", token_no_default_policy=True)
    auth = AppRole(
        role_id_file=write_secret(server.directory / "ns-role", inside.auth.approle.read_role_id("host")["data"]["role_id"]),
        secret_id_file=write_secret(server.directory / "ns-secret", inside.auth.approle.generate_secret_id("host")["data"]["secret_id"]),
    )
    provider = server.provider(auth, namespace="team")
    entry = provider.wrap_key(DEK, CONTEXT)
    assert server.provider(auth, namespace="team").unwrap_key(entry, CONTEXT) == DEK
    wrapped = inside.auth.approle.generate_secret_id("host", wrap_ttl="60s")["wrap_info"]["token"]
    write_secret(auth.secret_id_file, wrapped)
    again = server.provider(auth.model_copy(update={"secret_id_wrapped": True}), namespace="team")
    assert again.unwrap_key(entry, CONTEXT) == DEK
    for elsewhere in (None, "nowhere"):
        with pytest.raises((KeyServiceError, KeyDeniedError)):
            server.provider(auth, namespace=elsewhere).unwrap_key(entry, CONTEXT)


def test_plain_http_on_loopback(tmp_path: Path) -> None:
    vault = dev_vault.DevVault(tmp_path, use_tls=False)
    vault.start()
    try:
        vault.provision()
        server = Server(vault)
        auth = server.approle(server.role(server.policy()))
        with pytest.raises(ConfigError, match="plain http"):
            server.provider(auth, ca_file=None)
        provider = server.provider(auth, ca_file=None, insecure_http=True)
        entry = provider.wrap_key(DEK, CONTEXT)
        assert provider.unwrap_key(entry, CONTEXT) == DEK
        server.root.auth.token.revoke_accessor(provider.connection.session.accessor if provider.connection.session else "")
        with pytest.raises(KeyDeniedError):
            provider.unwrap_key(entry, CONTEXT)
    finally:
        vault.stop()
