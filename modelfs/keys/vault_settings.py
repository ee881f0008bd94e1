"""Where a Vault (or OpenBao) is and how to log in. Holds paths of secret files, never a secret."""

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from modelfs.format.canonical import StrictModel

SERVICE_ACCOUNT_TOKEN = Path("/var/run/secrets/kubernetes.io/serviceaccount/token")


def _absolute(path: Path) -> Path:
    # Made absolute here and now: a daemon changes its directory before it reads the file.
    if str(path) in ("", ".") or "\0" in str(path):
        raise ValueError("not the path of a file")
    return Path(os.path.abspath(path))


FilePath = Annotated[Path, Field(strict=False), AfterValidator(_absolute)]
ApiPath = Annotated[str, Field(pattern=r"^[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*\z", max_length=256)]
"""A mount in the service's API, for example `transit` or `team/transit`."""
Role = Annotated[str, Field(pattern=r"^[^\x00-\x1f\x7f]+\z", max_length=256)]


class TokenFile(StrictModel):
    """A token in a file, written by an operator or by an agent that keeps it fresh."""

    method: Literal["token"] = "token"
    path: FilePath


class AppRole(StrictModel):
    """Role id and secret id from files; the second may hold a response-wrapping token instead, which is unwrapped once."""

    method: Literal["approle"] = "approle"
    role_id_file: FilePath
    secret_id_file: FilePath
    secret_id_wrapped: bool = False
    mount: ApiPath = "approle"


class Kubernetes(StrictModel):
    """The pod's service account token. The platform sets that file's mode, so others may be able to read it."""

    method: Literal["kubernetes"] = "kubernetes"
    role: Role
    token_file: FilePath = SERVICE_ACCOUNT_TOKEN
    mount: ApiPath = "kubernetes"


class Jwt(StrictModel):
    """A signed token of another identity provider, from a file."""

    method: Literal["jwt"] = "jwt"
    role: Role
    token_file: FilePath
    mount: ApiPath = "jwt"


class Certificate(StrictModel):
    """A TLS client certificate and its key, both PEM."""

    method: Literal["cert"] = "cert"
    cert_file: FilePath
    key_file: FilePath
    role: Role | None = None
    mount: ApiPath = "cert"


AUTH_METHODS: dict[str, type[StrictModel]] = {
    "token": TokenFile,
    "approle": AppRole,
    "kubernetes": Kubernetes,
    "jwt": Jwt,
    "cert": Certificate,
}
"""What `method` may say -> what goes with it."""

AuthMethod = Annotated[TokenFile | AppRole | Kubernetes | Jwt | Certificate, Field(discriminator="method")]


class VaultSettings(StrictModel):
    """Which service, and how to log in there.

    The only environment variables that count are VAULT_ADDR, where `address` is None, and OpenSSL's own SSL_CERT_FILE and SSL_CERT_DIR,
    where `ca_file` is. VAULT_TOKEN, VAULT_NAMESPACE, VAULT_CACERT and proxies are not looked at.
    """

    auth: AuthMethod | None = None
    """None: there is no Vault to log in to; then only what other key services share with it counts (`insecure_http`)."""
    address: Annotated[str, Field(max_length=1024)] | None = None
    namespace: Annotated[str, Field(pattern=r"^[\x21-\x7e]+\z", max_length=256)] | None = None
    ca_file: FilePath | None = None
    """The only certificate authorities that count; None: those of the system."""
    insecure_http: bool = False
    """Allow plain http to a loopback address, and nowhere else. Also for the endpoints of other key services."""
    allow_batch_tokens: bool = False
    """Allow logins that nobody can revoke."""

    @model_validator(mode="after")
    def _says_how_to_log_in(self) -> "VaultSettings":
        """Whoever names a Vault says how to log in there."""
        if self.auth is None and self.model_fields_set - {"auth", "insecure_http"}:
            raise ValueError("vault.auth is missing: say how to log in")
        return self
