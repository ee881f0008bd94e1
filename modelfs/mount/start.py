"""From a sealed model to a mount that answers, in the order that DESIGN.md demands, and to its end. Runs in the control process.

verify manifest -> rollback check -> pin -> prove -> mount -> warden -> probe -> remember release -> announce -> control loop
"""

import contextlib
import gc
import logging
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import trio

from modelfs.audit.log import AuditKind, AuditLog, AuditSubject
from modelfs.control.child import in_child
from modelfs.control.fence import Fence
from modelfs.control.keypage import KeyPage
from modelfs.control.lease import LeasePolicy
from modelfs.control.leasing import Effects, LeaseHolder
from modelfs.control.loop import ControlLoop, MountFacts
from modelfs.control.notify import Notifier
from modelfs.control.pins import Pinned, Rows, empty_pin, pin
from modelfs.control.process import (
    close_others,
    fork_child,
    harden,
    is_running,
    kill_child,
    return_free_memory,
    wait_child,
    without_collector,
)
from modelfs.control.prover import Prover
from modelfs.control.record import Audit
from modelfs.control.sandbox import confine_control, confine_warden, missing, needed_to_read
from modelfs.control.socket import canonical_mountpoint, listen, mountpoint_lock, socket_path
from modelfs.crypto.signatures import TrustedKeys
from modelfs.errors import ConfigError, KeyDeniedError, MountError, MountLostError
from modelfs.format.canonical import serialize
from modelfs.format.fields import parse_time
from modelfs.format.manifest import Manifest, without_blobs
from modelfs.keys import Kek, load_provider
from modelfs.mount.mountpoint import check_mountpoint
from modelfs.mount.session import MountOptions, Session, detach_dead, open_session
from modelfs.mount.teardown import Proof, darken_seconds, tear_down, tear_down_seconds
from modelfs.mount.view import Appearance
from modelfs.mount.warden import CONTROL_DIED, Warden
from modelfs.mount.worker import MountShare
from modelfs.reader.index import fetch_index
from modelfs.store.local import Store
from modelfs.trust.host_state import HostState
from modelfs.trust.release import check_minimum, read_keys, read_release

PROVE_SECONDS = 60.0
PROBE_SECONDS = 30.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MountRequest:
    """What an operator asks for."""

    sealed: Path
    mountpoint: Path
    model: str
    keks: tuple[Kek, ...]
    """In order of preference."""
    trusted: TrustedKeys
    minimum_release: int
    workers: int
    allow_other: bool
    appearance: Appearance
    state_dir: Path
    audit: Path | None
    audit_required: bool
    lease: LeasePolicy


def run_mount(request: MountRequest, ready: Callable[[dict[str, Any]], None], notifier: Notifier) -> dict[str, Any]:
    """Mount, serve, and return when the mount is gone.

    Args:
        request: See `MountRequest`.
        ready: Called once, with `status`-like facts, when the mount answers reads.
        notifier: The service manager.

    Returns:
        The proof of the unmount.

    Raises:
        ModelfsError: The mount could not be made; nothing is left of it.
        MountLostError: A process of the mount died; it was taken down in order.
    """
    harden()
    mountpoint = canonical_mountpoint(request.mountpoint)
    with mountpoint_lock(mountpoint), contextlib.ExitStack() as held:
        return _mount(request, mountpoint, held, ready, notifier)


def _mount(
    request: MountRequest,
    mountpoint: str,
    held: contextlib.ExitStack,
    ready: Callable[[dict[str, Any]], None],
    notifier: Notifier,
) -> dict[str, Any]:
    """`held` gives back what was opened and wipes the keys: whoever waits for a key service tries this for days."""
    sealed = Path(os.path.realpath(request.sealed))
    if detach_dead(mountpoint):
        logger.warning("a dead mount was left at %s: detached", mountpoint)
    check_mountpoint(mountpoint, sealed)
    with Store(sealed) as store:
        with without_collector():
            release = read_release(store, request.trusted, model=request.model, now=datetime.now(UTC))
        check_minimum(release.manifest, request.minimum_release)
        state = HostState(request.state_dir)
        state.check(release)
        index_ciphertext = fetch_index(store, release.manifest)
        pinned = _pin(store, release.manifest)
        capabilities = needed_to_read(store, (blob.id for blob in release.manifest.blobs))
        store_fd = store.share()
    for fd in (pinned.table_fd, pinned.keys_fd, store_fd):
        held.callback(os.close, fd)
    audit = None
    if request.audit is not None:
        if Path(os.path.realpath(request.audit.parent)).is_relative_to(mountpoint):
            raise ConfigError(f"the audit log {request.audit} lies where the model is to be mounted: name another with --audit")
        manifest = release.manifest
        subject = AuditSubject(manifest.model, manifest.release, ", ".join(kek.name for kek in request.keks), mountpoint)
        audit = Audit(AuditLog(request.audit, subject), request.audit_required)
        held.callback(os.close, audit.log.fd)
    fence, key_page, rows = Fence(), KeyPage(len(request.keks)), Rows()
    held.callback(os.close, rows.fd)
    held.callback(key_page.wipe_all)
    prover = Prover(request.keks, pinned, str(sealed), key_page, rows)
    try:
        first = prover.first(release.manifest, index_ciphertext, PROVE_SECONDS)
    except KeyDeniedError as exc:
        if audit is not None:
            with contextlib.suppress(ConfigError):  # the denial is what to say
                audit.log.write(AuditKind.DENIED, None, str(exc))
        raise
    # What is now in the table no process of the mount holds any more: with very many files it is most of the memory.
    release = release.without_blobs()
    del index_ciphertext
    return_free_memory()
    server = listen(mountpoint)
    try:
        session = open_session(mountpoint, MountOptions(request.model, request.allow_other, request.workers))
        share = MountShare(session, fence, key_page, pinned, rows, sealed, store_fd, request.appearance, capabilities)
        expires = release.manifest.expires
        expires_at = parse_time(expires).timestamp() if expires else None

        def lease(effects: Effects) -> LeaseHolder:
            holder = LeaseHolder(request.lease, prover, fence, key_page, effects, expires_at)
            holder.start(first)
            return holder

        return _serve(share, request, server, lease, audit, lambda: state.record(release), ready, notifier)
    finally:
        socket_path(mountpoint).unlink(missing_ok=True)
        server.close()


def _pin(store: Store, manifest: Manifest) -> Pinned:
    keys_fd = pin("modelfs-keys", serialize(read_keys(store, manifest)))
    return Pinned(without_blobs(manifest), empty_pin("modelfs-table"), keys_fd)


def _serve(
    share: MountShare,
    request: MountRequest,
    server: socket.socket,
    lease: Callable[[Effects], LeaseHolder],
    audit: Audit | None,
    record: Callable[[], None],
    ready: Callable[[dict[str, Any]], None],
    notifier: Notifier,
) -> dict[str, Any]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    manifest = share.pinned.manifest
    loop = ControlLoop(share.fence, ours, lease, audit, notifier)  # opens the fence: the first proof is a grant
    warden = _start_warden(share, theirs, request.workers, audit.log if audit else None, loop.lease.key_version)
    theirs.close()
    for kek in request.keks:
        load_provider(kek.uri)  # after the warden's fork, which needs none of it; before the provers', whose deadline is short
    facts = MountFacts(
        share.session.mountpoint,
        str(share.sealed),
        manifest.model,
        manifest.release,
        loop.lease.kek or request.keks[0].name,
        [kek.name for kek in request.keks],
        share.session.device,
        os.getpid(),
        warden,
        missing(share.capabilities),
        darken_seconds(share, request.workers),
        tear_down_seconds(share, request.workers),
    )

    async def take_down(reason: str) -> dict[str, Any]:
        kill_child(warden)
        with trio.move_on_after(1.0):
            while is_running(warden):  # reaped below
                await trio.sleep(0.005)
        proof = await in_child(lambda: tear_down(share, [], [], reason).as_json(), facts.unmount_s)
        if proof is None:
            logger.error("a child was to take the mount down and has not: done here instead")
            again = tear_down(share, [], [], reason)
            if again.resident_bytes is None and os.geteuid() == 0:  # the child may have ended the connection, and nobody has counted
                again.not_counted = again.not_counted or "the process that was to count ended before"
            proof = again.as_json()
        return proof

    try:
        _probe(share.session)
        record()
        loop.record.write(AuditKind.MOUNT, "mounted")
        if audit is not None and audit.is_required and loop.record.error is not None:
            raise ConfigError(f"{loop.record.error}; nothing is served without it (--audit-required)")
        confine_control()
        proof = trio.run(loop.run, facts, server, partial(ready, {**vars(facts), "audit_error": loop.record.error}), take_down)
    finally:
        ours.close()  # the warden takes the mount down, if it has not yet: for it, control is gone
        ended = wait_child(warden, facts.unmount_s)
        if ended is None:
            kill_child(warden)
            wait_child(warden, 1.0)
    reason = str(proof["reason"])
    is_revoked = reason.startswith("revoked")
    loop.record.write(AuditKind.REVOKED if is_revoked or loop.is_warden_lost else AuditKind.UNMOUNT, reason, proof)
    if loop.is_warden_lost:
        logger.error("proof: %s", proof)
        if not is_revoked:  # a denial stays one: who hears of the exit code must not mount again by himself
            raise MountLostError(f"the warden of {facts.mountpoint} died: the mount was taken down; see the log and mount again")
    return proof


def _start_warden(share: MountShare, channel: socket.socket, workers: int, audit: AuditLog | None, key_version: int | None) -> int:
    gc.collect()
    gc.freeze()  # forks share the heap: the collector must not touch, and so copy, every page of it

    control = os.getpid()

    def main() -> int:
        share.key_page.forget_session()
        os.setsid()  # a terminal's Ctrl-C is control's to answer
        close_others(share.descriptors | {channel.fileno()} | ({audit.fd} if audit else set()))
        confine_warden()
        warden = Warden(share, channel, workers)
        warden.key_version = key_version
        proof = warden.run()
        # A process that is killed closes its descriptors, which is seen here, some time before its children get another parent.
        if proof.reason == CONTROL_DIED or os.getppid() != control:
            if audit is not None and warden.kek is not None:
                audit.subject = replace(audit.subject, kek=warden.kek)
            _finish_alone(share.session.mountpoint, audit, warden.key_version, proof)
        return MountLostError.exit_code if proof.reason == CONTROL_DIED else 0

    return fork_child(main)


def _finish_alone(mountpoint: str, audit: AuditLog | None, key_version: int | None, proof: Proof) -> None:
    """What control would have done, had it lived."""
    if audit is not None:
        try:
            audit.write(AuditKind.REVOKED, key_version, proof.reason, proof.as_json())
        except ConfigError as exc:
            logger.error("%s", exc)
    with contextlib.suppress(MountError), mountpoint_lock(mountpoint):  # else a new mount has them
        socket_path(mountpoint).unlink(missing_ok=True)


def _probe(session: Session) -> None:
    """Have a child list the mount and read a byte: the mount answers, or it is not announced.

    Control itself never resolves a path at its own mountpoint: who would answer, if a worker hung?
    """

    def main() -> int:
        try:
            with os.scandir(session.mountpoint) as entries:
                files = [entry.path for entry in entries if entry.is_file()]
        except PermissionError:
            return 0
        for path in files[:1]:
            try:
                with open(path, "rb", buffering=0) as file:
                    file.read(1)
            except OSError as exc:
                # A bad block, or a mode that keeps us out, is an answer, and no reason not to mount.
                logger.warning("the first read of %s failed: %s", path, exc)
        return 0

    pid = fork_child(main)
    code = wait_child(pid, PROBE_SECONDS)
    if code is None:
        kill_child(pid)
        raise MountError(f"the mount at {session.mountpoint} did not answer within {PROBE_SECONDS:g} s: see the log")
    if code != 0:
        raise MountError(f"the mount at {session.mountpoint} cannot be listed: see the log for the reason")
