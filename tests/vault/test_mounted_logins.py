"""`modelfs seal` and `modelfs mount` with every way to log in: each serves, stays logged in, and is ended by revoking its login alone."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key

from modelfs.keys.vault_session import boottime
from tests.helpers import KeySet, Sealed, write_tree
from tests.mount.conftest import Mounted, modelfs, mount_command, wait_until
from tests.vault.identities import ClusterApi, cluster_api, public_pem, signed_token
from tests.vault.leased import PLAIN, RENEW_S, Leased, Watcher, revoke_accessors, status
from tests.vault.server import Server, write_secret

LIVES = {"token_ttl": "1h", "token_max_ttl": "24h"}


@pytest.fixture
def leased(server: Server, keys_dir: KeySet, tmp_path: Path) -> Leased:
    """Gives key and policy; what it has sealed itself is not used."""
    return Leased(server, keys_dir, tmp_path / "unused")


def by_token(leased: Leased) -> str:
    return f"token:{leased.server.token_file(leased.policy).path}"


def by_approle(leased: Leased) -> str:
    return leased.login


def by_wrapped_secret_id(leased: Leased) -> str:
    """Opens once: each call makes another."""
    server = leased.server
    wrapped = server.root.auth.approle.generate_secret_id(leased.role, wrap_ttl="60s")["wrap_info"]["token"]
    path = write_secret(server.directory / server.name("wrapped-id"), wrapped)
    return f"approle:role_id_file={leased.auth.role_id_file},secret_id_file={path},secret_id_wrapped=true"


def by_certificate(leased: Leased) -> str:
    server = leased.server
    mount, name = server.name("cert"), server.name("machine")
    server.root.sys.enable_auth_method("cert", path=mount)
    certificate, key = server.vault.ca.issue(name, is_server=False)
    server.root.auth.cert.create_ca_certificate_role(
        "hosts", certificate=server.vault.ca.path.read_text(), token_policies=[leased.policy], mount_point=mount, **LIVES
    )
    return f"cert:cert_file={certificate},key_file={key},role=hosts,mount={mount}"


def by_jwt(leased: Leased) -> str:
    server, signer = leased.server, generate_private_key(SECP256R1())
    mount = server.name("jwt")
    server.root.sys.enable_auth_method("jwt", path=mount)
    server.root.auth.jwt.configure(jwt_validation_pubkeys=[public_pem(signer)], bound_issuer="test", path=mount)
    server.root.auth.jwt.create_role(
        "host",
        user_claim="sub",
        allowed_redirect_uris=[],
        role_type="jwt",
        bound_audiences=["modelfs"],
        token_policies=[leased.policy],
        token_ttl=3600,
        token_max_ttl=86400,
        path=mount,
    )
    path = write_secret(server.directory / server.name("jwt-file"), signed_token(signer))
    return f"jwt:role=host,token_file={path},mount={mount}"


@pytest.fixture
def cluster(server: Server) -> Iterator[str]:
    with cluster_api(server) as address:
        yield address


def by_service_account(leased: Leased, cluster: str) -> str:
    server, signer = leased.server, generate_private_key(SECP256R1())
    mount = server.name("kubernetes")
    account = {"namespace": "models", "serviceaccount": {"name": "modelfs", "uid": "1-2-3"}}
    subject = "system:serviceaccount:models:modelfs"
    ClusterApi.good = token = signed_token(signer, sub=subject, iss="kubernetes", aud=["cluster"], **{"kubernetes.io": account})
    server.root.sys.enable_auth_method("kubernetes", path=mount)
    server.root.auth.kubernetes.configure(
        kubernetes_host=cluster, kubernetes_ca_cert=server.vault.ca.path.read_text(), token_reviewer_jwt=token, mount_point=mount
    )
    server.root.auth.kubernetes.create_role(
        "host",
        bound_service_account_names=["modelfs"],
        bound_service_account_namespaces=["models"],
        policies=[leased.policy],
        ttl="1h",
        max_ttl="24h",
        mount_point=mount,
    )
    path = write_secret(server.directory / server.name("service-account"), token)
    return f"kubernetes:role=host,token_file={path},mount={mount}"


LOGINS: dict[str, Callable[[Leased], str]] = {
    "token": by_token,
    "AppRole": by_approle,
    "wrapped secret id": by_wrapped_secret_id,
    "TLS certificate": by_certificate,
    "JWT": by_jwt,
}


def seal_mount_revoke(leased: Leased, base: Path, mount: Callable[..., Mounted], log_in: Callable[[], str]) -> None:
    keys, vault = leased.sealed.keys, leased.server.vault
    source, sealed = write_tree(base / "src", {"model.bin": PLAIN}), base / "by-command"
    where = ["--vault-address", vault.address, "--vault-ca-file", vault.ca.path]
    what = ["seal", source, sealed, "--model", "demo", "--release", 1, "--kek", f"vault:{leased.key}", "--sign-key", keys.signing]
    done = modelfs(*what, *where, "--vault-auth", log_in())
    assert done.returncode == 0, done.stderr
    mark = leased.server.audit_mark()
    mounted = mount(Sealed(sealed, source, keys), *leased.options(auth=log_in()))
    assert (mounted.path / "model.bin").read_bytes() == PLAIN
    logins = [path for path in leased.server.paths(mark) if path.endswith("/login")]
    first = boottime()
    wait_until(lambda: (status(mounted)["last_granted_s_ago"] or 0) < boottime() - first - 2 * RENEW_S, 10, "two renewals")
    assert status(mounted)["lease"] == "granted"
    with Watcher(mounted) as watcher:
        wait_until(watcher.is_good, 10, "a read")
        revoke_accessors(leased)
        revoked = boottime()
        wait_until(lambda: not mounted.is_attached(), RENEW_S + 2.0, "the end of the mount")
    assert watcher.last_good().ended - revoked <= RENEW_S + 2.0
    assert [path for path in leased.server.paths(mark) if path.endswith("/login")] == logins, "it logged in again"


@pytest.mark.parametrize("login", LOGINS)
def test_seal_mount_and_revoke(leased: Leased, tmp_path: Path, mount: Callable[..., Mounted], login: str) -> None:
    seal_mount_revoke(leased, tmp_path, mount, lambda: LOGINS[login](leased))


def test_seal_mount_and_revoke_by_kubernetes(leased: Leased, tmp_path: Path, mount: Callable[..., Mounted], cluster: str) -> None:
    """A real login method of the server, and of the cluster the one call that it makes: TokenReview."""
    seal_mount_revoke(leased, tmp_path, mount, lambda: by_service_account(leased, cluster))


# Logins that may not.


def own_policy(server: Server, rules: str) -> str:
    return str(server.token_file(server.policy(rules=rules)).path)


def test_logins_that_lack_a_permission_are_refused_by_its_name(leased: Leased, tmp_path: Path) -> None:
    server, decrypt = leased.server, f"`update` on {leased.key.replace('/', '/decrypt/')}"
    encrypt_only = f'path "{leased.key.replace("/", "/encrypt/")}" {{ capabilities = ["update"] }}\n'
    another = server.token_file(server.policy(server.key()))
    bare = server.root.auth.token.create(policies=["nothing-at-all"], ttl="1h", no_default_policy=True)["auth"]["client_token"]
    cases = {
        "a publisher's": (own_policy(server, encrypt_only), decrypt),
        "the shipped publisher's": (server.token_file("modelfs-publisher").path, decrypt),
        "another model's": (another.path, decrypt),
        "the shipped operator's": (server.token_file("modelfs-operator").path, "auth/token"),
        "one that may nothing": (write_secret(tmp_path / "bare", bare), "`read` on auth/token/lookup-self"),
    }
    for name, (token, permission) in cases.items():
        path, state_dir = tmp_path / "mnt", tmp_path / "state"
        path.mkdir(exist_ok=True)
        done = modelfs(*mount_command(leased.sealed, path, state_dir, *leased.options(auth=f"token:{token}")))
        assert done.returncode == 5, (name, done.stderr)
        assert (done.stderr.count("\n"), permission in done.stderr) == (1, True), (name, done.stderr)
        assert "denies" in done.stderr
        assert not os.path.ismount(path)
        assert not list(state_dir.glob("*.json")), "a release was remembered that was never served"
