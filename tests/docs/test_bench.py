"""scripts/bench runs, in a form as small as it gets, and says what it is asked for; its verdicts follow from its samples."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from benchmark import cache
from benchmark.__main__ import EVERYTHING
from benchmark.report import describe
from benchmark.results import Results
from benchmark.rows import CURVES, ROWS

from tests.conftest import fuse_mounts
from tests.helpers import REPOSITORY
from tests.mount.conftest import wait_until

SETTINGS = {"rounds": 1, "size_mib": 1, "read_ahead_kb": 128}


PATH = os.pathsep.join([str(REPOSITORY / "scripts"), str(REPOSITORY)])


def command(*options: object) -> list[str]:
    return [sys.executable, "-m", "benchmark", *map(str, options)]


def bench(*options: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    env = {**os.environ, "PYTHONPATH": PATH, **variables}
    return subprocess.run(command(*options), capture_output=True, text=True, check=False, timeout=280, cwd=REPOSITORY, env=env)


def report_of(done: "subprocess.CompletedProcess[str]", results: Path) -> dict[str, Any]:
    assert done.returncode == 0, done.stdout + done.stderr
    return dict(json.loads((results / "report.json").read_text()))


@pytest.mark.alone
@pytest.mark.fuse
def test_a_small_run_measures_and_reports(tmp_path: Path) -> None:
    work, results = tmp_path / "work", tmp_path / "results"
    work.mkdir()
    before = cache.read_ahead_kb(work)
    rows = "first-read,cold-read,mmap,memory,page-cache"
    small = ["--quick", "--size", 8, "--rounds", 2, "--work", work, "--results", results, "--rows", rows]
    done = bench(*small, "--candidates", "ext4,passthrough,modelfs,modelfs-1")
    report = report_of(done, results)
    assert not report["missing"], report["missing"]
    assert set(report["rows"]) == {"first-read", "cpu", "cold-read", "mmap-first", "mmap-cold", "memory", "page-cache"}
    for name in ("cold-read", "mmap-cold", "page-cache"):
        assert {"ext4", "passthrough", "modelfs", "modelfs-1"} <= set(report["rows"][name]["candidates"]), name
    for row in report["rows"].values():
        for found in row["candidates"].values():
            assert len(found["samples"]) == 2
            assert min(found["samples"]) > 0
    against = {(bar["candidate"], bar["reference"]) for bar in report["rows"]["cold-read"]["bars"]}
    assert ("modelfs", "ext4") in against
    assert report["rows"]["page-cache"]["candidates"]["ext4"]["median"] == pytest.approx(1, abs=0.01), "each byte is cached once"
    assert "first read from cold disk | modelfs |" in (results / "report.md").read_text()
    assert "first read from cold disk | modelfs |" in done.stdout
    assert "<svg" in (results / "bars.svg").read_text()
    assert not list(work.iterdir())
    assert not fuse_mounts(tmp_path)
    assert cache.read_ahead_kb(work) == before


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.fuse
def test_every_row_and_curve_is_measured(tmp_path: Path) -> None:
    """Of plain files and modelfs; what the others are only is other command lines."""
    small = ["--quick", "--size", 8, "--write-size", 8, "--rounds", 1, "--work", tmp_path, "--results", tmp_path / "results"]
    done = bench(*small, "--rows", ",".join(EVERYTHING), "--candidates", "ext4,modelfs")
    report = report_of(done, tmp_path / "results")
    assert set(report["rows"]) == {row.name for row in ROWS}
    assert set(report["curves"]) == {curve.name for curve in CURVES}
    for name, row in report["rows"].items():
        assert min(row["candidates"]["modelfs"]["samples"]) > 0, name
    for name, curve in report["curves"].items():
        assert len(curve["series"]["modelfs"]["points"]) > 1, name


@pytest.mark.alone
@pytest.mark.fuse
def test_interrupted_again_and_again_it_unmounts(tmp_path: Path) -> None:
    """Who is in a hurry presses Ctrl-C more than once."""
    work, results = tmp_path / "work", tmp_path / "results"
    work.mkdir()
    options = ["--size", 8, "--rounds", 50, "--work", work, "--results", results, "--rows", "first-read", "--candidates", "ext4,modelfs"]
    process = subprocess.Popen(
        command(*options),
        env={**os.environ, "PYTHONPATH": PATH},
        cwd=REPOSITORY,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        wait_until(lambda: bool(fuse_mounts(work)), 60, "a mount")
        while process.poll() is None:
            process.send_signal(signal.SIGINT)
            time.sleep(0.005)
        _out, said = process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130, said
    assert "bench: interrupted" in said.splitlines()[-1]
    assert not fuse_mounts(tmp_path)
    assert not list(work.iterdir())


@pytest.mark.alone
@pytest.mark.fuse
def test_a_candidate_that_cannot_be_had_is_missing_and_the_others_go_on(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    for program in ("fusermount3", "cp"):
        found = shutil.which(program)
        assert found
        (tmp_path / "bin" / program).symlink_to(found)
    options = ["--size", 4, "--rounds", 1, "--work", tmp_path, "--results", tmp_path / "results", "--rows", "page-cache"]
    done = bench(*options, "--candidates", "gocryptfs,modelfs", PATH=str(tmp_path / "bin"))
    report = report_of(done, tmp_path / "results")
    assert list(report["missing"]) == ["gocryptfs"]
    assert "not installed" in report["missing"]["gocryptfs"]
    assert list(report["rows"]["page-cache"]["candidates"]) == ["modelfs"]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--candidates", "ext4,zfs"], "there is no candidate zfs"),
        (["--candidates", "modelfs-0"], "there is no candidate modelfs-0"),
        (["--rows", "first-read,fastest"], "there are no rows fastest"),
        (["--work", "/nowhere/at/all"], "/nowhere/at/all is no directory"),
    ],
)
def test_bad_options_get_one_sentence(options: list[str], said: str) -> None:
    done = bench(*options)
    assert done.returncode == 1
    assert done.stderr.startswith(f"bench: {said}")
    assert done.stderr.count("\n") == 1


def test_bars_are_held_against_medians() -> None:
    results = Results()
    for mine, theirs in ((2.0, 1.0), (2.8, 2.0), (9.0, 3.0)):
        results.add("first-read", "modelfs", mine)
        results.add("first-read", "gocryptfs", theirs)
        results.add("cpu", "modelfs", theirs)
        results.add("cpu", "gocryptfs", mine)
    for candidate in ("modelfs-1", "modelfs-3"):
        results.add("memory", candidate, 250.0)
    report = describe(results, ["bench"], SETTINGS)
    (first,) = report["rows"]["first-read"]["bars"]
    assert (first["reference"], first["ratio"], first["ratio_min"], first["ratio_max"]) == ("gocryptfs", 1.4, 1.4, 3.0)
    assert (first["holds"], first["reaches_aim"]) == (True, False)
    (cpu,) = report["rows"]["cpu"]["bars"]
    assert cpu["ratio"] == pytest.approx(1 / 1.4)
    assert (cpu["holds"], cpu["reaches_aim"]) == (True, False), "less is better"
    held = {bar["candidate"]: (bar["bar"], bar["holds"]) for bar in report["rows"]["memory"]["bars"]}
    assert held == {"modelfs-1": (200, False), "modelfs-3": (280, True)}


def test_growth_worse_than_linear_is_told() -> None:
    results = Results()
    for files in (1, 10, 100, 1000):
        results.add_point("mount-time", "modelfs", files, 0.5 * files)
        results.add_point("mount-memory", "modelfs", files, files**1.5)
        results.add_point("file-count", "modelfs", files, 1000.0 / files)
        results.add_point("readers", "modelfs", files, files)
    curves = describe(results, ["bench"], SETTINGS)["curves"]
    assert {name: curve["linear_or_better"] for name, curve in curves.items()} == {
        "mount-time": True,
        "mount-memory": False,
        "file-count": False,
        "readers": True,
    }
    assert curves["mount-memory"]["series"]["modelfs"]["growth"] == pytest.approx(1.5)


def test_the_page_cache_is_filled_counted_and_emptied(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(os.urandom(1_000_000))
    cache.sync([path])
    cache.warm([path])
    with cache.opened(path) as fd:
        assert cache.cached_pages(fd) == cache.filled_pages(fd, 1_000_000) == 245
    cache.drop([path])
    assert cache.cached_bytes([path]) == 0
    with cache.opened(path) as fd:
        assert cache.filled_pages(fd, 1_000_000) == 0


def test_the_document_explains_every_row() -> None:
    text = (REPOSITORY / "docs" / "PERFORMANCE.md").read_text()
    for each in [*ROWS, *CURVES]:
        assert f"`{each.name}`" in text, each.name
    assert os.access(REPOSITORY / "scripts" / "bench", os.X_OK)
