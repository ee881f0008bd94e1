"""A model sealed for a KMS key of its own, behind TLS and a switch, and what takes the key away."""

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.aws.emulators import Emulator, credentials_file, environment, provider
from tests.aws.impostor import error
from tests.helpers import KeySet
from tests.leases.impostor import server_context
from tests.leases.outages import impostor
from tests.leases.switch import Switch
from tests.leases.tls import TlsFront
from tests.leases.watching import RENEW_S, Wanted, seal_for

LONG_S = 30.0
"""A lease for what does not wait for its end."""
PROOF_TIMEOUT_S = 2.0
"""Emulators, TLS and a dozen mounts share the machine's processors with the proofs. No bound depends on it."""


@contextlib.contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Set them in this process, for a while."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


class Leased:
    """A sealed model, and the way of the host that mounts it to its key: switch, TLS, emulator."""

    def __init__(self, emulator: Emulator, authority: Any, keys: KeySet, base: Path) -> None:
        base.mkdir(exist_ok=True)
        self.emulator, self.kms = emulator, emulator.admin()
        self.key = emulator.key()
        self.alias = f"alias/{self.key.rpartition('/')[2]}"
        self.kms.create_alias(AliasName=self.alias, TargetKeyId=self.key)
        self.authority = authority
        self.context = server_context(*authority.issue("kms", is_server=True))
        self.front = TlsFront(self.context, emulator.port)
        self.switch = Switch(self.front.port)
        self.credentials = credentials_file(base / "credentials")
        self.environment = environment(self.switch.address, self.credentials, authority.path)
        with variables(self.environment):
            self.sealed = seal_for(provider(self.key), keys, base)

    def wanted(self, switch: Switch | None = None, reference: str = "", ttl_s: float = LONG_S) -> Wanted:
        """A mount of it."""
        options: list[object] = ["--kek", f"awskms:{reference or self.key}", "--renew-every", RENEW_S, "--ttl", ttl_s]
        options += ["--proof-timeout", PROOF_TIMEOUT_S]
        address = {"AWS_ENDPOINT_URL_KMS": switch.address} if switch is not None else {}
        return Wanted(self.sealed, options, {**self.environment, **address})

    def close(self) -> None:
        self.switch.close()
        self.front.close()


@dataclass(frozen=True)
class Denial:
    """Who says no, what it takes, and what the audit log says of it."""

    emulator: str
    act: Callable[[Leased, contextlib.ExitStack], None]
    reason: str
    by_alias: bool = False


def answering(code: str) -> Callable[[Leased, contextlib.ExitStack], None]:
    """Neither emulator can be brought to say this: from now on somebody answers in its place."""

    def act(leased: Leased, stack: contextlib.ExitStack) -> None:
        leased.switch.lead_to(stack.enter_context(impostor(leased.context, error(code))))

    return act


DENIALS = {
    "access denied": Denial("ministack", answering("AccessDeniedException"), "no permission"),
    "access key deleted": Denial("ministack", answering("UnrecognizedClientException"), "the access key does not exist"),
    "key disabled": Denial("ministack", lambda leased, _: leased.kms.disable_key(KeyId=leased.key), "the key is disabled"),
    "deletion scheduled": Denial(
        "ministack", lambda leased, _: leased.kms.schedule_key_deletion(KeyId=leased.key, PendingWindowInDays=7), "pending deletion"
    ),
    "alias removed": Denial(
        "moto", lambda leased, _: leased.kms.delete_alias(AliasName=leased.alias), "no such key or alias", by_alias=True
    ),
    "alias names another key": Denial("ministack", answering("IncorrectKeyException"), "wrapped by another key", by_alias=True),
}
