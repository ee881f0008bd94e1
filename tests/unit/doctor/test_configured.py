"""Every check of what a mount's configuration file names: right for a good file, and shown to fail for each fault."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path

import pytest

from modelfs.config.mount_file import MountFile
from modelfs.doctor.check import Check, Level, has_errors
from modelfs.doctor.configured import Configured, check_configured
from modelfs.keys.vault_settings import AppRole, Certificate, Jwt, Kubernetes, TokenFile, VaultSettings
from modelfs.trust.host_state import HostState
from tests.conftest import SealedBuilder
from tests.helpers import NOW, Sealed


@dataclass
class Case:
    """A good file, in a directory of its own."""

    subject: Configured
    model: Sealed
    directory: Path

    def say(self, **fields: object) -> None:
        """Change the file; None removes."""
        self.subject = replace(self.subject, file=self.subject.file.model_copy(update=fields))

    def found(self) -> dict[str, Check]:
        checks = check_configured(self.subject)
        names = {check.name: check for check in checks}
        assert len(names) == len(checks)
        return names

    def write(self, name: str, mode: int = 0o600, text: str = "secret\n") -> Path:
        path = self.directory / name
        path.write_text(text)
        path.chmod(mode)
        return path

    def login(self, **options: object) -> VaultSettings:
        return VaultSettings.model_validate({"address": "https://vault.example", **options})


@pytest.fixture
def case(sealed: SealedBuilder, tmp_path: Path) -> Case:
    model = sealed({"model.bin": b"weights"}, release=3)
    directory = tmp_path / "here"
    (directory / "mnt").mkdir(parents=True)
    key = directory / "release.pem.pub"
    key.write_bytes(model.keys.public.read_bytes())
    key.chmod(0o644)
    file = MountFile(
        sealed=str(model.path),
        mountpoint=str(directory / "mnt"),
        model="demo",
        kek=f"file:{model.keys.kek}",
        trust=[str(key)],
        minimum_release=3,
        audit=str(directory / "audit"),
        audit_required=True,
        log=str(directory / "new" / "log"),
    )
    return Case(Configured(file, tmp_path / "state", now=NOW), model, directory)


def test_a_good_file_is_good_and_nothing_is_made(case: Case) -> None:
    case.say(vault=case.login(auth=TokenFile(path=case.write("token")), ca_file=case.write("ca.pem", 0o644)))
    before = sorted(case.directory.rglob("*"))
    found = case.found()
    assert {name: check.level for name, check in found.items()} == dict.fromkeys(
        ("config", "trust", "sealed", "recipient", "mountpoint", "audit", "log", "secrets"), "ok"
    )
    assert not any(check.advice for check in found.values())
    assert sorted(case.directory.rglob("*")) == before
    assert not case.subject.state_dir.exists()


def _missing_sealed(case: Case) -> None:
    case.say(sealed=str(case.directory / "none"))


def _no_model_there(case: Case) -> None:
    case.say(sealed=str(case.directory / "mnt"))


def _other_model(case: Case) -> None:
    case.say(model="other")


def _signed_by_another(case: Case) -> None:
    case.say(trust=[str(case.model.keys.stranger_public)])


def _too_old(case: Case) -> None:
    case.say(minimum_release=4)


def _served_a_newer_one(case: Case) -> None:
    release = case.model.release()
    newer = replace(release, manifest=release.manifest.model_copy(update={"release": 9}))
    HostState(case.subject.state_dir).record(newer)


def _unreadable_key(case: Case) -> None:
    case.say(trust=[str(case.directory / "none.pub")])


def _private_key(case: Case) -> None:
    case.say(trust=[str(case.model.keys.signing)])


def _too_few_keys(case: Case) -> None:
    case.say(threshold=2)


def _loose_key(case: Case) -> None:
    (case.directory / "release.pem.pub").chmod(0o666)


def _foreign_kek(case: Case) -> None:
    case.say(kek=f"file:{case.model.keys.stranger_kek}")


def _no_mountpoint(case: Case) -> None:
    (case.directory / "mnt").rmdir()


def _mountpoint_in_use(case: Case) -> None:
    (case.directory / "mnt" / "file").write_text("")


def _mountpoint_in_the_model(case: Case) -> None:
    case.say(mountpoint=str(case.model.path / "blobs"))


def _mountpoint_is_a_file(case: Case) -> None:
    case.say(mountpoint=str(case.write("file")))


def _audit_nowhere(case: Case) -> None:
    case.say(audit=str(case.directory / "none" / "audit"))


def _audit_is_a_pipe(case: Case) -> None:
    os.mkfifo(case.directory / "audit")


def _audit_is_a_link(case: Case) -> None:
    (case.directory / "audit").symlink_to(case.write("elsewhere"))


def _audit_for_all(case: Case) -> None:
    case.write("audit", 0o666, "")


def _log_is_a_directory(case: Case) -> None:
    case.say(log=str(case.directory / "mnt"))


def _log_below_a_file(case: Case) -> None:
    case.say(log=str(case.write("file") / "log"))


def _audit_required_without_one(case: Case) -> None:
    case.say(audit=None)


def _nothing_named(case: Case) -> None:
    case.say(mountpoint=None, kek=None)


def _unverified(case: Case) -> None:
    case.say(trust=None)


def _loose_token(case: Case) -> None:
    case.say(vault=case.login(auth=TokenFile(path=case.write("token", 0o644))))


def _loose_secret_id(case: Case) -> None:
    auth = AppRole(role_id_file=case.write("role-id"), secret_id_file=case.write("secret-id", 0o640))
    case.say(vault=case.login(auth=auth))


def _no_role_id(case: Case) -> None:
    auth = AppRole(role_id_file=case.directory / "none", secret_id_file=case.write("secret-id"))
    case.say(vault=case.login(auth=auth))


def _loose_tls_key(case: Case) -> None:
    case.say(vault=case.login(auth=Certificate(cert_file=case.write("cert", 0o644), key_file=case.write("key", 0o604))))


def _loose_jwt(case: Case) -> None:
    case.say(vault=case.login(auth=Jwt(role="r", token_file=case.write("jwt", 0o644))))


def _service_account_for_all_to_write(case: Case) -> None:
    case.say(vault=case.login(auth=Kubernetes(role="r", token_file=case.write("jwt", 0o666))))


def _loose_ca(case: Case) -> None:
    case.say(vault=case.login(auth=TokenFile(path=case.write("token")), ca_file=case.write("ca", 0o666)))


def _no_ca(case: Case) -> None:
    case.say(vault=case.login(auth=TokenFile(path=case.write("token")), ca_file=case.directory / "none"))


FAULTS: list[tuple[Callable[[Case], None], str, Level, str]] = [
    (_nothing_named, "config", "unknown", "does not name mountpoint, kek"),
    (_audit_required_without_one, "config", "error", "no audit"),
    (_missing_sealed, "sealed", "error", "No such file"),
    (_no_model_there, "sealed", "error", "holds no sealed model"),
    (_other_model, "sealed", "error", "not 'other'"),
    (_signed_by_another, "sealed", "error", "is signed by 0 of the trusted keys"),
    (_too_old, "sealed", "error", "older than the required 4"),
    (_served_a_newer_one, "sealed", "error", "which this host has served"),
    (_unverified, "sealed", "unknown", "only with model and trust"),
    (_foreign_kek, "recipient", "error", "not wrapped for file:"),
    (_unreadable_key, "trust", "error", "cannot read the trusted key"),
    (_private_key, "trust", "error", "is a private key"),
    (_too_few_keys, "trust", "error", "threshold"),
    (_loose_key, "trust", "warning", "others may write"),
    (_no_mountpoint, "mountpoint", "error", "No such file"),
    (_mountpoint_in_use, "mountpoint", "error", "is not empty"),
    (_mountpoint_in_the_model, "mountpoint", "error", "lies in the sealed model"),
    (_mountpoint_is_a_file, "mountpoint", "error", "is not a directory"),
    (_audit_nowhere, "audit", "error", "is no directory"),
    (_audit_is_a_pipe, "audit", "error", "no regular file"),
    (_audit_is_a_link, "audit", "error", "no regular file"),
    (_audit_for_all, "audit", "warning", "others may write"),
    (_log_is_a_directory, "log", "error", "no regular file"),
    (_log_below_a_file, "log", "error", "is no directory"),
    (_loose_token, "secrets", "error", "open to group or others"),
    (_loose_secret_id, "secrets", "error", "secret id"),
    (_no_role_id, "secrets", "error", "role id"),
    (_loose_tls_key, "secrets", "error", "TLS key"),
    (_loose_jwt, "secrets", "error", "JWT"),
    (_service_account_for_all_to_write, "secrets", "error", "service account token"),
    (_loose_ca, "secrets", "warning", "pose as the key service"),
    (_no_ca, "secrets", "error", "cannot read the CA file"),
]


@pytest.mark.parametrize(("break_it", "name", "level", "text"), FAULTS, ids=[fault[0].__name__[1:] for fault in FAULTS])
def test_a_fault_is_found(case: Case, break_it: Callable[[Case], None], name: str, level: Level, text: str) -> None:
    break_it(case)
    check = case.found()[name]
    assert (check.level, text in check.found) == (level, True), check
    assert check.advice
    assert "secret\n" not in check.found
    assert has_errors([check]) == (level == "error")


def test_an_expired_release(sealed: SealedBuilder, case: Case) -> None:
    model = sealed({"a": b"b"}, name="short", expires=NOW + timedelta(days=1), release=3)
    case.say(sealed=str(model.path))
    assert case.found()["sealed"].level == "ok"
    case.subject = replace(case.subject, now=NOW + timedelta(days=2))
    assert "expired" in case.found()["sealed"].found


def test_a_mountpoint_of_somebody_else(case: Case, monkeypatch: pytest.MonkeyPatch) -> None:
    case.subject = replace(case.subject, euid=12345)
    assert case.found()["mountpoint"].level == "ok", "this user may write there"
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert "fusermount3 refuses" in case.found()["mountpoint"].found


def test_a_service_account_that_others_may_read(case: Case) -> None:
    case.say(vault=case.login(auth=Kubernetes(role="r", token_file=case.write("jwt", 0o644))))
    assert case.found()["secrets"].level == "ok"


def test_an_audit_log_that_is_a_socket_is_not_waited_for(case: Case) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(case.directory / "audit"))
        assert case.found()["audit"].level == "error"
