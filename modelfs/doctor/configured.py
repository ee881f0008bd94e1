"""What a mount's configuration file names: the sealed model, trusted keys, the mountpoint, logs and the files with secrets."""

import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from modelfs.config.mount_file import MountFile
from modelfs.control.socket import canonical_mountpoint, is_live, socket_path
from modelfs.crypto.keyfiles import read_private
from modelfs.crypto.signatures import TrustedKeys, load_trusted_keys
from modelfs.doctor.check import Check, Level
from modelfs.errors import ConfigError, ModelfsError
from modelfs.keys import open_kek
from modelfs.keys.vault_settings import AppRole, Certificate, Kubernetes, VaultSettings
from modelfs.mount.mountinfo import top_mount
from modelfs.mount.mountpoint import FS_TYPE, check_mountpoint
from modelfs.store.local import Store
from modelfs.trust.host_state import HostState
from modelfs.trust.release import VerifiedRelease, check_minimum, read_keys, read_release

MAX_SECRET_SIZE = 16 * 1024
NEEDED = ("sealed", "mountpoint", "model", "kek", "trust")


@dataclass(frozen=True)
class Configured:
    """A file, and what the checks take of the host."""

    file: MountFile
    state_dir: Path
    euid: int = field(default_factory=os.geteuid)
    now: datetime = field(default_factory=lambda: datetime.now(UTC))


def check_configured(subject: Configured) -> list[Check]:
    """All of them; changes nothing."""
    return [check for make in CHECKS for check in make(subject)]


def _check_complete(subject: Configured) -> Iterator[Check]:
    missing = [name for name in NEEDED if getattr(subject.file, name) is None]
    if missing:
        found = f"the file does not name {', '.join(missing)}"
        yield Check("config", "unknown", found, "name it there, or give it to `modelfs mount` on the command line")
    elif subject.file.audit_required and subject.file.audit is None:
        yield Check("config", "error", "audit_required, and no audit", "name the file of the audit log")
    else:
        yield Check("config", "ok", "the file names everything that a mount needs")


def _check_trust(subject: Configured) -> Iterator[Check]:
    if subject.file.trust is None:
        return
    paths = [Path(path) for path in subject.file.trust]
    try:
        trusted = _trusted(subject)
    except ConfigError as exc:
        yield Check("trust", "error", str(exc), "name the publisher's public keys")
        return
    loose = [str(path) for path in paths if path.stat().st_mode & 0o022]
    if loose:
        yield Check("trust", "warning", f"others may write {', '.join(loose)}, and so decide whom this host trusts", "chmod go-w")
    else:
        yield Check("trust", "ok", f"{len(trusted.keys)} keys, of which {trusted.threshold} must have signed")


def _trusted(subject: Configured) -> TrustedKeys:
    return load_trusted_keys([Path(path) for path in subject.file.trust or []], subject.file.threshold or 1)


def _check_sealed(subject: Configured) -> Iterator[Check]:
    file = subject.file
    if file.sealed is None:
        return
    try:
        with Store(Path(file.sealed)) as store:
            if file.trust is None or file.model is None:
                found = f"{file.sealed} is there; it is verified only with model and trust"
                yield Check("sealed", "unknown", found, "name both in the file")
                return
            release = read_release(store, _trusted(subject), model=file.model, now=subject.now)
            check_minimum(release.manifest, file.minimum_release or 1)
            HostState(subject.state_dir).check(release)
            yield Check("sealed", "ok", f"release {release.manifest.release} of {file.model}, its signature verified")
            yield from _check_recipient(file, store, release)
    except ModelfsError as exc:
        yield Check("sealed", "error", str(exc), "a mount is refused as long as that is so")


def _check_recipient(file: MountFile, store: Store, release: VerifiedRelease) -> Iterator[Check]:
    wrapped: list[str] = []
    not_wrapped: list[str] = []
    entries = read_keys(store, release.manifest).recipients
    for uri, own in file.keks:
        try:
            provider = open_kek(uri, own or file.vault)
        except ModelfsError:
            continue  # the checks of the key say so
        (wrapped if any(map(provider.is_recipient, entries)) else not_wrapped).append(provider.describe())
    if wrapped:
        yield Check("recipient", "ok", f"the release is wrapped for {', '.join(wrapped)}")
    if not_wrapped:
        level: Level = "warning" if wrapped else "error"
        found = f"the release is not wrapped for {', '.join(not_wrapped)}"
        yield Check("recipient", level, found, "have its publisher add this KEK (`modelfs recipients add`)")


def _check_place(subject: Configured) -> Iterator[Check]:
    name, file = "mountpoint", subject.file
    if file.mountpoint is None:
        return
    try:
        place = canonical_mountpoint(Path(file.mountpoint))
        top = top_mount(os.fsencode(place))
        if top is not None and top.fs_type == FS_TYPE:
            if is_live(socket_path(place)):
                yield Check(name, "ok", f"{place} has a modelfs mount now")
            else:
                yield Check(name, "error", f"{place} has a modelfs mount that does not answer", f"umount -l {place}")
            return
        check_mountpoint(place, Path(os.path.realpath(file.sealed)) if file.sealed is not None else Path("/nowhere"))
    except ModelfsError as exc:
        yield Check(name, "error", str(exc), "make an empty directory, or name another")
        return
    if subject.euid != 0 and os.stat(place).st_uid != subject.euid and not os.access(place, os.W_OK):
        yield Check(name, "error", f"{place} does not belong to this user, and fusermount3 refuses it", "chown it, or mount as root")
        return
    yield Check(name, "ok", f"{place} is an empty directory")


def _check_logs(subject: Configured) -> Iterator[Check]:
    for name, path in (("audit", subject.file.audit), ("log", subject.file.log)):
        if path is not None:
            yield _check_appendable(name, Path(path), makes_directory=name == "log")


def _check_appendable(name: str, path: Path, makes_directory: bool) -> Check:
    advice = f"mend it, or name another file in `{name}`: a mount is refused"
    try:
        if os.path.lexists(path):
            # Not opened for writing unless it is a file: opening a pipe can wait for ever.
            mode = os.lstat(path).st_mode
            if not stat.S_ISREG(mode):
                return Check(name, "error", f"{path} is no regular file", advice)
            os.close(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW))
            if mode & 0o022:
                return Check(name, "warning", f"others may write {path}", f"chmod 600 {path}")
            return Check(name, "ok", f"{path} can be written")
    except OSError as exc:
        return Check(name, "error", f"{path} cannot be written: {os.strerror(exc.errno or 0)}", advice)
    there = path.parent
    while makes_directory and not there.exists() and there != there.parent:
        there = there.parent
    if not there.is_dir():
        return Check(name, "error", f"{path} cannot be made: {there} is no directory", advice)
    if not os.access(there, os.W_OK | os.X_OK):
        return Check(name, "error", f"{path} cannot be made: {there} cannot be written", advice)
    return Check(name, "ok", f"{path} can be made")


def _check_secrets(subject: Configured) -> Iterator[Check]:
    tables = [own for _, own in subject.file.keks if own is not None]
    for vault in dict.fromkeys(each for each in (subject.file.vault, *tables) if each is not None):
        yield _check_login(vault)


def _check_login(vault: VaultSettings) -> Check:
    name, faults = "secrets", []
    for path, what, others_may_read in _secret_files(vault):
        try:
            read_private(path, MAX_SECRET_SIZE, what, others_may_read)
        except ConfigError as exc:
            faults.append(str(exc))
    if faults:
        return Check(name, "error", "; ".join(faults), "a login needs each of them, for its owner alone (chmod 600)")
    if vault.ca_file is not None:
        try:
            if vault.ca_file.stat().st_mode & 0o022:
                return Check(name, "warning", f"others may write {vault.ca_file}, and so pose as the key service", "chmod go-w it")
        except OSError as exc:
            return Check(name, "error", f"cannot read the CA file {vault.ca_file}: {os.strerror(exc.errno or 0)}", "name another")
    return Check(name, "ok", "the files of the login are there, and nobody else can read them")


def _secret_files(vault: VaultSettings) -> list[tuple[Path, str, bool]]:
    """Path, what it is, and whether others may read it."""
    auth = vault.auth
    if auth is None:
        return []
    if isinstance(auth, AppRole):
        return [(auth.role_id_file, "role id", False), (auth.secret_id_file, "secret id", False)]
    if isinstance(auth, Certificate):
        return [(auth.key_file, "TLS key", False), (auth.cert_file, "TLS certificate", True)]
    if isinstance(auth, Kubernetes):
        return [(auth.token_file, "service account token", True)]
    return [(auth.path, "token", False)] if auth.method == "token" else [(auth.token_file, "JWT", False)]


CHECKS: tuple[Callable[[Configured], Iterator[Check]], ...] = (
    _check_complete,
    _check_trust,
    _check_sealed,
    _check_place,
    _check_logs,
    _check_secrets,
)
