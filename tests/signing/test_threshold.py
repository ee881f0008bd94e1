"""Two of three release: a key file, a key in a Vault, a key in a token; and a host that no longer trusts one of them."""

import itertools
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs.keys.vault_settings import TokenFile
from tests.helpers import REPOSITORY, KeySet, Sealed, write_tree
from tests.mount.conftest import Mounted, mount
from tests.signing.token import Token
from tests.vault.server import Server

__all__ = ["mount"]

FILES = {"a": b"a" * 20_000, "b": b"b"}


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "modelfs", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False, timeout=120)


def works(*arguments: object) -> str:
    done = run(*arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


class Three:
    """The three keys, how each signs, and the public half of each."""

    def __init__(self, server: Server, token: Token, keys: KeySet, root: Path) -> None:
        settings = server.settings(TokenFile(path=server.directory / "publisher.token"))
        vault = [
            "--vault-address",
            settings.address,
            "--vault-ca-file",
            settings.ca_file,
            "--vault-auth",
            f"token:{server.directory}/publisher.token",
        ]
        uri = token.make_key(71)
        self.signs: dict[str, list[object]] = {
            "file": ["--sign-key", keys.signing],
            "vault": ["--sign-key", "hv:release/1", *vault],
            "token": ["--sign-key", uri, "--pin-file", token.pin_file],
        }
        self.public = {"file": keys.public, "vault": root / "vault.pub", "token": root / "token.pub"}
        works("pubkey", "hv:release/1", "--out", self.public["vault"], *vault)
        works("pubkey", uri, "--out", self.public["token"])

    def trust(self, *names: str, threshold: int = 2) -> list[object]:
        options = [part for name in names or self.public for part in ("--trust", self.public[name])]
        return [*options, "--threshold", threshold]


@pytest.fixture(scope="module")
def three(server: Server, token: Token, keys_dir: KeySet, tmp_path_factory: pytest.TempPathFactory) -> Three:
    return Three(server, token, keys_dir, tmp_path_factory.mktemp("three"))


@pytest.mark.fuse
def test_two_of_three(three: Three, keys_dir: KeySet, tmp_path: Path, mount: Callable[..., Mounted]) -> None:
    """Each pair once: the first seals, the second releases."""
    source, path = write_tree(tmp_path / "src", FILES), tmp_path / "sealed"
    model = Sealed(path, source, keys_dir, FILES)
    for release, (first, second) in enumerate(itertools.combinations(three.public, 2), 1):
        (source / "b").write_bytes(f"release {release}".encode())
        seal = ["seal", source, path, "--model", "demo", "--release", release, "--kek", f"file:{keys_dir.kek}", *three.trust(), "--pending"]
        works(*seal, *three.signs[first])
        one = json.loads(works("sign", path, "--model", "demo", *three.trust(), *three.signs[first], "--json"))
        assert (one["signed"], one["published"], len(one["signed_by"])) == (False, False, 1), "the same key again"
        two = json.loads(works("sign", path, "--model", "demo", *three.trust(), *three.signs[second], "--json"))
        assert (two["signed"], two["published"], len(two["signed_by"])) == (True, True, 2)
        assert len(json.loads(works("verify", path, *three.trust(), "--json"))["signed_by"]) == 2
        assert run("verify", path, *three.trust(threshold=3)).returncode == 4
    mounted = mount(model, *three.trust())
    assert (mounted.path / "b").read_bytes() == b"release 3"
    mounted.unmount()
    # Released by vault and token: a host that has taken either away from its trusted keys refuses it at the next mount.
    for gone, left in (("vault", ("file", "token")), ("token", ("file", "vault"))):
        (tmp_path / gone).mkdir()
        options = ["--model", "demo", "--kek", f"file:{keys_dir.kek}", "--state-dir", tmp_path / f"state-{gone}", *three.trust(*left)]
        refused = run("mount", path, tmp_path / gone, *options)
        assert refused.returncode == 4, refused.stderr
        assert "signed by 1 of the trusted keys and needs 2" in refused.stderr


def test_one_key_twice_is_one_key(three: Three, keys_dir: KeySet, tmp_path: Path) -> None:
    source, path = write_tree(tmp_path / "src", FILES), tmp_path / "sealed"
    works("seal", source, path, "--model", "demo", "--release", 1, "--kek", f"file:{keys_dir.kek}", "--pending", *three.signs["token"])
    envelope = json.loads((path / "pending/manifest.json").read_bytes())
    (own,) = envelope["signatures"]
    envelope["signatures"] = [own, {**own, "keyid": "0" * 64}]
    (path / "pending/manifest.json").write_text(json.dumps(envelope))
    again = json.loads(works("sign", path, "--model", "demo", *three.trust(), *three.signs["token"], "--json"))
    assert (again["signed"], again["published"], len(again["signed_by"])) == (False, False, 1)
    assert not (path / "manifest.json").exists()
    (path / "manifest.json").write_text(json.dumps(envelope))
    refused = run("verify", path, *three.trust())
    assert refused.returncode == 4
    assert "signed by 1 of the trusted keys and needs 2" in refused.stderr


def test_one_signature_where_two_are_demanded_is_refused_before_anything(three: Three, keys_dir: KeySet, tmp_path: Path) -> None:
    source, path = write_tree(tmp_path / "src", FILES), tmp_path / "sealed"
    done = run(
        "seal", source, path, "--model", "demo", "--release", 1, "--kek", f"file:{keys_dir.kek}", *three.trust(), *three.signs["file"]
    )
    assert done.returncode == 2
    assert "use --pending" in done.stderr
    assert not path.exists()
