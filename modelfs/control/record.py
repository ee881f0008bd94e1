"""What of a mount's life goes into its audit log: the lease's events, and under which KEK and key version they happened."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from modelfs.audit.log import AuditKind, AuditLog
from modelfs.control.lease import Event, Lease, LeaseState
from modelfs.control.leasing import LeaseHolder
from modelfs.errors import ConfigError

logger = logging.getLogger(__name__)

_AUDITED: dict[Event, AuditKind] = {
    Event.NO_ANSWER: AuditKind.RENEWAL_FAILED,
    Event.DENIAL: AuditKind.DENIED,
    Event.LEASE_END: AuditKind.LOCKED,
    Event.CLOCK_JUMP: AuditKind.LOCKED,
    Event.EXPIRY: AuditKind.LOCKED,
    Event.LOCK: AuditKind.LOCKED,
}
"""What of the lease is recorded; grants are not, but for the one that ends a lock."""


@dataclass(frozen=True)
class Audit:
    """Where events go, and whether a mount may serve without."""

    log: AuditLog
    is_required: bool


class Record:
    """The audit log as control writes it."""

    def __init__(self, audit: Audit | None, holder: LeaseHolder, note: Callable[[int | None, str | None], None]) -> None:
        """Start with the KEK and the key version that opened the mount.

        Args:
            audit: None: nothing is recorded, but what changes is still noticed.
            holder: Of the lease; locked when nothing may be served unaudited.
            note: Is told which key version and KEK grant from now on, before anything is written.
        """
        self._audit = audit
        self._holder = holder
        self._note = note
        self._was_dark = False
        self._noted_version = self._written_version = holder.key_version
        self._noted_kek = self._written_kek = holder.kek
        self.error: str | None = None
        """Why the last event could not be recorded."""
        self._name_kek()

    def follow(self, event: Event, lease: Lease) -> None:
        """Record what happened to the lease, if it is of those that are recorded."""
        holder = self._holder
        was_dark, self._was_dark = self._was_dark, lease.state in (LeaseState.LOCKED, LeaseState.PAUSED)
        is_other_kek, is_other_version = holder.kek != self._noted_kek, holder.key_version != self._noted_version
        if is_other_version and not is_other_kek:
            logger.warning("the key is wrapped by version %s of the KEK now, by %s before", holder.key_version, self._noted_version)
        if event is Event.GRANT and holder.passed:
            logger.warning("granted by %s; passed over: %s", holder.kek, holder.passed)
        if is_other_kek or is_other_version:
            self._noted_version, self._noted_kek = holder.key_version, holder.kek
            self._name_kek()
            self._note(holder.key_version, holder.kek)
        kind = _AUDITED.get(event)
        if kind is AuditKind.LOCKED and was_dark and event is not Event.LOCK:
            kind = None  # it was dark before
        elif event is Event.GRANT and was_dark:
            kind = AuditKind.UNLOCK
        elif is_other_kek:
            kind = AuditKind.OTHER_KEK
        if kind is not None:
            self.write(kind, lease.last_error or holder.passed or str(event))

    def write(self, kind: AuditKind, reason: str, proof: dict[str, Any] | None = None) -> None:
        """Record an event: a fence before, an unlock after. A mount that must not serve unaudited is locked."""
        if self._audit is None:
            return
        version = self._holder.key_version
        if version != self._written_version and self._holder.kek == self._written_kek:
            reason = f"{reason} (KEK version {version} now, {self._written_version} before)"
        try:
            self._audit.log.write(kind, version, reason, proof)
            self._written_version, self._written_kek, self.error = version, self._holder.kek, None
        except ConfigError as exc:
            logger.error("%s", exc)
            self.error = str(exc)
            if self._audit.is_required and kind not in (AuditKind.LOCKED, AuditKind.REVOKED, AuditKind.UNMOUNT):
                self._holder.lock(f"nothing is served unaudited: {exc}")

    def _name_kek(self) -> None:
        """From here on events name the KEK that granted last."""
        if self._audit is not None and self._holder.kek is not None:
            self._audit.log.subject = replace(self._audit.log.subject, kek=self._holder.kek)
