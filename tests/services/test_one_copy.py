"""One sealed copy for a KEK file, a Vault, AWS KMS and Google Cloud KMS: each opens it, and no longer once it is removed."""

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.aws import emulators
from tests.aws.emulators import Emulator
from tests.gcp.fake import DECRYPT, ENCRYPT, FakeKms
from tests.helpers import MODEL, KeySet, Sealed, write_tree
from tests.leases.impostor import server_context
from tests.leases.tls import TlsFront
from tests.mount.conftest import Mounted, modelfs
from tests.vault.server import Server

FILES = {"config.json": b"{}", "weights/model.bin": os.urandom(3_000_001), "empty": b""}


class Services:
    """Four KEKs, and what a process is told to use them: options, and variables of the clouds' own libraries."""

    def __init__(self, server: Server, ministack: Emulator, gcp: FakeKms, authority: Any, keys: KeySet, base: Path) -> None:
        self.front = TlsFront(server_context(*authority.issue("kms-front", is_server=True)), ministack.port)
        key = server.key()
        mounted_at, _, name = key.rpartition("/")
        verbs = ("decrypt", "encrypt", "rewrap")
        rules = "".join(f'path "{mounted_at}/{verb}/{name}" {{ capabilities = ["update"] }}\n' for verb in verbs)
        vault, auth = server.vault, server.token_file(server.policy(rules=rules))
        google = gcp.key("one-copy")
        self.keks = {
            "file": f"file:{keys.kek}",
            "vault": f"vault:{key}",
            "awskms": f"awskms:{ministack.key()}",
            "gcpkms": f"gcpkms:{google}?endpoint={gcp.endpoint}",
        }
        self.options = ["--vault-address", vault.address, "--vault-ca-file", vault.ca.path, "--vault-auth", f"token:{auth.path}"]
        self.environment = {
            **emulators.environment(self.front.address, emulators.credentials_file(base / "aws"), authority.path),
            **gcp.environment(gcp.account("one-copy", google, ENCRYPT, DECRYPT)),
        }

    def run(self, *args: object) -> Any:
        return modelfs(*args, *self.options, environment=self.environment)


@pytest.fixture
def services(server: Server, ministack: Emulator, gcp: FakeKms, authority: Any, keys_dir: KeySet, tmp_path: Path) -> Iterator[Services]:
    made = Services(server, ministack, gcp, authority, keys_dir, tmp_path)
    yield made
    made.front.close()


def test_each_host_mounts_it_by_its_own_service_and_no_longer_once_removed(
    services: Services, keys_dir: KeySet, mount: Callable[..., Mounted], tmp_path: Path
) -> None:
    source, destination = write_tree(tmp_path / "source", FILES), tmp_path / "sealed"
    keks = [part for uri in services.keks.values() for part in ("--kek", uri)]
    signing = ["--sign-key", keys_dir.signing]
    done = services.run("seal", source, destination, "--model", MODEL, "--release", 1, *keks, *signing)
    assert done.returncode == 0, done.stderr
    sealed = Sealed(destination, source, keys_dir, FILES)
    blobs = digests(destination)
    for scheme, uri in services.keks.items():
        options = services.options if scheme == "vault" else []
        mounted = mount(sealed, "--kek", uri, *options, "--proof-timeout", 5, environment=services.environment)
        assert {path: (mounted.path / path).read_bytes() for path in FILES} == FILES
        assert mounted.status()["kek"].startswith(f"{scheme}:")
        mounted.unmount()
    left = list(services.keks)
    subject = [destination, "--model", MODEL, "--trust", keys_dir.public]
    while len(left) > 1:
        gone = left.pop(0)
        opener = ["--with", services.keks[left[0]]]
        done = services.run("recipients", "remove", *subject, "--kek", services.keks[gone], *opener)
        assert done.returncode == 0, done.stderr
        refused = services.run("inspect", destination, "--trust", keys_dir.public, "--kek", services.keks[gone])
        assert refused.returncode == 5, refused.stdout
        assert "not wrapped for" in refused.stderr
        for scheme in left:
            done = services.run("inspect", destination, "--trust", keys_dir.public, "--kek", services.keks[scheme])
            assert done.returncode == 0, done.stderr
            assert "weights/model.bin" in done.stdout
    done = services.run("recipients", "add", *subject, "--kek", services.keks["file"], "--with", services.keks[left[0]])
    assert done.returncode == 0, done.stderr
    mounted = mount(sealed, "--kek", services.keks["file"])
    assert (mounted.path / "weights/model.bin").read_bytes() == FILES["weights/model.bin"]
    assert digests(destination) == blobs, "no blob and no manifest was touched"


def test_rewrap_for_every_service(services: Services, keys_dir: KeySet, tmp_path: Path) -> None:
    """But AWS: its emulator here has no ReEncrypt; tests/aws has one that does."""
    source, destination = write_tree(tmp_path / "source", FILES), tmp_path / "sealed"
    wanted = {scheme: uri for scheme, uri in services.keks.items() if scheme != "awskms"}
    keks = [part for uri in wanted.values() for part in ("--kek", uri)]
    done = services.run("seal", source, destination, "--model", MODEL, "--release", 1, *keks, "--sign-key", keys_dir.signing)
    assert done.returncode == 0, done.stderr
    (path,) = (destination / "keys").iterdir()
    before = path.read_bytes()
    done = services.run("rewrap", destination, "--model", MODEL, "--trust", keys_dir.public, *keks)
    assert done.returncode == 0, done.stderr
    assert path.read_bytes() != before
    for uri in wanted.values():
        done = services.run("inspect", destination, "--trust", keys_dir.public, "--kek", uri)
        assert done.returncode == 0, done.stderr


def digests(sealed: Path) -> dict[str, str]:
    """Everything but the keys."""
    files = [path for path in sealed.rglob("*") if path.is_file() and "keys" not in path.parts[-2:]]
    return {str(path.relative_to(sealed)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
