"""Real models by real loaders, cold, each as a process of its own: seconds from its start to its first answer."""

import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmark.cache import drop, files_below
from benchmark.candidate import Candidate
from benchmark.data import GGUF
from benchmark.reads import Reads
from benchmark.system import REPOSITORY, BenchError, environment, last_words, run

ANSWER_SECONDS = 120


def measure_loads(reads: Reads, models: list[str], names: Sequence[str]) -> None:
    """The models that are there, by the candidates named: the slow ones would show nothing more."""
    candidates = [each for each in reads.candidates if each.name in names]
    loaders: dict[str, Callable[[Path], tuple[float, str]]] = {
        "minilm": load_safetensors,
        "smollm2-shards": load_safetensors,
        "smollm2-gguf": ask_llama_cpp,
    }
    for model in models:
        answers: set[str] = set()

        def measure(candidate: Candidate, model: str = model, answers: set[str] = answers) -> dict[str, float]:
            files = files_below(candidate.path / model)
            drop(files)
            drop(candidate.stored_files())
            seconds, answer = loaders[model](candidate.path / model)
            answers.add(answer)
            if len(answers) > 1:
                raise BenchError(f"another answer from {candidate.name} than from the candidates before: {answers}")
            return {f"load-{model}": seconds}

        reads.interleave(f"load-{model}", measure, candidates)


def load_safetensors(directory: Path) -> tuple[float, str]:
    """Seconds, and what load_safetensors.py answers."""
    start = time.perf_counter()
    answer = run(sys.executable, Path(__file__).with_name("load_safetensors.py"), directory, timeout=ANSWER_SECONDS)
    return time.perf_counter() - start, answer


def ask_llama_cpp(directory: Path) -> tuple[float, str]:
    """Seconds, and the first words of an unmodified llama.cpp server; ending it is not in the time."""
    command = [sys.executable, str(REPOSITORY / "scripts" / "llama_server.py"), str(directory / GGUF)]
    start = time.perf_counter()
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, env=environment())
        try:
            assert process.stdin is not None
            assert process.stdout is not None
            address = process.stdout.readline().strip()
            if not address:
                errors.seek(0)
                raise BenchError(f"the llama.cpp server did not start: {last_words(errors.read())}")
            answer = _ask(address)
            seconds = time.perf_counter() - start
            process.stdin.close()
            process.wait(30)
            return seconds, answer
        finally:
            process.kill()
            process.wait(30)
            if process.stdout is not None:
                process.stdout.close()


def _ask(address: str) -> str:
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    body = json.dumps({"messages": messages, "temperature": 0, "max_tokens": 4}).encode()
    request = urllib.request.Request(f"{address}/v1/chat/completions", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as response:
        return str(json.load(response)["choices"][0]["message"]["content"])
