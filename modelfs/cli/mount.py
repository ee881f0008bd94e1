"""`modelfs mount`: from options to a mount that answers."""

import contextlib
import gc
import logging
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelfs.cli.config_option import Config, keks_of
from modelfs.cli.daemon import daemonise, log_to
from modelfs.cli.options import Json, Mountpoint, Threshold, Trust
from modelfs.cli.output import note, print_json, print_proof, printable
from modelfs.cli.values import (
    check_id,
    check_release,
    default_state_dir,
    parse_lease,
    parse_log_level,
    parse_model,
    parse_octal,
    parse_workers,
)
from modelfs.cli.vault_options import with_vault
from modelfs.control.notify import Notifier
from modelfs.control.socket import canonical_mountpoint, mountpoint_lock
from modelfs.crypto.signatures import load_trusted_keys
from modelfs.errors import ConfigError, KeyDeniedError, KeyServiceError, MountError

if TYPE_CHECKING:
    from modelfs.keys.vault_settings import VaultSettings

WAIT_SECONDS = 3.0
"""Between two attempts of `mount --wait`."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog="Example: modelfs mount /srv/sealed/llama /models/llama --model llama --kek file:/etc/modelfs/kek --trust release.pem.pub"
    )(mount)


@with_vault
def mount(
    context: typer.Context,
    sealed: Annotated[Path, typer.Argument(metavar="SEALED", help="Directory of a sealed model.")],
    mountpoint: Mountpoint,
    model: Annotated[str, typer.Option("--model", help="Name of the model that is expected; any other is refused.")],
    kek: Annotated[
        list[str],
        typer.Option("--kek", metavar="URI", help="KEK of this host, for example file:PATH; may be repeated, in order of preference."),
    ],
    trust: Trust,
    threshold: Threshold = 1,
    minimum_release: Annotated[int, typer.Option("--minimum-release", help="Refuse releases below this one.")] = 1,
    workers: Annotated[str, typer.Option("--workers", metavar="N|auto", help="Worker processes; auto is one for each core.")] = "auto",
    allow_other: Annotated[bool, typer.Option("--allow-other", help="Let other users in, as owner and mode allow.")] = False,
    uid: Annotated[int | None, typer.Option("--uid", help="Owner of everything shown. [default: who mounts]")] = None,
    gid: Annotated[int | None, typer.Option("--gid", help="Group of everything shown. [default: who mounts]")] = None,
    mode: Annotated[str, typer.Option("--mode", metavar="OCTAL", help="Mode of files, for example 0440. [default: as sealed]")] = "",
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay in the foreground; Ctrl-C unmounts.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Ask a key service that does not answer again, until it does.")] = False,
    state_dir: Annotated[Path | None, typer.Option("--state-dir", help="Where the host remembers releases.")] = None,
    log: Annotated[Path | None, typer.Option("--log", help="Log file. [default: stderr, or STATE_DIR/MODEL.log as a daemon]")] = None,
    log_level: Annotated[str, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")] = "info",
    audit: Annotated[Path | None, typer.Option("--audit", metavar="FILE", help="Append every event to FILE (JSON lines).")] = None,
    audit_required: Annotated[bool, typer.Option("--audit-required", help="Do not serve while --audit cannot be written.")] = False,
    renew_every: Annotated[float, typer.Option("--renew-every", help="Seconds between proofs that the key may still be held.")] = 30,
    ttl: Annotated[float, typer.Option("--ttl", help="Seconds that a proof counts: how long an outage may last.")] = 300,
    proof_timeout: Annotated[float, typer.Option("--proof-timeout", help="Seconds that one proof may take.")] = 1,
    vault: "VaultSettings | None" = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Mount a sealed model as a read-only plaintext view. Returns when the mount answers reads, or with the error."""
    gc.disable()  # as in main
    try:
        from modelfs.mount.session import detach_dead
        from modelfs.mount.start import MountRequest, run_mount
        from modelfs.mount.view import Appearance
    except ImportError as exc:
        raise MountError(f"mounting needs pyfuse3 and libfuse3 ({exc}): install fuse3 and modelfs[mount]") from None
    finally:
        gc.enable()
    gc.freeze()  # what is imported stays: no later collection looks at it, neither here nor after a fork

    if audit_required and audit is None:
        raise ConfigError("--audit-required says nothing without --audit FILE: name the file")
    level = parse_log_level(log_level)
    name, state = parse_model(model), state_dir or default_state_dir()
    order = MountRequest(
        sealed=sealed.absolute(),
        mountpoint=mountpoint.absolute(),
        model=name,
        keks=keks_of(context, kek, vault),
        trusted=load_trusted_keys(trust, threshold),
        minimum_release=check_release(minimum_release),
        workers=parse_workers(workers),
        allow_other=allow_other,
        appearance=Appearance(
            os.geteuid() if uid is None else check_id(uid),
            os.getegid() if gid is None else check_id(gid),
            parse_octal(mode) if mode else None,
        ),
        state_dir=state.absolute(),
        audit=audit.absolute() if audit else None,
        audit_required=audit_required,
        lease=parse_lease(renew_every, ttl, proof_timeout),
    )

    path = (log or state / f"{name}.log").absolute()
    _check_apart(state.absolute() / name, "--state-dir", mountpoint)
    if log is not None or not foreground:
        _check_apart(path, "--log", mountpoint)

    def announce(facts: dict[str, Any]) -> None:
        try:
            if json:
                print_json(facts)
            else:
                typer.echo(printable(f"mounted {facts['model']} release {facts['release']} at {facts['mountpoint']}"))
            sys.stdout.flush()
        except OSError as exc:  # it is mounted all the same
            note(f"mounted at {facts['mountpoint']}, but stdout cannot be written: {os.strerror(exc.errno or 0)}")
        if facts["audit_error"]:
            note(f"mounted, and not audited: {facts['audit_error']}")

    notifier = Notifier.from_environment(os.environ)

    def run(ready: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        while True:
            notifier.starting(f"mounting {name}")
            try:
                return run_mount(order, ready, notifier)
            except KeyServiceError as exc:
                if not wait:
                    raise
                logging.getLogger(__name__).warning("%s; asking again in %g s", exc, WAIT_SECONDS)
                notifier.starting(f"waiting for the key service: {exc}")
                time.sleep(WAIT_SECONDS)

    if foreground:
        log_to(log, level, redirect=False)
        proof = run(announce)
        is_revoked = proof["reason"].startswith("revoked")
        try:
            print_proof(proof, json)
            sys.stdout.flush()
        except (MountError, OSError) as exc:
            if not is_revoked:
                raise
            note(str(exc))  # and still a denial: with another exit code a service manager would mount again
        if is_revoked:
            raise KeyDeniedError(f"{proof['mountpoint']} was unmounted, because access to the key has been {proof['reason']}")
        return
    try:
        daemonise(run, announce, path, level)
    except SystemExit:  # interrupted, perhaps between the mount and the start of those who would take it down
        place = canonical_mountpoint(mountpoint)
        with contextlib.suppress(MountError), mountpoint_lock(place):
            detach_dead(place)
        raise


def _check_apart(path: Path, option: str, mountpoint: Path) -> None:
    """What is written at the mountpoint would make it a directory that is not empty, and the mount would hide it."""
    if Path(os.path.realpath(path.parent)).is_relative_to(canonical_mountpoint(mountpoint)):
        raise ConfigError(f"{path} lies where the model is to be mounted: name another place with {option}")
