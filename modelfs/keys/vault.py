"""KEKs in the transit secrets engine of HashiCorp Vault or OpenBao: `vault:MOUNT/KEY` (docs/VAULT.md).

The DEK is made locally and wrapped by `encrypt`. A key made with `derived=true` binds it to model and key id by its context. For any other
key the service ignores the context, and the commitment alone guards.

Environment: VAULT_ADDR, where the settings name no address.
"""

import os
import re
from base64 import b64decode, b64encode
from collections.abc import Callable

from modelfs.errors import ConfigError, KeyAccessError, KeyServiceError
from modelfs.format.fields import encode_base64
from modelfs.format.keysfile import Recipient, recipient
from modelfs.format.limits import MAX_WRAPPED_SIZE
from modelfs.keys.interface import Attempt, EntryRefusedError, Grant, KeyProvider
from modelfs.keys.vault_api import RefusedError, VaultApi, text_at
from modelfs.keys.vault_session import Session, VaultConnection, boottime
from modelfs.keys.vault_settings import VaultSettings
from modelfs.keys.vault_wire import open_endpoint

COMMAND_TIMEOUT_S = 10.0

_REFERENCE = re.compile(r"((?:[A-Za-z0-9_][A-Za-z0-9._-]*/)+)([A-Za-z0-9_][A-Za-z0-9._-]*)")
_WRAPPED = re.compile(r"vault:v([1-9][0-9]{0,8}):[A-Za-z0-9+/]+=*")


class VaultProvider(KeyProvider):
    """Wraps and unwraps by a transit key. Logs in when it is first used; holds no secret before that."""

    scheme = "vault"
    is_name_global = False

    def __init__(self, reference: str, connection: VaultConnection, timeout_s: float = COMMAND_TIMEOUT_S) -> None:
        """Bind one key.

        Args:
            reference: `MOUNT/KEY`.
            connection: From `connect`.
            timeout_s: For each wrapping or unwrapping, with the login that it may need.
        """
        found = _REFERENCE.fullmatch(reference)
        if not found or len(reference) > 256:
            raise ConfigError(f"vault:{reference} does not name a key: use vault:MOUNT/KEY, for example vault:transit/models")
        self._mount, self._key = found[1].rstrip("/"), found[2]
        self._reference = reference
        self.connection = connection
        self._timeout_s = timeout_s

    def describe(self) -> str:
        """`vault:MOUNT/KEY`, never the address."""
        return f"vault:{self._reference}"

    def is_recipient(self, recipient: Recipient) -> bool:
        """Same scheme, mount and key."""
        return recipient.scheme == self.scheme and recipient.key_ref == self._reference

    def _wrap_key(self, dek: bytes, context: bytes) -> Recipient:
        with self.connection.operation(self._timeout_s) as api:
            try:
                answer = api.client.secrets.transit.encrypt_data(
                    self._key, plaintext=b64encode(dek).decode(), context=b64encode(context).decode(), mount_point=self._mount
                )
            except RefusedError as refusal:
                if refusal.status == 403:
                    raise self.connection.denied(f"`update` on {self._mount}/encrypt/{self._key}") from None
                raise KeyAccessError(
                    f"the key service {self.connection.endpoint} refuses to wrap with {self.describe()}: {refusal}; "
                    "check that the secrets engine is mounted there and that the key exists"
                ) from None
        wrapped = text_at(answer, "data", "ciphertext")
        if not _WRAPPED.fullmatch(wrapped) or len(wrapped) > MAX_WRAPPED_SIZE:
            raise KeyServiceError(f"the key service {self.connection.endpoint} answered with something that is no wrapped key")
        return recipient(self.scheme, self._reference, "", wrapped.encode())

    def _unwrap_key(self, recipient: Recipient, context: bytes) -> bytes | None:
        found = _WRAPPED.fullmatch(recipient.wrapped_key.decode("latin-1"))
        if not found:
            return None  # nothing of this service's: it need not be asked
        with self.connection.operation(self._timeout_s) as api:
            try:
                answer = api.client.secrets.transit.decrypt_data(
                    self._key, ciphertext=found[0], context=b64encode(context).decode(), mount_point=self._mount
                )
            except RefusedError as refusal:
                if refusal.status == 403:
                    raise self.connection.denied(f"`update` on {self._mount}/decrypt/{self._key}") from None
                raise EntryRefusedError(
                    f"the key service {self.connection.endpoint} does not unwrap the key with {self.describe()} version {found[1]}: "
                    f"{refusal}; check that the key exists, that its min_decryption_version allows this version, and that the model was "
                    "sealed for this very key"
                ) from None
        try:
            return b64decode(text_at(answer, "data", "plaintext"), validate=True)
        except ValueError:
            return b""  # wrong bytes; not None, which would say that the entry is somebody else's

    def _rewrap_key(self, recipient: Recipient, context: bytes) -> Recipient | None:
        found = _WRAPPED.fullmatch(recipient.wrapped_key.decode("latin-1"))
        if not found:
            return None
        with self.connection.operation(self._timeout_s) as api:
            try:
                self._rewrap(api, found, b"not " + context)
            except EntryRefusedError:
                return recipient.model_copy(update={"wrapped": encode_base64(self._rewrap(api, found, context).encode())})
        # Not a derived key: it ignores the context, and who writes the storage could have another model's wrapped key made new with it.
        return None

    def _rewrap(self, api: VaultApi, found: re.Match[str], context: bytes) -> str:
        try:
            answer = api.client.secrets.transit.rewrap_data(
                self._key, ciphertext=found[0], context=b64encode(context).decode(), mount_point=self._mount
            )
        except RefusedError as refusal:
            if refusal.status == 403:
                raise self.connection.denied(f"`update` on {self._mount}/rewrap/{self._key}") from None
            raise EntryRefusedError(
                f"the key service {self.connection.endpoint} does not rewrap the key with {self.describe()} version {found[1]}: {refusal}"
            ) from None
        wrapped = text_at(answer, "data", "ciphertext")
        if not _WRAPPED.fullmatch(wrapped) or len(wrapped) > MAX_WRAPPED_SIZE:
            raise KeyServiceError(f"the key service {self.connection.endpoint} answered with something that is no wrapped key")
        return wrapped

    def _prove(self, attempt: Attempt) -> Grant:
        connection = self.connection
        connection.session = Session.from_bytes(attempt.session) if attempt.session is not None else None
        with connection.operation(attempt.timeout_s, is_proof=True):
            if connection.session is not None:
                # Were a renewal forgotten because unwrapping fails, a token would count as over before its end, and a revoked one then
                # as ended by itself.
                attempt.keep(connection.session.to_bytes())
            dek, entry = attempt.open_entry(self)
        if connection.session is None:
            raise RuntimeError("an operation leaves a session")
        return Grant(dek, connection.session.to_bytes(), connection.left_s(), entry.key_version, connection.session.accessor)


def connect(settings: VaultSettings | None, clock: Callable[[], float] = boottime) -> VaultConnection:
    """Check where the service is and how its certificate is verified. No network; reads no secret.

    Raises:
        ConfigError: No settings, no address, or one that is not allowed.
    """
    if settings is None or settings.auth is None:
        raise ConfigError(
            "a key in a Vault needs to know how to log in: use --vault-auth, for example --vault-auth token:/run/modelfs/token"
        )
    address = settings.address or os.environ.get("VAULT_ADDR")
    if not address:
        raise ConfigError("no address of the key service: use --vault-address https://HOST:PORT, or set VAULT_ADDR")
    return VaultConnection(settings, open_endpoint(address, settings.ca_file, settings.insecure_http), clock)


def open_provider(reference: str, settings: VaultSettings | None) -> VaultProvider:
    """The provider of `vault:MOUNT/KEY`; errors as `connect`."""
    return VaultProvider(reference, connect(settings))
