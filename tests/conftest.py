"""Fixtures of all tests: keys made once, a builder of sealed models, and a guard against mounts that are left behind."""

import os
import re
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.helpers import KeySet, Sealed, seal, write_tree

LONGEST_FIRST = [
    "tests/mount/test_view",
    "tests/systemd",
    "tests/mount/test_refusals",
    "tests/adversarial/test_seal_kill",
    "tests/vault/test_mounted",
    "tests/mount",
    "tests/vault",
    "tests/docs",
    "tests/runtimes",
]
"""So that no worker begins a long file when the others have ended."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the long forms of tests too")
    parser.addoption("--pass", choices=["beside", "alone"], dest="which_pass", help="without the tests marked `alone`, or only those")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if which := config.getoption("which_pass"):
        left_out = [item for item in items if ("alone" in item.keywords) != (which == "alone")]
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]
    if hasattr(config, "workerinput"):
        items.sort(key=_turn)
    for item in items:
        if "slow" in item.keywords and not config.getoption("--slow"):
            item.add_marker(pytest.mark.skip(reason="long form: run with --slow"))


def _turn(item: pytest.Item) -> int:
    return next((turn for turn, name in enumerate(LONGEST_FIRST) if item.nodeid.startswith(name)), len(LONGEST_FIRST))


class ByFile(LoadScopeScheduling):
    """A file's tests share a worker, with what its fixtures made; so do all tests of the one machine that tests/systemd boots."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/systemd" if nodeid.startswith("tests/systemd/") else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> ByFile:
    return ByFile(config, log)


def fuse_mounts(below: Path) -> set[str]:
    """Mountpoints of FUSE file systems at or below a directory."""
    found = set()
    lines = [line for line in os.fsdecode(Path("/proc/self/mounts").read_bytes()).split("\n") if line]
    assert lines, "/proc/self/mounts is empty"
    for line in lines:
        _source, escaped, kind = line.split(" ")[:3]
        point = os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda octal: bytes([int(octal[1], 8)]), os.fsencode(escaped)))
        if kind.partition(".")[0] in ("fuse", "fuseblk") and (Path(point) == below or below in Path(point).parents):
            found.add(point)
    return found


@pytest.fixture(scope="session", autouse=True)
def no_mounts_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the session if a FUSE mount of its own is still there at the end; those of others do not count."""
    base = tmp_path_factory.getbasetemp().resolve()
    assert not fuse_mounts(base)
    yield
    left = fuse_mounts(base)
    assert not left, f"tests left FUSE mounts: {sorted(left)}"


@pytest.fixture(scope="session")
def keys_dir(tmp_path_factory: pytest.TempPathFactory) -> KeySet:
    """A publisher's signing key and KEK, and a stranger's: made once, never changed."""
    return KeySet.generate(tmp_path_factory.mktemp("keys"))


SealedBuilder = Callable[..., Sealed]


@pytest.fixture
def sealed(keys_dir: KeySet, tmp_path: Path) -> SealedBuilder:
    """A builder: `sealed({path: bytes}, symlinks={...}, name="a", **options of helpers.seal)`."""

    def build(
        files: Mapping[str, bytes | None], *, symlinks: Mapping[str, str] | None = None, name: str = "sealed", **options: Any
    ) -> Sealed:
        assert any(content is not None for content in files.values()), "a sealed model needs a file"
        source = write_tree(tmp_path / f"{name}.source", files, symlinks)
        destination = tmp_path / name
        seal(keys_dir, source, destination, **options)
        return Sealed(destination, source, keys_dir, {path: content for path, content in files.items() if content is not None})

    return build
