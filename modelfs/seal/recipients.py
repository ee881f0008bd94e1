"""Who can open the current release: adding, removing and rewrapping entries of its keys file. Needs no signing key, touches no blob.

The manifest is verified first (signature, threshold, model's name), and a DEK counts only if it agrees with the signed commitment: else
whoever writes the storage could have another model's DEK wrapped for a stranger. The keys file is replaced by rename, durably, under the
lock of all writers. What it says of other recipients is kept byte for byte, and nobody vouches for it: it is not signed.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from modelfs.crypto.signatures import TrustedKeys
from modelfs.errors import ConfigError, KeyAccessError, KeyDeniedError, KeyServiceError, LimitExceededError
from modelfs.format.canonical import serialize
from modelfs.format.keysfile import KeysFile, Recipient, keys_file, wrapping_context
from modelfs.format.limits import MAX_KEYS_SIZE, MAX_RECIPIENTS, MAX_UNWRAP_TRIES
from modelfs.format.manifest import Manifest
from modelfs.keys.interface import EntryRefusedError, KeyProvider, agrees_with
from modelfs.keys.several import unwrap_by_any, wrap_for_all
from modelfs.store.local import Store
from modelfs.trust.release import read_keys, read_release

_EVER = datetime.min.replace(tzinfo=UTC)
"""Before every expiry: who may open a release is no matter of its age."""
MAX_LABEL_SIZE = 1024


@dataclass(frozen=True)
class Subject:
    """The release whose recipients are to change."""

    store: Store
    trusted: TrustedKeys
    model: str


@dataclass
class Change:
    """What was done."""

    model: str
    release: int
    recipients: list[Recipient]
    """All of them, as they are now."""
    changed: list[Recipient] = field(default_factory=list)
    """Added, removed (as they were) or rewrapped ones (as they are)."""
    notes: list[str] = field(default_factory=list)


def add_recipients(subject: Subject, openers: Sequence[KeyProvider], added: Sequence[KeyProvider], label: str) -> Change:
    """Wrap the DEK for further KEKs.

    Args:
        subject: See `Subject`.
        openers: KEKs of which one opens the release. Those of `added` that are recipients already may do, too.
        added: KEKs that are to open it as well; a KEK that is a recipient under this label is not added again.
        label: For people.

    Raises:
        ConfigError: All of them are recipients already, or there is no room.
        KeyAccessError: No KEK opens the release, or one cannot wrap.
        VerificationError: The release is not one of the trusted publisher, or of another model.
        StoreError: The store cannot be read or written.
    """
    _check_label(label)

    def edit(manifest: Manifest, entries: list[Recipient], change: Change) -> list[Recipient]:
        def has(provider: KeyProvider) -> bool:
            claims = [entry for entry in entries if provider.is_certain(entry)]
            is_known = (bool(claims) and provider.is_name_global) or any(entry.label == label for entry in claims)
            return is_known or (bool(claims) and _opens(provider, entries, manifest))

        new = [provider for provider in added if not has(provider)]
        if not new:
            _check_claims(added, entries, manifest)
            raise ConfigError(f"{', '.join(provider.describe() for provider in added)} is a recipient already")
        known = [provider for provider in added if any(map(provider.is_recipient, entries))]
        change.notes += [f"{provider.describe()} is a recipient already" for provider in added if provider not in new]
        for provider in new:
            if sum(map(provider.is_certain, entries)) >= MAX_UNWRAP_TRIES:
                raise ConfigError(
                    f"{MAX_UNWRAP_TRIES} entries claim the KEK {provider.describe()} already: hosts try no more, remove some first"
                )
        if len(entries) + len(new) > MAX_RECIPIENTS:
            raise ConfigError(f"a model has at most {MAX_RECIPIENTS} recipients, and this one has {len(entries)}: remove some first")
        dek = _open([*openers, *known], keys_file(entries), manifest)
        context = wrapping_context(manifest.model, manifest.key_id)
        for provider, fresh in zip(new, wrap_for_all(new, dek, context), strict=True):
            # Which key an alias names, the service has said only now.
            same = [entry for entry in entries if provider.is_name_global and entry.name == fresh.name]
            if same:
                _check_claims([provider], same, manifest)
                change.notes.append(f"{provider.describe()} is a recipient already")
            else:
                change.changed.append(fresh.model_copy(update={"label": label}))
        if not change.changed:
            raise ConfigError(f"{', '.join(provider.describe() for provider in added)} is a recipient already")
        return [*entries, *change.changed]

    return _change(subject, edit)


def remove_recipients(subject: Subject, openers: Sequence[KeyProvider], meant: KeyProvider | None, named: str, label: str | None) -> Change:
    """Take entries out of the keys file. Who kept a copy of it, or the DEK, still opens the release.

    Args:
        subject: See `Subject`.
        openers: KEKs of which one opens the release; the one that is removed may do.
        meant: Whose entries; None: the KEK is not at hand.
        named: How entries are listed, which is enough, or the KEK's URI.
        label: Only those with this label; None: whatever their label, as long as there is one of them only.

    Raises:
        ConfigError: There is no such entry, or more than one, or no other; or it cannot be told whether it is the one that is meant.
        KeyAccessError: No KEK opens the release.
        VerificationError, StoreError: As `add_recipients`.
    """

    def edit(manifest: Manifest, entries: list[Recipient], change: Change) -> list[Recipient]:
        found = [entry for entry in _find(entries, meant, named, manifest) if label in (None, entry.label)]
        if not found:
            raise ConfigError(f"{named} is no recipient: `modelfs recipients` lists those that are")
        labels = {entry.label for entry in found}
        if label is None and len(labels) > 1:
            raise ConfigError(f"{named} is {len(found)} recipients: say which with --label")
        if len(found) == len(entries):
            raise ConfigError(f"{named} is the last recipient, without which nobody opens the model: add another one first")
        _open(openers, keys_file(entries), manifest)
        change.changed = found
        rest = [entry for entry in entries if entry not in found]
        if not any(_opens(provider, rest, manifest) for provider in openers):
            change.notes.append("none of the recipients that are left was seen to open the model: try one now (`modelfs inspect --kek`)")
        return rest

    return _change(subject, edit)


def rewrap(subject: Subject, providers: Sequence[KeyProvider]) -> Change:
    """The same DEK under the newest version of each named KEK; all of them, or the file stays as it is.

    An entry that does not open, or whose service refuses it, is left as it is, and said, if another one of the same KEK was rewrapped.

    Raises:
        KeyAccessError: None of the entries of a KEK could be rewrapped.
        VerificationError, StoreError: As `add_recipients`.
    """

    def edit(manifest: Manifest, entries: list[Recipient], change: Change) -> list[Recipient]:
        context, agrees = wrapping_context(manifest.model, manifest.key_id), agrees_with(manifest)
        now, faults = list(entries), dict[int, str]()
        for provider in providers:
            places = [place for place, entry in enumerate(entries) if provider.is_recipient(entry)]
            if not places:
                raise KeyDeniedError(
                    f"the model is not wrapped for the KEK {provider.describe()}: `modelfs recipients` lists those it is for"
                )
            fresh: dict[int, Recipient] = {}
            for place in places:
                made, faults[place] = None, "it does not open to the key that the publisher committed to"
                try:
                    if place in places[:MAX_UNWRAP_TRIES]:
                        made = provider.rewrap_key(entries[place], context, agrees)
                except (EntryRefusedError, KeyDeniedError) as exc:
                    if isinstance(exc, KeyDeniedError) and provider.is_certain(entries[place]):
                        raise
                    faults[place] = str(exc)
                if made is not None:
                    fresh[place] = now[place] = made
            if not fresh:
                why = "; ".join(dict.fromkeys(faults[place] for place in places))
                raise KeyAccessError(f"no entry of {provider.describe()} can be rewrapped, and nothing was changed: {why}")
            change.changed += fresh.values()
        left = [(entries[place].name, why) for place, why in sorted(faults.items()) if now[place] is entries[place]]
        change.notes += [f"an entry of {name} is left as it is: {why}" for name, why in left]
        return now

    return _change(subject, edit)


def _change(subject: Subject, edit: Callable[[Manifest, list[Recipient], Change], list[Recipient]]) -> Change:
    store = subject.store
    with store.writer_lock():
        manifest = read_release(store, subject.trusted, model=subject.model, now=_EVER).manifest
        entries = read_keys(store, manifest).recipients
        change = Change(manifest.model, manifest.release, entries)
        change.recipients = edit(manifest, list(entries), change)
        data = serialize(keys_file(change.recipients))
        if len(data) > MAX_KEYS_SIZE:
            raise LimitExceededError(
                f"the keys file would be {len(data)} bytes, more than the limit of {MAX_KEYS_SIZE}: remove recipients first"
            )
        store.write_file(f"keys/{manifest.key_commitment}.json", data)
    return change


def _find(entries: list[Recipient], meant: KeyProvider | None, named: str, manifest: Manifest) -> list[Recipient]:
    """Entries of one KEK and no other. Which of them an alias names, the service says by opening them; else nobody knows."""
    listed = [entry for entry in entries if entry.name == named]
    if listed or meant is None:
        return listed
    possible = [entry for entry in entries if meant.is_recipient(entry)]
    found = [entry for entry in possible if meant.is_certain(entry) or _opens(meant, [entry], manifest)]
    if possible and not found:
        raise ConfigError(
            f"{named} opens none of {', '.join(sorted({entry.name for entry in possible}))}, and an alias may name any of these entries: "
            "give the ARN as `modelfs recipients` lists it"
        )
    return found


def _check_claims(providers: Sequence[KeyProvider], entries: list[Recipient], manifest: Manifest) -> None:
    """Anybody can write an entry that claims a KEK: it is no recipient before it opens."""
    for provider in providers:
        try:
            unwrap_by_any([provider], keys_file(entries), manifest)
        except KeyServiceError:
            raise
        except KeyAccessError as exc:
            advice = "remove it first" if provider.is_name_global else "if it is another Vault's key, tell this one apart by a --label"
            claimed = next((entry.name for entry in entries if provider.is_recipient(entry)), provider.describe())
            raise ConfigError(f"an entry claims the KEK {claimed}, and does not open: {exc}; {advice}") from None


def _opens(provider: KeyProvider, entries: list[Recipient], manifest: Manifest) -> bool:
    """Whether it is known to open the release; a login that may only wrap cannot know."""
    try:
        unwrap_by_any([provider], keys_file(entries), manifest)
    except KeyAccessError:
        return False
    return True


def _open(openers: Sequence[KeyProvider], keys: KeysFile, manifest: Manifest) -> bytes:
    if not openers:
        raise ConfigError("changing recipients takes a KEK that opens the model: name one with --with URI")
    return unwrap_by_any(openers, keys, manifest)[0]


def _check_label(label: str) -> None:
    try:
        size = len(label.encode())
    except UnicodeEncodeError:
        raise ConfigError("the label is not valid UTF-8") from None
    if size > MAX_LABEL_SIZE or not label.isprintable():
        raise ConfigError(f"a label is at most {MAX_LABEL_SIZE} bytes of printable text")
