"""What the signers of all services and devices are opened with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from modelfs.keys.interface import KeyProvider

if TYPE_CHECKING:
    from modelfs.keys.vault_settings import VaultSettings


@dataclass(frozen=True)
class SignerOptions:
    """Each signer takes what concerns it."""

    vault: VaultSettings | None = None
    """Where the Vault is and how to log in; and whether plain http to a loopback address is allowed."""
    keks: Sequence[KeyProvider] = ()
    """Providers with the same settings, whose login in a Vault is shared."""
    pin_file: Path | None = None
    """Holds the PIN of an HSM's token."""
