"""Real models by real loaders, cold, each as a process of its own: seconds from its start to its first answer."""

import json
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmark.cache import drop, files_below
from benchmark.candidate import Candidate
from benchmark.candidates import bring_up, take_down
from benchmark.data import GGUF, add_gguf, add_minilm, add_shards
from benchmark.reads import Reads
from benchmark.results import Results
from benchmark.system import REPOSITORY, BenchError, environment, last_words, run

ANSWER_SECONDS = 120

Loader = Callable[[Path], tuple[float, str]]
"""From a directory to seconds and an answer."""


def measure_loads(work: Path, names: Sequence[str], results: Results, rounds: int) -> None:
    """Every model by its loader, from every candidate; the answers must agree."""
    source = work / "source"
    source.mkdir(parents=True)
    models = _add_models(source, results)
    mounted, missing = bring_up(names, source, work)
    results.missing.update({f"loads: {name}": reason for name, reason in missing.items()})
    reads = Reads(mounted, results, rounds, 0)
    try:
        for model in models:
            loader, answers = LOADERS[model][1], set[str]()

            def measure(candidate: Candidate, model: str = model, loader: Loader = loader, answers: set[str] = answers) -> dict[str, float]:
                drop(files_below(candidate.path / model))
                drop(candidate.stored_files())
                seconds, answer = loader(candidate.path / model)
                answers.add(answer)
                if len(answers) > 1:
                    raise BenchError(f"{model} answers differently from {candidate.name}: {answers}")
                return {f"load-{model}": seconds}

            reads.interleave(f"load-{model}", measure)
    finally:
        take_down(mounted)
        shutil.rmtree(work, ignore_errors=True)


def _add_models(source: Path, results: Results) -> list[str]:
    """Those whose packages are installed."""
    added = []
    for name, (add, _) in LOADERS.items():
        try:
            add(source)
            added.append(name)
        except BenchError as exc:
            results.missing[f"load-{name}"] = str(exc)
            shutil.rmtree(source / name, ignore_errors=True)
    return added


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


LOADERS: dict[str, tuple[Callable[[Path], None], Loader]] = {
    "minilm": (add_minilm, load_safetensors),
    "smollm2-shards": (add_shards, load_safetensors),
    "smollm2-gguf": (add_gguf, ask_llama_cpp),
}
"""Directory of a model: what puts it there, and who loads it."""
