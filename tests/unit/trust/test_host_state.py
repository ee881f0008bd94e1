"""What a host remembers: older releases and other contents of the same release are refused."""

import os
from dataclasses import replace
from pathlib import Path

import pytest

from modelfs.errors import ConfigError, RollbackError
from modelfs.trust.host_state import HostState
from modelfs.trust.release import VerifiedRelease
from tests.conftest import SealedBuilder


@pytest.fixture
def first(sealed: SealedBuilder) -> VerifiedRelease:
    return sealed({"a": b"x"}, release=5).release()


@pytest.fixture
def state(tmp_path: Path) -> HostState:
    return HostState(tmp_path / "no" / "state" / "yet")


def other(release: VerifiedRelease, number: int = 5, digest: str = "") -> VerifiedRelease:
    manifest = release.manifest.model_copy(update={"release": number})
    return replace(release, manifest=manifest, payload_digest=digest or release.payload_digest)


def test_unknown_model_is_accepted_and_nothing_is_written(state: HostState, first: VerifiedRelease) -> None:
    state.check(first)
    assert state.seen("demo") is None
    assert not state.directory.exists()


def test_record_is_private_and_leaves_no_temporary_file(state: HostState, first: VerifiedRelease) -> None:
    state.record(first)
    assert state.directory.stat().st_mode & 0o777 == 0o700
    assert os.listdir(state.directory) == ["demo.json"]
    seen = state.seen("demo")
    assert seen is not None
    assert (seen.model, seen.release, seen.payload_digest) == ("demo", 5, first.payload_digest)


def test_same_release_and_newer_ones_are_accepted(state: HostState, first: VerifiedRelease) -> None:
    state.record(first)
    state.check(first)
    state.check(other(first, 6, "f" * 64))
    state.record(other(first, 6, "f" * 64))
    assert state.seen("demo").release == 6


def test_older_release_is_refused(state: HostState, first: VerifiedRelease) -> None:
    state.record(first)
    with pytest.raises(RollbackError, match="release 4 of demo is older than release 5") as caught:
        state.check(other(first, 4))
    assert "modelfs forget demo" in str(caught.value)


def test_same_release_with_another_payload_is_refused(state: HostState, first: VerifiedRelease) -> None:
    state.record(first)
    with pytest.raises(RollbackError, match="another content"):
        state.check(other(first, 5, "0" * 64))


def test_models_are_remembered_apart(state: HostState, first: VerifiedRelease) -> None:
    state.record(first)
    another = replace(first, manifest=first.manifest.model_copy(update={"model": "demo2", "release": 1}))
    state.check(another)
    state.record(another)
    assert (state.seen("demo").release, state.seen("demo2").release) == (5, 1)


def test_recording_again_does_not_rewrite(state: HostState, first: VerifiedRelease) -> None:
    state.record(first)
    before = (state.directory / "demo.json").stat()
    state.record(first)
    assert (state.directory / "demo.json").stat() == before


CORRUPT = {
    "empty": b"",
    "truncated": b'{"model":"demo","payload_digest":"',
    "zeros": bytes(100),
    "another model's": b'{"model":"other","payload_digest":"' + b"0" * 64 + b'","release":1}',
    "unknown field": b'{"model":"demo","more":1,"payload_digest":"' + b"0" * 64 + b'","release":1}',
    "not canonical": b'{"model": "demo","payload_digest":"' + b"0" * 64 + b'","release":1}',
    "too long": b" " * 5000,
}


@pytest.mark.parametrize("content", CORRUPT.values(), ids=CORRUPT)
def test_corrupt_memory_is_not_ignored(state: HostState, first: VerifiedRelease, content: bytes) -> None:
    state.record(first)
    (state.directory / "demo.json").write_bytes(content)
    for call in (lambda: state.check(first), lambda: state.record(first), lambda: state.seen("demo")):
        with pytest.raises(ConfigError, match="modelfs forget demo"):
            call()
    assert (state.directory / "demo.json").read_bytes() == content


def test_unreadable_memory_is_not_ignored(state: HostState, first: VerifiedRelease) -> None:
    (state.directory / "demo.json").mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot read the host's memory"):
        state.check(first)


def test_forget(state: HostState, first: VerifiedRelease) -> None:
    assert not state.forget("demo")
    state.record(first)
    assert state.forget("demo")
    assert state.seen("demo") is None
    state.check(other(first, 1))


def test_record_where_nothing_can_be_written(tmp_path: Path, first: VerifiedRelease) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match=r"cannot (read|write|use) the host's memory"):
        HostState(tmp_path / "file").record(first)
