"""`modelfs recipients` and `modelfs rewrap`: who can open the current release, and under which version of his KEK."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from modelfs.cli.config_option import Config, file_of, keks_of
from modelfs.cli.options import Json, Threshold, Trust
from modelfs.cli.output import note, print_json, printable
from modelfs.cli.shown import describe_trust, manifest_to_show
from modelfs.cli.values import parse_model
from modelfs.cli.vault_options import with_vault
from modelfs.crypto.signatures import load_trusted_keys
from modelfs.errors import ConfigError, ModelfsError
from modelfs.format.keysfile import Recipient
from modelfs.keys import list_keks, open_kek, open_keks
from modelfs.keys.interface import KeyProvider
from modelfs.seal.recipients import Change, Subject, add_recipients, remove_recipients, rewrap
from modelfs.store.local import Store
from modelfs.trust.release import read_keys

if TYPE_CHECKING:
    from modelfs.keys.vault_settings import VaultSettings

Sealed = Annotated[Path, typer.Argument(metavar="SEALED", help="Directory of a sealed model.")]
Model = Annotated[str, typer.Option("--model", help="Name of the model that is expected; any other is refused.")]
# Not called `kek`: a configuration file's KEKs are those that open the model.
Meant = Annotated[list[str], typer.Option("--kek", metavar="URI", help="KEK to add or remove, as listed or as a URI; may be repeated.")]
With = Annotated[
    list[str],
    typer.Option(
        "--with", metavar="URI", default_factory=list, show_default=False, help="KEK that opens the model; may be repeated, in order."
    ),
]


class _ListsByDefault(TyperGroup):
    """`modelfs recipients SEALED` is `modelfs recipients list SEALED`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *ctx.help_option_names):
            args = ["list", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(
    cls=_ListsByDefault,
    no_args_is_help=True,
    rich_markup_mode=None,
    help="Show, add or remove KEKs that open the current release: `modelfs recipients SEALED`. Needs no signing key; touches no blob.",
)


def register(root: typer.Typer) -> None:
    """Add the commands of this module."""
    root.add_typer(app, name="recipients")
    app.command(
        "list", epilog="Examples: modelfs recipients list /srv/sealed/llama --trust release.pem.pub | modelfs recipients /srv/sealed/llama"
    )(list_recipients)
    app.command(
        "add",
        epilog="Example: modelfs recipients add /srv/sealed/llama --model llama --trust release.pem.pub --kek file:new --with file:kek",
    )(add)
    app.command(
        "remove",
        epilog="Example: modelfs recipients remove /srv/sealed/llama --model llama --trust release.pem.pub --kek file:old --with file:kek",
    )(remove)
    root.command(
        "rewrap",
        epilog="Example: modelfs rewrap /srv/sealed/llama --model llama --trust release.pem.pub --kek vault:transit/models"
        " --vault-address https://vault:8200 --vault-auth token:FILE",
    )(rewrap_command)


def list_recipients(sealed: Sealed, trust: Trust, threshold: Threshold = 1, json: Json = False) -> None:
    """List the KEKs that the current release is wrapped for. Needs no key."""
    with Store(sealed) as store:
        manifest, signed_by = manifest_to_show(store, trust, threshold)
        entries = read_keys(store, manifest).recipients
    if json:
        answer = {"model": manifest.model, "release": manifest.release, "verified": signed_by is not None, "signed_by": signed_by}
        print_json({**answer, "recipients": [_as_json(entry) for entry in entries]})
        return
    typer.echo(f"{printable(manifest.model)} release {manifest.release} ({describe_trust(signed_by)})")
    typer.echo("recipients, which nobody signs; an entry is proved by opening the model with it:")
    for entry in entries:
        typer.echo(f"  {_describe(entry)}")


@with_vault
def add(
    context: typer.Context,
    sealed: Sealed,
    model: Model,
    trust: Trust,
    who: Meant,
    opener: With,
    threshold: Threshold = 1,
    label: Annotated[str, typer.Option("--label", help="What to call it, for people.")] = "",
    vault: "VaultSettings | None" = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Let further KEKs open the current release. A KEK that opens it now is named with --with, or by a host's --config."""
    openers, added = _openers(context, opener, vault), open_keks(who, vault)
    change = _run(sealed, model, trust, threshold, lambda subject: add_recipients(subject, openers, added, label))
    _say(change, "added", "now opens with", json)


@with_vault
def remove(
    context: typer.Context,
    sealed: Sealed,
    model: Model,
    trust: Trust,
    who: Meant,
    opener: With,
    threshold: Threshold = 1,
    label: Annotated[str | None, typer.Option("--label", help="Only the entry with this label.", show_default=False)] = None,
    vault: "VaultSettings | None" = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Take a KEK away from the current release. It does not take back what that KEK's holders kept: `modelfs rotate` does."""
    openers = _openers(context, opener, vault)
    if len(who) != 1:
        raise ConfigError("--kek names the one KEK to remove: remove others one after the other")
    meant: KeyProvider | None = None
    try:
        meant = open_kek(who[0], vault)
    except ModelfsError as exc:
        if not openers:  # the one to remove may be lost: then another one opens the model
            raise ConfigError(f"{exc}; to remove a KEK that is not at hand, name one that opens the model with --with URI") from None

    more = [] if openers or meant is None else [meant]
    change = _run(sealed, model, trust, threshold, lambda subject: remove_recipients(subject, [*openers, *more], meant, who[0], label))
    change.notes.append(
        "who kept a copy of the keys file, or the key that it held, still opens this release: `modelfs rotate` ends that, and new releases"
        " are wrapped only for the KEKs that `modelfs seal` names"
    )
    _say(change, "removed", "does not open any more with", json)


@with_vault
def rewrap_command(
    context: typer.Context,
    sealed: Sealed,
    model: Model,
    trust: Trust,
    kek: Annotated[
        list[str],
        typer.Option("--kek", metavar="URI", help="KEK whose newest version is to wrap the release's key; may be repeated."),
    ],
    threshold: Threshold = 1,
    vault: "VaultSettings | None" = None,
    config: Config = None,
    json: Json = False,
) -> None:
    """Wrap the current release's key by the newest version of its KEK. Milliseconds, whatever the size; mounts do not notice."""
    providers = [each.open() for each in keks_of(context, kek, vault)]
    change = _run(sealed, model, trust, threshold, lambda subject: rewrap(subject, providers))
    _say(change, "rewrapped", "is wrapped anew by", json)


def _run(sealed: Path, model: str, trust: list[Path], threshold: int, action: Callable[[Subject], Change]) -> Change:
    trusted, name = load_trusted_keys(trust, threshold), parse_model(model)
    with Store(sealed) as store:
        return action(Subject(store, trusted, name))


def _openers(context: typer.Context, uris: list[str], vault: "VaultSettings | None") -> list[KeyProvider]:
    """What --with names, before what the configuration file does."""
    from_file = [(uri, own or vault) for uri, own in file_of(context).keks]
    return [*(open_kek(uri, vault) for uri in uris), *(each.open() for each in (list_keks(from_file) if from_file else ()))]


def _say(change: Change, verb: str, phrase: str, json: bool) -> None:
    for text in change.notes:
        note(text)
    untouched = [entry for entry in change.recipients if entry not in change.changed]
    if json:
        print_json(
            {
                "model": change.model,
                "release": change.release,
                verb: [_as_json(entry) for entry in change.changed],
                "untouched": [_as_json(entry) for entry in untouched],
            }
        )
        return
    typer.echo(f"{change.model} release {change.release} {phrase} {'; '.join(map(_describe, change.changed))}")
    typer.echo(f"untouched: {'; '.join(map(_describe, untouched)) or 'none'}")


def _as_json(entry: Recipient) -> dict[str, Any]:
    return {"scheme": entry.scheme, "key_ref": entry.key_ref, "label": entry.label, "key_version": entry.key_version}


def _describe(entry: Recipient) -> str:
    version = "" if entry.key_version is None else f", version {entry.key_version}"
    label = f", labelled {entry.label!r}" if entry.label else ""
    return printable(f"{entry.name}{version}{label}")
