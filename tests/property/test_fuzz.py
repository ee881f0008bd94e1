"""Every reader of untrusted bytes under fire: only its documented errors come out, soon, and in little memory (targets.py)."""

import copy
import json
import os
import resource
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from modelfs.mount.wire import Opcode
from tests.helpers import REPOSITORY, KeySet
from tests.property.targets import Target, fuse_request, make_targets
from tests.property.test_format import mutations

NAMES = [
    *("manifest", "plan", "keys", "index", "envelope", "plan file", "pending keys", "journal", "digest tree", "configuration"),
    *("host state", "public key", "KEK file", "FUSE request", "FUSE request, locked"),
]
LIMIT_S = 5.0
"""Of processor time, for one input."""
LIMIT_KIB = 256 * 1024
"""Of growth, for all inputs together."""

wild = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=20) | st.integers(-(1 << 70), 1 << 70)
    | st.sampled_from([10**400, "9" * 5000, "../x", "/", "\0", "a" * 5000, [[[[]]]], {"": {}}, 2**53, 2**63, -1]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=6,
)  # fmt: skip
numbers = st.sampled_from([0, 1, 2, 3, 4095, 4096, 1 << 20, (1 << 20) + 1, 1 << 31, (1 << 32) - 1]) | st.integers(0, (1 << 32) - 1)
wide = numbers | st.sampled_from([1 << 32, (1 << 63) - 1, 1 << 63, (1 << 64) - 1])


def is_json(seed: bytes) -> bool:
    """Random bytes may begin like it."""
    try:
        return isinstance(json.loads(seed), dict)
    except ValueError:
        return False


@st.composite
def edited_json(draw: st.DrawFn, seed: bytes) -> bytes:
    """The same document with a value somewhere in it replaced, removed, renamed or doubled: well-formed, and of another shape."""
    document = json.loads(seed)
    for _ in range(draw(st.integers(1, 2))):
        places: list[tuple[Any, Any]] = []

        def walk(value: Any, places: list[tuple[Any, Any]] = places) -> None:
            for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
                places.append((value, key))
                walk(value[key])

        walk(document)
        if not places:
            break
        holder, key = draw(st.sampled_from(places))
        match draw(st.sampled_from(["replace", "remove", "rename", "double"])):
            case "replace":
                holder[key] = copy.deepcopy(draw(wild))  # what is sampled from is edited by nobody
            case "remove":
                del holder[key]
            case "rename" if isinstance(holder, dict):
                holder[draw(st.text(max_size=8))] = holder.pop(key)
            case _ if isinstance(holder, list):
                holder.append(copy.deepcopy(holder[key]))
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return text.encode("utf-8", "surrogatepass")


reads = st.builds(lambda handle, offset, size: struct.pack("<QQI", handle, offset, size), wide, wide, numbers)
bodies = st.binary(max_size=60) | st.builds(bytes.__add__, reads, st.binary(max_size=30))
requests = st.builds(fuse_request, st.sampled_from([*Opcode]) | st.integers(0, 9999), bodies, wide, numbers)


def inputs(name: str, target: Target) -> st.SearchStrategy[bytes]:
    """Bad input for a target, most of it nearly good."""
    seeds = st.sampled_from(list(target.seeds))
    found = st.binary(max_size=300) | seeds.flatmap(mutations) | seeds.flatmap(mutations)
    if is_json(target.seeds[0]):
        found |= seeds.flatmap(edited_json) | seeds.flatmap(edited_json)
    return found | requests | requests if name.startswith("FUSE") else found


@pytest.fixture(scope="module")
def targets(keys_dir: KeySet, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Target]:
    found = make_targets(tmp_path_factory.mktemp("targets") / "x", keys_dir)
    assert list(found) == NAMES
    return found


def check(target: Target, data: bytes) -> None:
    began = time.process_time()
    target.check(data)
    assert time.process_time() - began < LIMIT_S


def fire(name: str, target: Target, examples: int) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    @settings(max_examples=examples, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(inputs(name, target))
    def run(data: bytes) -> None:
        check(target, data)

    run()
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < LIMIT_KIB


@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_good(targets: dict[str, Target], name: str) -> None:
    for seed in targets[name].seeds:
        check(targets[name], seed)


@pytest.mark.parametrize("name", NAMES)
def test_only_documented_errors(targets: dict[str, Target], name: str) -> None:
    fire(name, targets[name], 80)


LONG = {
    "lists": b"[" * 100_000,
    "objects": b'{"a":' * 100_000,
    "dotted keys": b"a." * 50_000 + b"b = 1",
    "digits": b"9" * 100_000,
    "a release": b'{"release":' + b"9" * 100_000 + b"}",
}


@pytest.mark.parametrize("data", LONG.values(), ids=LONG)
@pytest.mark.parametrize("name", NAMES)
def test_deep_and_long_input(targets: dict[str, Target], name: str, data: bytes) -> None:
    check(targets[name], data)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("name", NAMES)
def test_only_documented_errors_for_long(targets: dict[str, Target], name: str) -> None:
    fire(name, targets[name], 5000)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", NAMES)
def test_coverage_guided(name: str, tmp_path: Path) -> None:
    """Atheris follows the branches of the parser itself; a minute for each target."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    command = [
        sys.executable,
        "-m",
        "tests.property.guided",
        name,
        str(tmp_path),
        "-max_total_time=60",
        "-rss_limit_mb=1024",
        "-timeout=10",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280, env=env, cwd=tmp_path)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert int(done.stderr.rpartition("Done ")[2].split()[0]) > 1000, done.stderr[-2000:]
