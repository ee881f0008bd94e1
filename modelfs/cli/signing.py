"""`modelfs sign`, and what seal, rotate and sign have in common: the signing key, and a release that waits for more signatures."""

import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelfs.cli.options import Json, Threshold, Trust
from modelfs.cli.output import LateBar, format_size, note, print_json, printable
from modelfs.cli.values import parse_model
from modelfs.cli.vault_options import with_vault
from modelfs.crypto.signatures import load_trusted_keys
from modelfs.errors import ConfigError
from modelfs.keys import open_signer

if TYPE_CHECKING:
    from modelfs.keys.vault_settings import VaultSettings
    from modelfs.seal.countersign import Waiting

SERVICE_KEYS = (
    "hv:NAME/VERSION in a Vault, awskms:KEY, gcpkms:KEY-VERSION, azurekms://VAULT.vault.azure.net/keys/NAME/VERSION, "
    "or hsm:ID?label=TOKEN (PKCS#11)"
)
SIGN_KEYS = f"a PEM file, {SERVICE_KEYS}"
SignKey = Annotated[str, typer.Option("--sign-key", metavar="KEY", help=f"Signing key: {SIGN_KEYS}.")]
PinFile = Annotated[
    Path | None, typer.Option("--pin-file", metavar="FILE", help="File that holds the PIN of an hsm: key's token, open to its owner only.")
]
PendingRelease = Annotated[bool, typer.Option("--pending", help="Do not publish: leave the release waiting for `modelfs sign`.")]
_DIGEST = re.compile(r"[0-9a-f]{64}")


def check_threshold(threshold: int, pending: bool) -> None:
    """Raise ConfigError if hosts that demand what this publisher demands would refuse what he makes."""
    if threshold > 1 and not pending:
        raise ConfigError(
            f"one signature is not the {threshold} that --threshold demands: use --pending, and have others add theirs with `modelfs sign`"
        )


def look_command(sealed: Path, model: str, trust: list[Path], threshold: int, sign_key: str) -> str:
    """The command that shows a release that waits, to be typed as it is if there is `trust`, or a public key beside `sign_key`."""
    beside = Path(f"{sign_key}.pub")
    keys = trust or [beside if beside.is_file() else Path("PUBLISHER.pub")]
    words = ["modelfs", "sign", str(sealed), "--model", model, *(word for key in keys for word in ("--trust", str(key)))]
    return shlex.join([*words, "--threshold", str(threshold)] if threshold > 1 else words)


def waits(look: str) -> str:
    """What to do with a release that waits."""
    return f"it waits for signatures: look at it with `{look}`, sign it with the same and --sign-key"


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog="Example: modelfs sign /srv/sealed/llama --model llama --trust ann.pem.pub --trust bob.pem.pub --threshold 2 "
        "--sign-key bob.pem"
    )(sign)


@with_vault
def sign(
    sealed: Annotated[Path, typer.Argument(metavar="SEALED", help="Directory of a sealed model with a release that waits.")],
    model: Annotated[str, typer.Option("--model", help="Name of the model that is expected; any other is refused.")],
    trust: Trust,
    threshold: Threshold = 1,
    sign_key: Annotated[
        str,
        typer.Option("--sign-key", metavar="KEY", help=f"Signing key: {SIGN_KEYS}. Without it, nothing is signed."),
    ] = "",
    payload_digest: Annotated[
        str, typer.Option("--payload-digest", metavar="SHA256", help="Refuse any other release than the one with this payload digest.")
    ] = "",
    pin_file: PinFile = None,
    vault: "VaultSettings | None" = None,
    json: Json = False,
) -> None:
    """Add a signature to a release that waits, after verifying all of it; publish it when --threshold trusted keys have signed."""
    from modelfs.seal.countersign import SignRequest, sign_waiting
    from modelfs.seal.work import Surroundings

    if payload_digest and not _DIGEST.fullmatch(payload_digest):
        raise ConfigError(f"{payload_digest!r} is no payload digest: it is 64 hex digits, as `modelfs sign` shows them")
    trusted = load_trusted_keys(trust, threshold)
    signer = open_signer(sign_key, vault, pin_file=pin_file) if sign_key else None
    request = SignRequest(parse_model(model), trusted, signer, payload_digest or None)
    shown: list[Waiting] = []

    with LateBar("verifying") as bar:

        def show(waiting: "Waiting") -> None:
            shown.append(waiting)
            if not json:
                _print(waiting, threshold)
            bar.begin(waiting.sealed_bytes)

        report = sign_waiting(sealed, request, Surroundings(now=datetime.now(UTC), progress=bar.advance), show)
    for text in report.notes:
        note(text)
    if json:
        answer = shown[0].as_json() if shown else {}
        outcome = {"signed": report.is_new, "published": report.is_published, "signed_by": report.signed_by, "threshold": threshold}
        print_json({**answer, **outcome, "notes": report.notes})
        return
    if signer is None and not report.is_published:
        typer.echo("whole, as signed; nothing was signed by this command")
    elif signer is not None and not report.is_new and shown:
        typer.echo("this key has signed it already: no signature was added")
    have = f"{len(report.signed_by)} of {threshold} signatures"
    typer.echo(f"published: {have}" if report.is_published else f"waiting: {have}")


def _print(waiting: "Waiting", threshold: int) -> None:
    manifest = waiting.manifest
    plain = sum(blob.size for blob in manifest.blobs if blob.id != manifest.index)
    rows = {
        "model": f"{manifest.model} release {manifest.release}, which replaces {waiting.replaces or 'nothing'}",
        "payload": waiting.payload_digest,
        "created": f"{manifest.created}, expires {manifest.expires or 'never'}",
        "size": f"{format_size(plain)} in {len(manifest.blobs) - 1} files, {format_size(waiting.sealed_bytes)} sealed",
        "signed": f"{', '.join(waiting.signed_by)} ({len(waiting.signed_by)} of {threshold})",
        "KEKs": ", ".join(printable(kek) for kek in waiting.recipients) + " (not signed)",
    }
    for name, value in rows.items():
        typer.echo(f"{name + ':':10}{value}")
