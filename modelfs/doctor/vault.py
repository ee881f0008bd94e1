"""What an operator can get wrong about a key in a Vault: the server, its certificate, the login, and what the login's policy allows.

Asks the server and changes nothing there, except that a login makes a token, which is revoked again if its policy allows that. A token
from a file is used as it is. No check's text holds a secret or words of the server.
"""

import contextlib
import json
import re
import socket
import ssl
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from modelfs.doctor.check import Check
from modelfs.errors import KeyAccessError, KeyDeniedError, KeyServiceError
from modelfs.keys.vault import connect, open_provider
from modelfs.keys.vault_api import RefusedError, VaultApi, value_at
from modelfs.keys.vault_session import Session, VaultConnection
from modelfs.keys.vault_settings import AppRole, Certificate, TokenFile, VaultSettings
from modelfs.keys.vault_wire import Endpoint, Wire

TIMEOUT_S = 10.0
LEASE_TTL_S = 300.0
"""The default of `modelfs mount --ttl`."""
MAX_SKEW_S = 60
_SOON_S = 7 * 86400

_NO_KEY = "modelfs-doctor-no-such-key"
_OPENS_NOTHING = "vault:v1:AAAA"
"""Shorter than any wrapped key: it is refused after the permission was looked at, and before the key is used."""


def check_vault(
    uri: str, settings: VaultSettings | None, now: Callable[[], float] = time.time, lease_ttl_s: float = LEASE_TTL_S
) -> list[Check]:
    """Every check of `vault:MOUNT/KEY`, up to the first that leaves nothing to ask.

    Args:
        uri: The KEK.
        settings: Where the Vault is and how to log in.
        now: The wall clock.
        lease_ttl_s: How long a mount is to serve on without an answer: a login must last as long.

    Raises:
        ConfigError: The URI or the settings are malformed.
    """
    reference = uri.removeprefix("vault:")
    open_provider(reference, settings)  # is the reference well-formed?
    if settings is None:
        raise RuntimeError("open_provider refuses to have no settings")
    # Batch tokens are reported, not refused.
    connection = connect(settings.model_copy(update={"allow_batch_tokens": True}))
    checks = check_server(connection, now)
    if any(check.level == "error" for check in checks):
        return checks
    return checks + check_login(connection, settings, reference, lease_ttl_s)


# The server.


def check_server(connection: VaultConnection, now: Callable[[], float]) -> list[Check]:
    """Whether it answers, over which TLS, and in which state it is."""
    endpoint = connection.endpoint
    try:
        connection.load_certificate()
        health = _ask_health(endpoint)
    except KeyAccessError as exc:
        return [Check("vault-server", "error", str(exc), "see that the address, the CA file and the network are right")]
    checks = [] if health.status is None else [judge_state(endpoint, health.status)]
    if not checks:
        return [Check("vault-server", "error", f"{endpoint} is not a Vault, or something stands in between", "check the address")]
    checks.append(_check_tls(endpoint, now()))
    if health.time is not None:
        checks.append(judge_skew(health.time - now()))
    return checks


@dataclass(frozen=True)
class Health:
    """What sys/health said."""

    status: int | None
    """None: it is no answer of a Vault."""
    time: int | None


def _ask_health(endpoint: Endpoint) -> Health:
    wire = Wire(endpoint, TIMEOUT_S)
    try:
        reply = wire.send("GET", "/v1/sys/health", {"X-Vault-Request": "true"}, None)
    finally:
        wire.close()
    with contextlib.suppress(ValueError, RecursionError):
        answer = json.loads(reply.body)
        if isinstance(answer, dict) and isinstance(answer.get("sealed"), bool):
            seconds = answer.get("server_time_utc")
            return Health(reply.status, seconds if isinstance(seconds, int) else None)
    return Health(None, None)


def judge_state(endpoint: Endpoint, status: int) -> Check:
    """What the status of sys/health means."""
    name = "vault-server"
    if status == 200:
        return Check(name, "ok", f"{endpoint} is unsealed and active")
    if status in (429, 473):
        return Check(name, "warning", f"{endpoint} is a standby server", "give the address of the active one, or of a load balancer")
    if status == 472:
        return Check(name, "error", f"{endpoint} is a standby server of another data centre, which serves nobody", "give the active one")
    if status == 501:
        return Check(name, "error", f"{endpoint} is not initialised", "initialise it, and make the key (docs/VAULT.md)")
    if status == 503:
        return Check(name, "error", f"{endpoint} is sealed", "unseal it: until then mounts serve to their lease's end, and then lock")
    return Check(name, "unknown", f"{endpoint} answers with status {status}", "look into its log")


def _check_tls(endpoint: Endpoint, now: float) -> Check:
    if endpoint.tls is None:
        return Check("vault-tls", "warning", "none: plain http to a loopback address", "use https")
    try:
        with (
            socket.create_connection((endpoint.host, endpoint.port), TIMEOUT_S) as plain,
            endpoint.tls.wrap_socket(plain, server_hostname=endpoint.host) as tls,
        ):
            ends = ssl.cert_time_to_seconds(str((tls.getpeercert() or {})["notAfter"]))
            return judge_tls(tls.version() or "TLS", ends - now)
    except (OSError, KeyError, ValueError) as exc:
        return Check("vault-tls", "unknown", f"TLS broke off the second time ({type(exc).__name__})", "try again")


def judge_tls(version: str, left_s: float) -> Check:
    """What is to be said of a verified connection: its version, and how long the certificate is good."""
    found = f"{version.replace('TLSv', 'TLS ')}, certificate verified, good for {_span(left_s)}"
    if left_s < _SOON_S:
        return Check("vault-tls", "warning", found, "renew the server's certificate: mounts lock when it ends")
    if version == "TLSv1.2":
        return Check("vault-tls", "ok", found, "allow TLS 1.3 on the server")
    return Check("vault-tls", "ok", found)


def judge_skew(ahead_s: float) -> Check:
    """The server's clock against this one."""
    if abs(ahead_s) > MAX_SKEW_S:
        found = f"the server's is {_span(abs(ahead_s))} {'ahead of' if ahead_s > 0 else 'behind'} this host's"
        return Check("vault-clock", "warning", found, "run NTP on both: certificates and expiry dates are judged by this host's clock")
    return Check("vault-clock", "ok", f"within {MAX_SKEW_S} s of the server's")


# The login.


def check_login(connection: VaultConnection, settings: VaultSettings, reference: str, lease_ttl_s: float) -> list[Check]:
    """Log in as a mount would, and look at the token, the key and the policy."""
    auth = settings.auth
    if isinstance(auth, AppRole) and auth.secret_id_wrapped:
        found = "not tried: a wrapped secret id opens once, and the mount needs it"
        return [Check("vault-login", "unknown", found, "try with a second secret id of the same role")]
    try:
        with connection.operation(TIMEOUT_S) as api:
            session = connection.session
            if session is None:
                raise RuntimeError("an operation has a session")
            try:
                return _look_around(api, session, settings, reference, lease_ttl_s)
            finally:
                if not isinstance(auth, TokenFile):
                    # Best effort: a host's policy need not allow it, and then the token ends with its TTL.
                    with contextlib.suppress(RefusedError, KeyAccessError):
                        api.client.auth.token.revoke_self()
    except KeyDeniedError as exc:
        return [Check("vault-login", "error", str(exc), "it was revoked, has ended, or its policy lacks lookup-self and renew-self")]
    except KeyServiceError as exc:
        return [Check("vault-login", "error", str(exc), "mend that, then run modelfs doctor again")]


def _look_around(api: VaultApi, session: Session, settings: VaultSettings, reference: str, lease_ttl_s: float) -> list[Check]:
    auth = settings.auth
    if auth is None:
        raise RuntimeError("open_provider refuses to have no login")
    data = value_at(api.client.auth.token.lookup_self(), "data")
    method = "a token file" if isinstance(auth, TokenFile) else "a TLS certificate" if isinstance(auth, Certificate) else auth.method
    checks = [
        Check("vault-login", "ok", f"logged in by {method}"),
        judge_type(data.get("type"), settings.allow_batch_tokens),
        judge_ttl(session, isinstance(auth, TokenFile), lease_ttl_s),
        judge_policies(data),
    ]
    mount, _, key = reference.rpartition("/")
    checks.append(_check_key(api, mount, key))
    try:
        capabilities = _ask_capabilities(api, mount, key)
    except RefusedError:
        advice = "give the policy `update` on sys/capabilities-self, then more can be checked"
        checks.append(Check("vault-excess", "unknown", "the token may not ask what it may do", advice))
        return checks
    return [*checks, judge_decrypt(capabilities, mount, key), judge_excess(capabilities, mount, key)]


def judge_type(kind: object, batch_allowed: bool) -> Check:
    """Service tokens can be revoked, batch tokens cannot."""
    if kind == "service":
        return Check("vault-token", "ok", "a service token, which can be revoked")
    if kind == "batch":
        advice = "set the role's token_type to service"
        found = "a batch token, which nobody can revoke"
        return Check("vault-token", "warning" if batch_allowed else "error", found, advice)
    return Check("vault-token", "unknown", "neither a service nor a batch token", "set the role's token_type to service")


def judge_ttl(session: Session, is_file: bool, lease_ttl_s: float = LEASE_TTL_S) -> Check:
    """When the token ends, and whether that can be put off."""
    name = "vault-ttl"
    if session.expires_at is None:
        return Check(name, "warning", "the token never ends: a stolen one is good for ever", "use a token or a role with a TTL")
    ttl = f"TTL {_span(session.ttl_s)}"
    if not session.renewable:
        found = f"{ttl}, {_span(session.expires_at - session.started_at)} left, not renewable"
        if is_file:
            return Check(name, "warning", found, "mounts lock at its end: write a new token into the file in time, or use a renewable one")
        return Check(name, "ok", f"{found}: mounts log in again")
    if session.end_at is None:
        found = f"{ttl}, renewable without end (periodic)"
        left = None
    else:
        left = session.end_at - session.started_at
        found = f"{ttl}, renewable, ends for good in {_span(left)}"
    if session.ttl_s < lease_ttl_s:
        advice = f"give the role a token_ttl of {lease_ttl_s:.0f} s or more"
        return Check(name, "warning", f"{found}: an outage may last no longer than the TTL", advice)
    if is_file and left is not None and left < 86400:
        return Check(name, "warning", found, "mounts lock then: write a new token into the file in time")
    return Check(name, "ok", found)


def judge_policies(data: dict[str, Any]) -> Check:
    """`root` opens everything."""
    policies = _strings(data.get("policies")) | _strings(data.get("identity_policies"))
    if "root" in policies:
        return Check("vault-root", "warning", "a root token: it may do everything", "use a login with the policy for hosts (docs/VAULT.md)")
    return Check("vault-root", "ok", "no root token")


def _strings(value: object) -> set[str]:
    return {each for each in value if isinstance(each, str)} if isinstance(value, list) else set()


def _check_key(api: VaultApi, mount: str, key: str) -> Check:
    """Ask for something impossible to be unwrapped: the refusal says whether the key is there and may be used."""
    name, what = "vault-key", f"{mount}/{key}"
    try:
        api.client.secrets.transit.decrypt_data(key, ciphertext=_OPENS_NOTHING, context="bW9kZWxmcw==", mount_point=mount)
    except RefusedError as refusal:
        if refusal.status == 403:
            advice = f"give the login's policy `update` on {mount}/decrypt/{key}"
            return Check(name, "error", f"the token may not unwrap with {what}", advice)
        if refusal.status == 404 or "does not exist" in str(refusal):
            return Check(name, "error", f"{what}: {refusal}", "check the name in --kek, the secrets engine and the namespace")
        return Check(name, "ok", f"{what} exists, and the token may unwrap with it")
    except KeyServiceError as exc:
        return Check(name, "unknown", str(exc), "try again")
    return Check(name, "error", f"{what} unwraps what is no wrapped key", "this is no Vault: treat the address as wrong or swapped")


# What the token may do.


def asked_paths(mount: str, key: str) -> dict[str, str]:
    """Paths that a host needs not -> what they are good for."""
    return {
        f"{mount}/decrypt/{_NO_KEY}": "unwrap with other keys",
        f"{mount}/encrypt/{key}": "wrap (a publisher's right)",
        f"{mount}/datakey/plaintext/{key}": "make data keys",
        f"{mount}/rewrap/{key}": "rewrap",
        f"{mount}/keys/{key}": "read or change the key",
        f"{mount}/keys/{key}/config": "configure the key",
        f"{mount}/keys/{key}/rotate": "rotate the key",
        f"{mount}/export/encryption-key/{key}": "export the key",
        f"{mount}/backup/{key}": "back the key up",
        "auth/token/create": "make tokens",
        "sys/policies/acl/modelfs-host": "see or change policies",
        "sys/mounts": "see or change secrets engines",
    }


def _ask_capabilities(api: VaultApi, mount: str, key: str) -> dict[str, set[str]]:
    paths = [f"{mount}/decrypt/{key}", *asked_paths(mount, key)]
    answer = api.client.sys.get_capabilities(paths=paths)
    data = value_at(answer, "data")
    return {path: _strings(data.get(path) if isinstance(data, dict) else None) for path in paths}


def judge_decrypt(capabilities: dict[str, set[str]], mount: str, key: str) -> Check:
    """What a host needs, and not more on that path."""
    path = f"{mount}/decrypt/{key}"
    has = capabilities.get(path, set())
    if not has & {"update", "root"}:
        return Check("vault-decrypt", "error", f"no `update` on {path}", "give it to the login's policy")
    more = has - {"update"}
    if more:
        found = f"{_list(more)} besides `update` on {path}" if "root" not in has else f"everything on {path}"
        return Check("vault-decrypt", "warning", found, "leave only `update`")
    return Check("vault-decrypt", "ok", f"`update` on {path}, and nothing else there")


def judge_excess(capabilities: dict[str, set[str]], mount: str, key: str) -> Check:
    """What a host does not need: a stolen login is worth that much more."""
    excess = []
    for path, use in asked_paths(mount, key).items():
        has = capabilities.get(path, set()) - {"deny"}
        if has:
            excess.append(f"{use} ({_list(has)} on {path})")
    if any("sudo" in has for has in capabilities.values()):
        excess.append("sudo")
    if excess:
        return Check(
            "vault-excess", "warning", f"the token may also {'; '.join(excess)}", "use a policy for hosts alone (policies/host.hcl)"
        )
    return Check("vault-excess", "ok", "the token may do nothing else that was asked about")


def _list(words: Iterable[str]) -> str:
    return ", ".join(f"`{word}`" for word in sorted(words) if re.fullmatch(r"[a-z_]{1,20}", word)) or "something"


def _span(seconds: float) -> str:
    """A duration for a person."""
    for size, unit in ((2 * 86400, "days"), (2 * 3600, "hours"), (2 * 60, "minutes")):
        if seconds >= size:
            return f"{seconds / (size / 2):.0f} {unit}"
    return f"{seconds:.0f} s"
