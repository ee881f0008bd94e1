"""`modelfs rotate`, `modelfs sign` and what `--pending` leaves: what they say, in text and in JSON, and how they refuse."""

import re
import shlex
import sys
from pathlib import Path

import pytest

from tests.cli.conftest import Cli, Result
from tests.helpers import MODEL, write_tree


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_tree(tmp_path / "src", {"config.json": b"{}", "d/weights": b"w" * 10_000})


@pytest.fixture
def sealed(cli: Cli, source: Path, tmp_path: Path) -> Path:
    cli.seal(source, tmp_path / "sealed").succeeds()
    return tmp_path / "sealed"


def rotate(cli: Cli, sealed: Path, *more: object, release: int = 2, model: str = MODEL) -> Result:
    options = ["--model", model, "--release", release, "--kek", f"file:{cli.keys.kek}", "--sign-key", cli.keys.signing]
    return cli.run("rotate", sealed, *options, "--trust", cli.keys.public, *more)


def sign(cli: Cli, sealed: Path, *more: object, threshold: int = 2) -> Result:
    trust = ["--trust", cli.keys.public, "--trust", cli.keys.stranger_public, "--threshold", threshold]
    return cli.run("sign", sealed, "--model", MODEL, *trust, *more)


COST = re.compile(
    r"modelfs: rotating demo release 1 to 2: 2 files; reads [\d.]+ KiB, writes [\d.]+ KiB of [\d.]+ [GT]iB free; "
    r"at least 1 s of this host's processors, more if the storage is slower\n"
)


def test_rotate_says_its_cost_first(cli: Cli, sealed: Path) -> None:
    dry = rotate(cli, sealed, "--dry-run")
    assert (dry.code, dry.out) == (0, "")
    assert COST.fullmatch(dry.err)
    assert "release 1 is whole" in cli.verify(sealed).out
    done = rotate(cli, sealed)
    assert done.code == 0
    assert COST.fullmatch(done.err)
    assert "rotated demo release 1 to 2: 2 files, 9.8 KiB (2 encrypted anew, 0 finished earlier)" in done.out
    assert f"the old keys open release 1 until `modelfs gc {sealed} --keep 1` has removed it" in done.out
    assert "demo release 2 is whole: 3 blobs" in cli.verify(sealed).succeeds().out
    assert re.search(r"file +10000  d/weights\n", cli.inspect(sealed).succeeds().out)


def test_rotate_in_json(cli: Cli, sealed: Path) -> None:
    dry = rotate(cli, sealed, "--dry-run", "--json").succeeds().json
    done = rotate(cli, sealed, "--from", 1, "--json").json
    assert (done["release"], done["old_release"], done["files"], done["encrypted"], done["resumed"]) == (2, 1, 2, 2, 0)
    assert done["pending"] is False
    steady = {name: value for name, value in dry.items() if name not in ("free_bytes", "least_seconds")}
    assert steady.items() <= done["cost"].items()
    assert dry["write_bytes"] > dry["plaintext_bytes"] == 10_002


def test_rotate_refuses(cli: Cli, sealed: Path, tmp_path: Path) -> None:
    rotate(cli, sealed, release=1).fails(4, "release 1 does not grow", "use 2 or more")
    rotate(cli, sealed, "--from", 2, release=3).fails(4, "holds release 1 and not 2, which is to be rotated", "--from 1")
    rotate(cli, sealed, "--from", 0).fails(2, "a release is a number from 1")
    rotate(cli, sealed, model="other").fails(4, "this is the model 'demo', not 'other'")
    rotate(cli, tmp_path / "src").fails(6, "holds no sealed model")
    rotate(cli, sealed, "--threshold", 2).fails(2, "a threshold of 2 cannot be met")
    rotate(cli, sealed, "--trust", cli.keys.stranger_public, "--threshold", 2).fails(2, "use --pending")
    cli.run(
        "rotate", sealed, "--model", MODEL, "--release", 2, "--kek", f"file:{cli.keys.stranger_kek}", "--sign-key", cli.keys.signing,
        "--trust", cli.keys.public,
    ).fails(5, "not wrapped for the KEK")  # fmt: skip


def test_release_by_two(cli: Cli, source: Path, sealed: Path) -> None:
    cli.seal(source, sealed, "--pending", release=2, trust=True).succeeds()
    assert "release 1 is whole" in cli.verify(sealed).out
    looked = sign(cli, sealed).succeeds().out
    assert "model:    demo release 2, which replaces 1" in looked
    assert re.search(r"payload:  [0-9a-f]{64}\n", looked)
    assert "size:     9.8 KiB in 2 files" in looked
    assert re.search(r"signed:   [0-9a-f]{64} \(1 of 2\)\n", looked)
    assert "(not signed)" in looked
    assert "nothing was signed by this command\nwaiting: 1 of 2 signatures\n" in looked
    again = sign(cli, sealed, "--sign-key", cli.keys.signing).succeeds().out
    assert "this key has signed it already: no signature was added\nwaiting: 1 of 2 signatures\n" in again
    done = sign(cli, sealed, "--sign-key", cli.keys.stranger_signing).succeeds().out
    assert done.endswith("published: 2 of 2 signatures\n")
    assert "release 2 is whole" in cli.verify(sealed, "--trust", cli.keys.stranger_public, "--threshold", 2).out
    sign(cli, sealed, "--sign-key", cli.keys.signing).fails(2, "no release waits")


HINT = re.compile(r"look at it with `modelfs ([^`]+)`")


def type_hint(cli: Cli, text: str) -> Result:
    """Run the command that a message tells to run, as a shell would."""
    match = HINT.search(text)
    assert match, text
    return cli.run(*shlex.split(match[1]))


def test_what_is_said_can_be_typed(cli: Cli, source: Path, tmp_path: Path) -> None:
    """And this is how a model moves from one signature to two."""
    sealed = tmp_path / "it's a model"
    both = ["--trust", cli.keys.stranger_public, "--threshold", 2]
    cli.seal(source, sealed).succeeds()
    told = rotate(cli, sealed, *both, "--pending")
    assert told.code == 0
    assert "(1 of 2)" in type_hint(cli, told.out).succeeds().out
    for told in (rotate(cli, sealed, *both, "--pending", release=3), cli.seal(source, sealed, *both, "--pending", release=3, trust=True)):
        told.fails(2, "a release waits", "--discard-pending")
        assert "(1 of 2)" in type_hint(cli, told.err).succeeds().out
    sign(cli, sealed, "--sign-key", cli.keys.stranger_signing).succeeds()
    told = cli.seal(source, sealed, *both, "--pending", release=3, trust=True).succeeds()
    assert "(0 encrypted, 2 unchanged" in told.out
    assert "demo release 3, which replaces 2" in type_hint(cli, told.out).succeeds().out


def test_what_a_first_seal_says_can_be_typed(cli: Cli, source: Path, tmp_path: Path) -> None:
    """Without --trust: the public key that lies beside the signing key."""
    told = cli.seal(source, tmp_path / "sealed", "--pending").succeeds().out
    assert "demo release 1, which replaces nothing" in type_hint(cli, told).succeeds().out


def test_sign_in_json(cli: Cli, sealed: Path) -> None:
    rotate(cli, sealed, "--pending", "--json")
    looked = sign(cli, sealed, "--json").succeeds().json
    assert (looked["model"], looked["release"], looked["replaces"], looked["blobs"], looked["plaintext_bytes"]) == (MODEL, 2, 1, 3, 10_002)
    assert (looked["signed"], looked["published"], len(looked["signed_by"]), len(looked["keks"])) == (False, False, 1, 1)
    digest = looked["payload_digest"]
    key = ["--sign-key", cli.keys.stranger_signing]
    sign(cli, sealed, *key, "--payload-digest", "0" * 64, "--json").fails(4, digest, "0" * 64)
    sign(cli, sealed, *key, "--payload-digest", "x").fails(2, "64 hex digits")
    done = sign(cli, sealed, *key, "--payload-digest", digest, "--json").succeeds().json
    assert (done["signed"], done["published"], len(done["signed_by"])) == (True, True, 2)


def test_sign_refuses(cli: Cli, source: Path, sealed: Path, tmp_path: Path) -> None:
    sign(cli, sealed).fails(2, "no release waits", "modelfs seal --pending")
    sign(cli, tmp_path / "nowhere").fails(6, "open the sealed model")
    cli.seal(source, sealed, "--pending", release=2, trust=True).succeeds()
    cli.run("sign", sealed, "--model", MODEL, "--threshold", 1).fails(2, "no trusted key")
    cli.run("sign", sealed, "--model", MODEL, "--trust", cli.keys.stranger_public).fails(4, "signed by 0 of the trusted keys and needs 1")
    cli.run("sign", sealed, "--model", "other", "--trust", cli.keys.public).fails(4, "this is the model 'demo', not 'other'")
    cli.seal(source, sealed, release=3, trust=True).fails(2, "a release waits", "--discard-pending")


def test_gc_discards_what_waits_only_when_told(cli: Cli, source: Path, sealed: Path) -> None:
    rotate(cli, sealed, "--pending", "--json")
    assert "removed releases: none; 0 blobs" in cli.run("gc", sealed).succeeds().out
    assert "removed releases: none; 3 blobs" in cli.run("gc", sealed, "--discard-pending").succeeds().out
    sign(cli, sealed).fails(2, "no release waits")
    assert "release 1 is whole" in cli.verify(sealed).succeeds().out
    cli.seal(source, sealed, release=2, trust=True).succeeds()


def test_one_signature_is_not_two(cli: Cli, source: Path, sealed: Path) -> None:
    both = ["--trust", cli.keys.stranger_public, "--threshold", 2]
    cli.seal(source, sealed, *both, release=2, trust=True).fails(2, "one signature is not the 2 that --threshold demands")


MALFORMED = {"hsm:x": "hsm:ID", "gcpkms:x": "cryptoKeyVersions", "azurekms:x": "azurekms://", "awskms:x": "name a key"}
EXTRAS = {
    "hsm:1": ("pkcs11", "hsm"),
    "gcpkms:x": ("google", "gcp"),
    "azurekms:x": ("azure", "azure"),
    "awskms:x": ("botocore", "aws"),
    "hv:x/1": ("hvac", "vault"),
}
OURS = re.compile(r"modelfs\.keys\.(\w+_(sign|api)|aws|vault)")


@pytest.mark.parametrize(("key", "text"), MALFORMED.items())
def test_malformed_signing_keys(cli: Cli, sealed: Path, tmp_path: Path, key: str, text: str) -> None:
    cli.run("pubkey", key, "--out", tmp_path / "pub").fails(2, text)
    assert not (tmp_path / "pub").exists()
    rotate(cli, sealed, "--sign-key", key).fails(2, text)


@pytest.mark.parametrize("key", EXTRAS)
def test_a_missing_extra_is_named(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str) -> None:
    package, extra = EXTRAS[key]
    for name in list(sys.modules):
        if name.partition(".")[0] == package or OURS.fullmatch(name):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    cli.run("pubkey", key, "--out", tmp_path / "pub").fails(2, f"install modelfs[{extra}]")
