"""Real models from real packages (`scripts/setup --runtimes`). What is missing is a failure, never a skip."""

import importlib.util
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers import KeySet, Sealed, seal
from tests.mount.conftest import Mounted, mount

__all__ = ["mount"]

BLOCK = 128 * 1024


def model_path(package: str, name: str) -> Path:
    """A file or directory in an installed model package, which is not imported: only its files are wanted."""
    spec = importlib.util.find_spec(package)
    assert spec is not None, f"the package {package} is missing: run scripts/setup --runtimes"
    assert spec.submodule_search_locations, f"{package} is no directory"
    path = Path(spec.submodule_search_locations[0]) / name
    assert path.exists(), f"{package} holds no {name}"
    return path


@pytest.fixture
def mount_model(mount: Callable[..., Mounted], keys_dir: KeySet, tmp_path: Path) -> Callable[[Path], tuple[Path, Path]]:
    """`mount_model(path)` seals a copy of a model's file or directory and mounts it: its path in the plain copy, and in the mount."""

    def do(path: Path) -> tuple[Path, Path]:
        source = tmp_path / "plain"
        if path.is_dir():
            shutil.copytree(path, source)
            name = "."
        else:
            source.mkdir()
            shutil.copyfile(path, source / path.name)
            name = path.name
        destination = tmp_path / "sealed"
        seal(keys_dir, source, destination, block_size=BLOCK)
        mounted = mount(Sealed(destination, source, keys_dir))
        return source / name, mounted.path / name

    return do
