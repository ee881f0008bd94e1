"""Key providers: who wraps and unwraps DEKs. A provider's module is imported only when its scheme is used."""

from collections.abc import Callable
from importlib import import_module

from modelfs.errors import ConfigError
from modelfs.keys.interface import KeyProvider

_PROVIDERS = {"file": "modelfs.keys.file"}


def open_kek(uri: str) -> KeyProvider:
    """The provider that a KEK's URI names.

    Args:
        uri: `scheme:reference`, for example `file:/etc/modelfs/kek`.

    Raises:
        ConfigError: Unknown scheme or malformed reference.
    """
    scheme, colon, reference = uri.partition(":")
    if not colon or scheme not in _PROVIDERS or not reference:
        known = ", ".join(f"{name}:..." for name in _PROVIDERS)
        raise ConfigError(f"{uri!r} does not name a KEK: use {known}, for example file:/etc/modelfs/kek")
    open_provider: Callable[[str], KeyProvider] = import_module(_PROVIDERS[scheme]).open_provider
    return open_provider(reference)
