"""Commands about sealed models: seal, verify, inspect, gc, and forgetting what this host has served."""

import os
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from modelfs.cli.options import Json, Threshold, Trust
from modelfs.cli.output import format_size, note, print_json, printable, progress_bar
from modelfs.cli.shown import describe_trust, manifest_to_show
from modelfs.cli.signing import PendingRelease, PinFile, SignKey, check_threshold, look_command, waits
from modelfs.cli.stopping import interrupted, stop_on_signals
from modelfs.cli.values import check_release, default_state_dir, parse_block_size, parse_expiry, parse_model
from modelfs.cli.vault_options import with_vault
from modelfs.crypto.signatures import load_trusted_keys
from modelfs.errors import ConfigError, VerificationError
from modelfs.keys import open_kek, open_keks, open_signer
from modelfs.keys.interface import unwrap_dek
from modelfs.store.local import MANIFEST, Store
from modelfs.trust.host_state import HostState
from modelfs.trust.release import read_keys, read_release

if TYPE_CHECKING:
    from modelfs.keys.vault_settings import VaultSettings

Sealed = Annotated[Path, typer.Argument(metavar="SEALED", help="Directory of a sealed model.")]


class Digest(StrEnum):
    """Digests of the format."""

    blake3 = "blake3"
    sha256 = "sha256"


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        epilog="Examples: modelfs seal ./llama /srv/sealed/llama --model llama --release 1 --kek file:kek --sign-key release.pem"
        " | modelfs seal ~/.cache/huggingface/hub/models--x/snapshots/abc DST --follow-symlinks ... (newer: add --trust release.pem.pub)"
    )(seal)
    app.command(epilog="Example: modelfs verify /srv/sealed/llama --trust release.pem.pub")(verify)
    app.command(epilog="Example: modelfs inspect /srv/sealed/llama --trust release.pem.pub --kek file:kek")(inspect)
    app.command(epilog="Example: modelfs gc /srv/sealed/llama --keep 2")(gc)
    app.command(epilog="Example: modelfs forget llama")(forget)


def _check_apart(source: Path, destination: Path) -> None:
    real_source, real_destination = os.path.realpath(source), os.path.realpath(destination)
    for inner, outer in ((real_source, real_destination), (real_destination, real_source)):
        if inner == outer or inner.startswith(outer + os.sep):
            raise ConfigError(f"{source} and {destination} lie within each other: choose another destination")


@with_vault
def seal(
    source: Annotated[Path, typer.Argument(metavar="SRC", help="A directory of model files, or one file.")],
    destination: Annotated[Path, typer.Argument(metavar="DST", help="Where the sealed model goes.")],
    model: Annotated[str, typer.Option("--model", help="Name of the model; hosts must name it to mount it.")],
    release: Annotated[int, typer.Option("--release", help="Release number; must grow.")],
    kek: Annotated[
        list[str],
        typer.Option("--kek", metavar="URI", help="KEK that wraps the release's key: file:PATH or vault:MOUNT/KEY; may be repeated."),
    ],
    sign_key: SignKey,
    trust: Trust,
    digest: Annotated[Digest, typer.Option("--digest", help="Digest of blocks and files.")] = Digest.blake3,
    block_size: Annotated[str, typer.Option("--block-size", metavar="SIZE", help="A power of two from 4K to 4M.")] = "128K",
    expires: Annotated[
        str | None, typer.Option("--expires", metavar="DATE", help="Refuse the release from this date (UTC) on.", show_default=False)
    ] = None,
    follow_symlinks: Annotated[
        bool, typer.Option("--follow-symlinks", help="Seal what symlinks point to (a Hugging Face cache needs it).")
    ] = False,
    threshold: Threshold = 1,
    pending: PendingRelease = False,
    pin_file: PinFile = None,
    vault: "VaultSettings | None" = None,
    json: Json = False,
) -> None:
    """Encrypt and sign a model directory. Atomic; killed at any moment, run it again to go on."""
    from modelfs.seal.encrypt import Cancelled
    from modelfs.seal.publish import SealRequest, Surroundings, seal_model
    from modelfs.seal.scan import scan_source

    now = datetime.now(UTC)
    providers = open_keks(kek, vault)
    request = SealRequest(
        model=parse_model(model),
        release=check_release(release),
        providers=providers,
        signer=open_signer(sign_key, vault, providers, pin_file),
        digest=digest.value,
        block_size=parse_block_size(block_size),
        expires=None if expires is None else parse_expiry(expires, now),
        trusted=load_trusted_keys(trust, threshold) if trust else None,
        is_pending=pending,
        look=look_command(destination, model, trust, threshold, sign_key),
    )
    check_threshold(threshold, pending)
    _check_apart(source, destination)
    tree = scan_source(source, follow_symlinks)
    stop = stop_on_signals()
    try:
        with progress_bar("sealing", tree.size) as progress:
            report = seal_model(tree, destination, request, Surroundings(now=now, progress=progress, stop=stop))
    except Cancelled:
        interrupted()
    for text in report.notes:
        note(text)
    if json:
        print_json({**vars(report), "sealed": str(destination), "pending": pending})
    else:
        typer.echo(
            f"sealed {report.model} release {report.release}: {report.files} files, {format_size(report.bytes)} "
            f"({report.encrypted} encrypted, {report.reused} unchanged, {report.resumed} finished earlier) in {destination}"
        )
        if pending:
            typer.echo(waits(request.look))


def verify(sealed: Sealed, trust: Trust, threshold: Threshold = 1, json: Json = False) -> None:
    """Check all that can be checked without any key: signature, sizes, every block's digest. Lists every fault."""
    from modelfs.reader.verify import verify_store

    trusted = load_trusted_keys(trust, threshold)
    with Store(sealed) as store:
        release = read_release(store, trusted, model=None, now=datetime.now(UTC))
        manifest = release.manifest
        total = sum(manifest.geometry(blob).ciphertext_size for blob in manifest.blobs)
        with progress_bar("verifying", total) as progress:
            faults = verify_store(store, manifest, progress)
    if json:
        found = [fault.as_json() for fault in faults]
        answer: dict[str, Any] = {"model": manifest.model, "release": manifest.release, "ok": not faults, "faults": found}
        print_json({**answer, "blobs": len(manifest.blobs), "bytes": total, "signed_by": list(release.signed_by)})
    else:
        for fault in faults:
            where = fault.blob if fault.block is None else f"{fault.blob} block {fault.block}"
            typer.echo(printable(f"FAULT {where}: {fault.what}: expected {fault.expected}, found {fault.found}"))
        if not faults:
            size = format_size(total)
            typer.echo(f"{manifest.model} release {manifest.release} is whole: {len(manifest.blobs)} blobs, {size}, as signed")
    if faults:
        raise VerificationError(f"{len(faults)} fault(s) in {sealed}: do not use it, fetch the named blobs again")


@with_vault
def inspect(
    sealed: Sealed,
    trust: Trust,
    threshold: Threshold = 1,
    kek: Annotated[str, typer.Option("--kek", metavar="URI", help="KEK that opens the table of files.")] = "",
    vault: "VaultSettings | None" = None,
    json: Json = False,
) -> None:
    """Show what a sealed model is: who signed it, releases, sizes, KEKs; with --kek (and --trust) its files too."""
    from modelfs.reader.index import fetch_index, open_index
    from modelfs.seal.retention import kept_manifests

    with Store(sealed) as store:
        manifest, signed_by = manifest_to_show(store, trust, threshold)
        if kek and not trust:
            raise ConfigError("--kek opens only what is verified: name the publisher's public key with --trust")
        keys = read_keys(store, manifest)
        answer: dict[str, Any] = {
            **manifest.model_dump(exclude={"blobs"}),
            "verified": signed_by is not None,
            "signed_by": signed_by,
            "releases": sorted(kept_manifests(store)),
            "blobs": len(manifest.blobs),
            "plaintext_bytes": sum(blob.size for blob in manifest.blobs if blob.id != manifest.index),
            "sealed_bytes": sum(manifest.geometry(blob).ciphertext_size + manifest.geometry(blob).digests_size for blob in manifest.blobs),
            "keks": [f"{entry.scheme}:{entry.key_ref}" for entry in keys.recipients],
        }
        if kek:
            dek = unwrap_dek(open_kek(kek, vault), keys, manifest)
            index = open_index(fetch_index(store, manifest), manifest, dek)
            answer["entries"] = [entry.model_dump(exclude={"key"}) for entry in index.entries]
    if json:
        print_json(answer)
    else:
        _print_inspection(answer)


def _print_inspection(answer: dict[str, Any]) -> None:
    rows = {
        "model": f"{answer['model']} release {answer['release']} ({describe_trust(answer['signed_by'])})",
        "created": f"{answer['created']}, expires {answer['expires'] or 'never'}",
        "size": f"{format_size(answer['plaintext_bytes'])} in {answer['blobs'] - 1} files, {format_size(answer['sealed_bytes'])} sealed",
        "cipher": f"{answer['cipher']}, {answer['digest']}, blocks of {format_size(answer['block_size'])}",
        "releases": ", ".join(map(str, answer["releases"])),
        "KEKs": ", ".join(printable(kek) for kek in answer["keks"]),
    }
    for name, value in rows.items():
        typer.echo(f"{name + ':':10}{value}")
    for entry in answer.get("entries", ()):
        what = {"dir": "", "file": entry.get("size"), "symlink": "->"}[entry["kind"]]
        target = f" -> {printable(entry['target'])}" if entry["kind"] == "symlink" else ""
        typer.echo(f"  {entry['kind']:8}{what!s:>15}  {printable(entry['path']) or '.'}{target}")


def gc(
    sealed: Sealed,
    keep: Annotated[int, typer.Option("--keep", min=1, help="Releases to keep: the current one and those before it.")] = 2,
    discard_pending: Annotated[
        bool, typer.Option("--discard-pending", help="Give up an unfinished seal or rotation, and a release that waits for signatures.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove what neither the kept releases nor pending work names."""
    from modelfs.seal.retention import collect_garbage

    with Store(sealed) as store:
        if store.file_size(MANIFEST) is None and not store.names("pending"):
            raise ConfigError(f"{sealed} holds no sealed model (no {MANIFEST}): check the path")
        with store.writer_lock():
            removed = collect_garbage(store, keep, discard_pending)
    if json:
        print_json(vars(removed))
    else:
        releases = ", ".join(map(str, removed.releases)) or "none"
        typer.echo(f"removed releases: {releases}; {removed.blobs} blobs, {format_size(removed.bytes)}")


def forget(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of the model.")],
    state_dir: Annotated[Path | None, typer.Option("--state-dir", help="Where the host remembers releases.")] = None,
) -> None:
    """Forget which release of a model this host has served, when an older one is wanted and right."""
    state = HostState(state_dir or default_state_dir())
    if not state.forget(parse_model(name)):
        raise ConfigError(f"this host remembers nothing of {name} in {state.directory}")
    typer.echo(f"forgot {name}: the next mount accepts any release")
