"""Key providers: who wraps and unwraps DEKs. A provider's module is imported only when its scheme is used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from modelfs.errors import ConfigError
from modelfs.format.limits import MAX_RECIPIENTS
from modelfs.keys.interface import KeyProvider
from modelfs.keys.signer_options import SignerOptions

if TYPE_CHECKING:
    from modelfs.crypto.signing import Signer
    from modelfs.keys.vault_settings import VaultSettings

_PROVIDERS = {
    "awskms": "modelfs.keys.aws",
    "file": "modelfs.keys.file",
    "vault": "modelfs.keys.vault",
    "gcpkms": "modelfs.keys.gcp",
}
"""Module of each scheme; it has `open_provider(reference)`, for Vault with the settings, for AWS with what they say of plain http."""
_EXTRAS = {"hvac": "vault", "boto3": "aws", "botocore": "aws", "google": "gcp", "google_crc32c": "gcp", "azure": "azure", "pkcs11": "hsm"}
"""Which extra of modelfs brings a package that is missing."""
_SIGNERS = {
    "awskms": "modelfs.keys.aws_sign",
    "azurekms": "modelfs.keys.azure_sign",
    "gcpkms": "modelfs.keys.gcp_sign",
    "hsm": "modelfs.keys.hsm_sign",
    "hv": "modelfs.keys.vault_sign",
}
"""Module of each scheme of signing keys; it has `open_signer(uri, options)`."""


def open_kek(uri: str, settings: VaultSettings | None = None) -> KeyProvider:
    """The provider that a KEK's URI names. Asks nobody yet.

    Args:
        uri: `scheme:reference`, for example `file:/etc/modelfs/kek` or `vault:transit/models`.
        settings: Where the Vault is and how to log in, for `vault:`.

    Raises:
        ConfigError: Unknown scheme, malformed reference, or unusable settings.
        KeyAccessError: A KEK file is unusable.
    """
    scheme, colon, reference = uri.partition(":")
    if not colon or scheme not in _PROVIDERS or not reference:
        known = ", ".join(f"{name}:..." for name in _PROVIDERS)
        raise ConfigError(f"{uri!r} does not name a KEK: use {known}, for example file:/etc/modelfs/kek")
    module = _import(_PROVIDERS[scheme])
    if scheme == "vault":
        open_vault: Callable[[str, VaultSettings | None], KeyProvider] = module.open_provider
        return open_vault(reference, settings)
    if scheme == "awskms":
        open_aws: Callable[[str, bool], KeyProvider] = module.open_provider
        return open_aws(reference, settings is not None and settings.insecure_http)
    open_provider: Callable[[str], KeyProvider] = module.open_provider
    return open_provider(reference)


MAX_KEKS = 8
"""KEKs of one host. A proof asks one after the other within a second or so: more would have no time to answer."""


@dataclass(frozen=True)
class Kek:
    """One of a host's KEKs, not opened yet: holds no secret."""

    uri: str
    vault: VaultSettings | None
    """Where its Vault is and how to log in there."""
    name: str
    """The URI; with the service's address where the host has that URI at two."""

    def open(self) -> KeyProvider:
        """As `open_kek`."""
        return open_kek(self.uri, self.vault)


def list_keks(wanted: Sequence[tuple[str, VaultSettings | None]]) -> tuple[Kek, ...]:
    """A host's KEKs in order of preference, from URIs with the settings of each. Asks nobody.

    Raises:
        ConfigError: None, too many, or one twice.
    """
    if not wanted:
        raise ConfigError("no KEK is named: use --kek URI, for example --kek file:/etc/modelfs/kek")
    if len(wanted) > MAX_KEKS:
        raise ConfigError(f"{len(wanted)} KEKs are named, and a host may have {MAX_KEKS}: leave some out")
    for one, count in Counter(wanted).items():
        if count > 1:
            raise ConfigError(f"the KEK {one[0]} is named twice: name it once")
    uses = Counter(uri for uri, _ in wanted)

    def name(uri: str, vault: VaultSettings | None) -> str:
        return uri if uses[uri] == 1 or vault is None else f"{uri} at {vault.address or 'VAULT_ADDR'}"

    return tuple(Kek(uri, vault, name(uri, vault)) for uri, vault in wanted)


def open_keks(uris: Sequence[str], settings: VaultSettings | None = None) -> list[KeyProvider]:
    """Providers of several KEKs, for a command; errors as `open_kek`.

    Raises:
        ConfigError: None, too many, or one twice, by whatever path.
    """
    if not uris:
        raise ConfigError("no KEK is named: use --kek URI, for example --kek file:/etc/modelfs/kek")
    if len(uris) > MAX_RECIPIENTS:
        raise ConfigError(f"{len(uris)} KEKs are named, and a model has at most {MAX_RECIPIENTS} recipients: leave some out")
    providers = [open_kek(uri, settings) for uri in uris]
    for one, count in Counter(provider.describe() for provider in providers).items():
        if count > 1:
            raise ConfigError(f"the KEK {one} is named twice: name it once")
    return providers


def open_signer(uri: str, settings: VaultSettings | None = None, keks: Sequence[KeyProvider] = (), pin_file: Path | None = None) -> Signer:
    """The signer that `--sign-key` names.

    Args:
        uri: The path of a private key file, or a key in a service or device: see `_SIGNERS`.
        settings: As for `open_kek`.
        keks: Providers with the same settings, whose login in a Vault is shared.
        pin_file: Holds the PIN of an HSM's token.

    Raises:
        ConfigError: Malformed, an unusable file, or a package that is not installed.
        KeyAccessError: The service or device does not show the public key.
    """
    scheme = uri.partition(":")[0]
    if scheme not in _SIGNERS:
        from modelfs.crypto.signing import load_signer

        return load_signer(Path(uri))
    open_it: Callable[[str, SignerOptions], Signer] = _import(_SIGNERS[scheme]).open_signer
    return open_it(uri, SignerOptions(settings, keks, pin_file))


def export_public_key(uri: str, settings: VaultSettings | None, pin_file: Path | None = None) -> bytes:
    """The public key of a signing key that is not in a file, in PEM, for --trust; errors as `open_signer`."""
    if uri.partition(":")[0] not in _SIGNERS:
        raise ConfigError(
            f"{uri!r} does not name a signing key in a service or device: use hv:NAME/VERSION, awskms:, gcpkms:, azurekms: or hsm:"
        )
    signer = open_signer(uri, settings, pin_file=pin_file)
    from modelfs.crypto.signing import public_pem

    return public_pem(signer)


def load_provider(uri: str) -> None:
    """Import the module of a KEK's provider, and do no more: who forks provers often spares each of them that."""
    scheme = uri.partition(":")[0]
    if scheme in _PROVIDERS:
        _import(_PROVIDERS[scheme])


def _import(name: str) -> ModuleType:
    try:
        return import_module(name)
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.startswith("modelfs"):
            raise
        package = exc.name.partition(".")[0]
        extra = _EXTRAS.get(package)
        what = f"install modelfs[{extra}]" if extra else f"install {package}"
        raise ConfigError(f"this kind of key needs the Python package {exc.name}: {what}") from None
