"""`modelfs rotate`: the current release again under new keys."""

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from modelfs.cli.options import Json, Threshold, Trust
from modelfs.cli.output import LateBar, format_size, note, print_json
from modelfs.cli.signing import PendingRelease, PinFile, SignKey, check_threshold, look_command, waits
from modelfs.cli.stopping import interrupted, stop_on_signals
from modelfs.cli.values import check_release, parse_model
from modelfs.cli.vault_options import with_vault
from modelfs.crypto.signatures import load_trusted_keys
from modelfs.keys import open_keks, open_signer

if TYPE_CHECKING:
    from modelfs.keys.vault_settings import VaultSettings
    from modelfs.seal.rotate import Cost


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(
        epilog="Example: modelfs rotate /srv/sealed/llama --model llama --from 2 --release 3 --kek file:kek "
        "--sign-key release.pem --trust release.pem.pub"
    )(rotate)


@with_vault
def rotate(
    sealed: Annotated[Path, typer.Argument(metavar="SEALED", help="Directory of a sealed model.")],
    model: Annotated[str, typer.Option("--model", help="Name of the model that is expected; any other is refused.")],
    release: Annotated[int, typer.Option("--release", help="Number of the new release; must grow.")],
    kek: Annotated[
        list[str],
        typer.Option(
            "--kek", metavar="URI", help="KEK that the new release is wrapped for; one of them opens the old one; may be repeated."
        ),
    ],
    sign_key: SignKey,
    trust: Trust,
    threshold: Threshold = 1,
    old_release: Annotated[
        int | None,
        typer.Option("--from", metavar="RELEASE", help="The release that is to be rotated; any other that is found is refused."),
    ] = None,
    pending: PendingRelease = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what it will cost, and end.")] = False,
    pin_file: PinFile = None,
    vault: "VaultSettings | None" = None,
    json: Json = False,
) -> None:
    """Encrypt the current release anew, under new keys for all of it. Atomic; killed at any moment, run it again to go on."""
    from modelfs.seal.encrypt import Cancelled
    from modelfs.seal.rotate import RotateRequest, rotate_model
    from modelfs.seal.work import Surroundings

    trusted = load_trusted_keys(trust, threshold)
    check_threshold(threshold, pending)
    providers = open_keks(kek, vault)
    signer = open_signer(sign_key, vault, providers, pin_file)
    look = look_command(sealed, model, trust, threshold, sign_key)
    old_release = None if old_release is None else check_release(old_release)
    request = RotateRequest(parse_model(model), check_release(release), providers, signer, trusted, old_release, pending, look)
    costs: list[Cost] = []

    with LateBar("rotating") as bar:

        def tell(cost: "Cost") -> bool:
            costs.append(cost)
            if not (json and dry_run):
                note(_describe(cost))
            bar.begin(cost.plaintext_bytes)
            return not dry_run

        around = Surroundings(now=datetime.now(UTC), progress=bar.advance, stop=stop_on_signals())
        try:
            report = rotate_model(sealed, request, around, tell)
        except Cancelled:
            interrupted()
    cost = vars(costs[0])
    if report is None:
        if json:
            print_json(cost)
        return
    for text in report.notes:
        note(text)
    if json:
        print_json({**vars(report), "sealed": str(sealed), "pending": pending, "cost": cost})
        return
    typer.echo(
        f"rotated {report.model} release {report.old_release} to {report.release}: {report.files} files, {format_size(report.bytes)} "
        f"({report.encrypted} encrypted anew, {report.resumed} finished earlier) in {sealed}"
    )
    if pending:
        typer.echo(waits(look))
    else:
        typer.echo(f"the old keys open release {report.old_release} until `modelfs gc {sealed} --keep 1` has removed it")


def _describe(cost: "Cost") -> str:
    done = f", {cost.resumed} of which an interrupted run has finished" if cost.resumed else ""
    return (
        f"rotating {cost.model} release {cost.old_release} to {cost.release}: {cost.files} files{done}; "
        f"reads {format_size(cost.read_bytes)}, writes {format_size(cost.write_bytes)} of {format_size(cost.free_bytes)} free; "
        f"at least {_format_time(cost.least_seconds)} of this host's processors, more if the storage is slower"
    )


def _format_time(seconds: float) -> str:
    if seconds < 120:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
