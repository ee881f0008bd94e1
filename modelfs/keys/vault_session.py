"""Logging in to a Vault, and staying logged in to the token's own end and not one login longer (docs/DESIGN.md, key service).

A token that is refused before its own known end was revoked: that is a denial, and no new login follows, or revocation would undo itself.
So this module must know when a token ends by itself:
- its present end: when the last renewal was asked for, plus what it granted, which the service rounds down;
- its last end: asked for a renewal of a hundred years, the service caps it, and so tells; a second renewal makes the token short again.
"""

import contextlib
import json
import logging
import re
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from modelfs.crypto.keyfiles import read_private
from modelfs.errors import ConfigError, KeyDeniedError, KeyServiceError
from modelfs.keys.vault_api import RefusedError, VaultApi, seconds_at, text_at, value_at
from modelfs.keys.vault_settings import AppRole, Certificate, Jwt, Kubernetes, TokenFile, VaultSettings
from modelfs.keys.vault_wire import Endpoint, Wire

MAX_SECRET_SIZE = 16 * 1024
MAX_SESSION_SIZE = 2048
LOGIN_AT = 0.8
"""Share of a token's life after which the next login is due."""
_FOREVER_S = 100 * 365 * 86400
_PRECISION_S = 1
"""What `lookup-self` may say too much, and a renewal may grant too little."""
_TOKEN = re.compile(r"[\x21-\x7e]{1,1500}")

logger = logging.getLogger(__name__)


def boottime() -> float:
    """Seconds on CLOCK_BOOTTIME, which runs on while the host is suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


@dataclass(frozen=True)
class Session:
    """A login, as one proof leaves it to the next. Times are CLOCK_BOOTTIME seconds."""

    token: str = field(repr=False)
    accessor: str
    renewable: bool
    ttl_s: int
    """What the token was issued for, and what each renewal asks for."""
    started_at: float
    expires_at: float | None
    """When the token ends unless it is renewed, at the earliest; None: it does not end."""
    end_at: float | None
    """When the token's max TTL ends; None: never, or not known."""
    secret_id: str | None = field(repr=False, default=None)
    """An unwrapped secret id: the wrapping token opens only once, and later logins need it."""

    def to_bytes(self) -> bytes:
        """At most 2 KiB; holds secrets."""
        data = json.dumps(asdict(self)).encode()
        if len(data) > MAX_SESSION_SIZE:
            raise KeyServiceError("the key service's token is too long to be kept: use a service token")
        return data

    @classmethod
    def from_bytes(cls, data: bytes) -> "Session":
        """What `to_bytes` gave."""
        return cls(**json.loads(data))

    def is_over(self, now: float) -> bool:
        """Whether the token may have ended by itself."""
        return self.expires_at is not None and now >= self.expires_at

    def is_due(self, now: float) -> bool:
        """Whether the next login is due."""
        end = self.end_at if self.renewable else self.expires_at
        return end is not None and now >= self.started_at + LOGIN_AT * (end - self.started_at)

    def is_fresh(self, now: float) -> bool:
        """Whether it may be used without renewing it first, where nothing is to be proved."""
        left = self.left_s(now)
        return not self.is_due(now) and (left is None or left > self.ttl_s / 2)

    def left_s(self, now: float) -> float | None:
        """Seconds to the token's own end; None: no end."""
        return None if self.expires_at is None else max(0.0, self.expires_at - now)


class VaultConnection:
    """The settings of one service and the login there. Opened without network and without a secret; belongs to one thread."""

    def __init__(self, settings: VaultSettings, endpoint: Endpoint, clock: Callable[[], float] = boottime) -> None:
        """Use `modelfs.keys.vault.connect`."""
        self._settings = settings
        self.endpoint = endpoint
        self._clock = clock
        self._api: VaultApi | None = None
        self._has_certificate = False
        self.session: Session | None = None

    @contextlib.contextmanager
    def operation(self, timeout_s: float, is_proof: bool = False) -> Iterator[VaultApi]:
        """A conversation with a login that is good, bounded as a whole; one inside another is the same one.

        Args:
            timeout_s: For everything that is done inside.
            is_proof: Renew the login now, however fresh it is.

        Raises:
            KeyDeniedError: The service refuses the login, or has revoked it.
            KeyServiceError: No answer that counts.
        """
        if self._api is not None:
            yield self._api
            return
        self.load_certificate()
        self._api = VaultApi(Wire(self.endpoint, timeout_s), self._settings.namespace)
        try:
            if is_proof or self.session is None or not self.session.is_fresh(self._clock()):
                self.session = self._live_session(self._api, self.session)
            self._api.token = self.session.token
            yield self._api
        finally:
            self._api.close()
            self._api = None

    def denied(self, permission: str) -> KeyDeniedError | KeyServiceError:
        """The error for a 403, which has named no reason."""
        if self.session is not None and self.session.is_over(self._clock()):
            return KeyServiceError(f"the login at {self.endpoint} ended meanwhile")
        return KeyDeniedError(
            f"the key service {self.endpoint} denies {permission}: give the login's policy that permission, or it was revoked"
        )

    def left_s(self) -> float | None:
        """Seconds to the end of the login's token; None: no end."""
        return self.session.left_s(self._clock()) if self.session is not None else None

    def _live_session(self, api: VaultApi, session: Session | None) -> Session:
        if session is None:
            return self._log_in(api, None)
        api.token = session.token
        is_due = session.is_due(self._clock())
        try:
            if is_due or not session.renewable:
                # A revoked token must be found before it is replaced. Not by a renewal: within a second of the max TTL, which it rounds,
                # OpenBao answers that with 500 ("past the max TTL, cannot renew"), and a good token would look like an outage.
                api.client.auth.token.lookup_self()
            else:
                session = self._extend(api, session)
        except RefusedError as refusal:
            if refusal.status == 403 and session.is_over(self._clock()):
                return self._log_in(api, session)
            raise self._not_renewed(session, refusal) from None
        if not session.is_due(self._clock()):
            return session
        try:
            following = self._log_in(api, session)
        except KeyServiceError as exc:
            logger.warning("the next login failed, going on with the old one to its end: %s", exc)
            following, api.token = session, session.token
        if following.token != session.token or not is_due or not session.renewable:
            return following
        try:
            return self._extend(api, session)
        except RefusedError as refusal:
            raise self._not_renewed(session, refusal) from None

    def _not_renewed(self, session: Session, refusal: RefusedError) -> KeyDeniedError | KeyServiceError:
        if refusal.status != 403 or session.is_over(self._clock()):
            return KeyServiceError(f"the key service {self.endpoint} does not renew the login: {refusal}")
        return KeyDeniedError(
            f"the key service {self.endpoint} refuses the login {session.accessor} before its own end: it was revoked "
            "(or may not `update` auth/token/renew-self any more), and modelfs does not log in again by itself"
        )

    def _extend(self, api: VaultApi, session: Session) -> Session:
        session, granted = self._renew(api, session, session.ttl_s)
        if granted < session.ttl_s - _PRECISION_S and session.expires_at is not None:
            # Capped: the max TTL is near, or nearer than was known.
            end = session.expires_at
            session = replace(session, end_at=end if session.end_at is None else min(end, session.end_at))
        return session

    def _renew(self, api: VaultApi, session: Session, increment_s: int) -> tuple[Session, int]:
        sent = self._clock()
        granted = seconds_at(api.client.auth.token.renew_self(increment=f"{increment_s}s"), "auth", "lease_duration")
        return replace(session, expires_at=sent + granted), granted

    # Logging in.

    def _log_in(self, api: VaultApi, earlier: Session | None) -> Session:
        auth, api.token = self._settings.auth, ""
        if isinstance(auth, TokenFile):
            token = self._secret(auth.path, "token")
            if earlier is not None and token == earlier.token:
                if earlier.is_over(self._clock()):
                    raise KeyServiceError(f"the token in {auth.path} has ended: put a new one there")
                api.token = token
                return earlier
            return self._adopt(api, token, None)
        if auth is None:
            raise RuntimeError("connect refuses to have no login")
        secret_id = earlier.secret_id if earlier is not None else None
        what = f"login by {auth.method} at auth/{auth.mount}"
        try:
            if isinstance(auth, AppRole):
                role_id = self._secret(auth.role_id_file, "role id")
                if auth.secret_id_wrapped:
                    secret_id = secret_id or self._unwrap_secret_id(api, auth)
                answer = api.client.auth.approle.login(
                    role_id, secret_id or self._secret(auth.secret_id_file, "secret id"), use_token=False, mount_point=auth.mount
                )
            elif isinstance(auth, Kubernetes):
                jwt = self._secret(auth.token_file, "service account token", others_may_read=True)
                answer = api.client.auth.kubernetes.login(auth.role, jwt, use_token=False, mount_point=auth.mount)
            elif isinstance(auth, Jwt):
                answer = api.client.auth.jwt.jwt_login(auth.role, self._secret(auth.token_file, "JWT"), use_token=False, path=auth.mount)
            else:
                answer = api.post(f"auth/{auth.mount}/login", **({} if auth.role is None else {"name": auth.role}))
        except RefusedError as refusal:
            if refusal.status == 403:
                raise KeyDeniedError(f"the key service {self.endpoint} denies the {what}: check the role and what it is bound to") from None
            raise KeyServiceError(
                f"the key service {self.endpoint} refuses the {what}: {refusal}; check the role, its credentials and what it is bound to"
            ) from None
        return self._adopt(api, text_at(answer, "auth", "client_token"), secret_id)

    def _adopt(self, api: VaultApi, token: str, secret_id: str | None) -> Session:
        """Learn what a new token is and when it ends."""
        if not _TOKEN.fullmatch(token):
            raise KeyServiceError("the key service's token is no token")
        api.token = token
        started = self._clock()
        try:
            data = value_at(api.client.auth.token.lookup_self(), "data")
        except RefusedError as refusal:
            if refusal.status == 403:
                raise KeyDeniedError(
                    f"the key service {self.endpoint} denies `read` on auth/token/lookup-self: the token is not valid (any more), "
                    "or its policy lacks that permission"
                ) from None
            raise KeyServiceError(f"the key service {self.endpoint} does not describe the token: {refusal}") from None
        self._check_kind(data)
        left = seconds_at(data, "ttl")
        renewable = data.get("renewable") is True
        ends = left > 0 or data.get("expire_time") is not None
        session = Session(
            token=token,
            accessor=text_at(data, "accessor"),
            renewable=renewable and ends,
            ttl_s=seconds_at(data, "creation_ttl") or left,
            started_at=started,
            expires_at=started + left - _PRECISION_S if ends else None,
            end_at=None,
            secret_id=secret_id,
        )
        if not session.renewable:
            return session
        try:
            if not data.get("period"):
                _longest, granted = self._renew(api, session, _FOREVER_S)
                session = replace(session, end_at=started + granted)
            return self._renew(api, session, session.ttl_s)[0]
        except RefusedError as refusal:
            if refusal.status == 403:
                raise self.denied("`update` on auth/token/renew-self") from None
            raise KeyServiceError(f"the key service {self.endpoint} does not renew the token: {refusal}") from None

    def _check_kind(self, data: Any) -> None:
        if text_at(data, "type") == "batch" and not self._settings.allow_batch_tokens:
            raise KeyServiceError(
                f"the login at {self.endpoint} gives a batch token, which nobody can revoke: "
                "set the role's token_type to service (or allow batch tokens)"
            )
        if data.get("num_uses"):
            raise KeyServiceError(
                f"the login at {self.endpoint} gives a token for a limited number of uses: set the role's token_num_uses to 0"
            )

    def _unwrap_secret_id(self, api: VaultApi, auth: AppRole) -> str:
        wrapping_token = self._secret(auth.secret_id_file, "wrapped secret id")
        try:
            path = text_at(api.post("sys/wrapping/lookup", token=wrapping_token), "data", "creation_path")
            if not re.fullmatch(rf"(?:.*/)?auth/{re.escape(auth.mount)}/role/[^/]+/(?:custom-)?secret-id", path):
                raise KeyServiceError(
                    f"{auth.secret_id_file} wraps something else than a secret id of auth/{auth.mount}: treat it as swapped"
                )
            api.token = wrapping_token
            return text_at(api.client.sys.unwrap(), "data", "secret_id")
        except RefusedError as refusal:
            raise KeyServiceError(
                f"the wrapped secret id in {auth.secret_id_file} cannot be unwrapped ({refusal.status}): it has expired or was unwrapped "
                "before; if that was not this host, somebody else has it: destroy it, and write a new one"
            ) from None
        finally:
            api.token = ""

    def _secret(self, path: Path, what: str, others_may_read: bool = False) -> str:
        try:
            text = read_private(path, MAX_SECRET_SIZE, what, others_may_read).decode().strip()
        except ConfigError as exc:
            raise KeyServiceError(str(exc)) from None
        except UnicodeDecodeError:
            text = ""
        if not re.fullmatch(r"[\x21-\x7e]+", text):
            raise KeyServiceError(f"the {what} {path} is not one word of text")
        return text

    def load_certificate(self) -> None:
        """Present the client certificate on every connection: the service wants to see it when a token is renewed, too."""
        auth = self._settings.auth
        if not isinstance(auth, Certificate) or self._has_certificate:
            return
        if self.endpoint.tls is None:
            raise KeyServiceError("a TLS certificate is no login over plain http")
        try:
            read_private(auth.key_file, MAX_SECRET_SIZE, "TLS key")
            # A password, so that OpenSSL does not ask for one on the terminal.
            self.endpoint.tls.load_cert_chain(auth.cert_file, auth.key_file, password="")
        except ConfigError as exc:
            raise KeyServiceError(str(exc)) from None
        except (ssl.SSLError, OSError):
            raise KeyServiceError(f"{auth.cert_file} and {auth.key_file} are not a certificate and its unencrypted key in PEM") from None
        self._has_certificate = True
