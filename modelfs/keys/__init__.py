"""Key providers: who wraps and unwraps DEKs. A provider's module is imported only when its scheme is used."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from modelfs.errors import ConfigError
from modelfs.keys.interface import KeyProvider

if TYPE_CHECKING:
    from modelfs.crypto.signing import Signer
    from modelfs.keys.vault_settings import VaultSettings

_PROVIDERS = {
    "file": "modelfs.keys.file",
    "vault": "modelfs.keys.vault",
}
"""Module of each scheme; it has `open_provider(reference)`, for Vault `open_provider(reference, settings)`."""
_EXTRAS = {"hvac": "vault"}
"""Which extra of modelfs brings a package that is missing."""
_VAULT_SIGNER = "modelfs.keys.vault_sign"
HV = "hv:"


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
    open_provider: Callable[[str], KeyProvider] = module.open_provider
    return open_provider(reference)


def open_signer(uri: str, settings: VaultSettings | None = None, kek: KeyProvider | None = None) -> Signer:
    """The signer that `--sign-key` names.

    Args:
        uri: The path of a private key file, or `hv:NAME/VERSION`: a key in a Vault's secrets engine `transit`.
        settings: As for `open_kek`.
        kek: A provider with the same settings, whose login is shared.

    Raises:
        ConfigError: Malformed, or an unusable file.
        KeyAccessError: The Vault does not show the public key.
    """
    if not uri.startswith(HV):
        from modelfs.crypto.signing import load_signer

        return load_signer(Path(uri))
    open_vault: Callable[[str, VaultSettings | None, KeyProvider | None], Signer] = _import(_VAULT_SIGNER).open_vault_signer
    return open_vault(uri, settings, kek)


def export_public_key(uri: str, settings: VaultSettings | None) -> bytes:
    """The public key of `hv:NAME/VERSION` in PEM, for --trust; errors as `open_signer`."""
    if not uri.startswith(HV):
        raise ConfigError(f"{uri!r} does not name a signing key in a Vault: use hv:NAME/VERSION, for example hv:release/1")
    export: Callable[[str, VaultSettings | None], bytes] = _import(_VAULT_SIGNER).export_vault_key
    return export(uri, settings)


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
