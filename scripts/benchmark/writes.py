"""Sealing against copying, and verifying without a key against a bare digest of the same bytes."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

from benchmark.cache import files_below, sync, warm
from benchmark.candidates import Gocryptfs, make_keys, seal_command
from benchmark.data import write_random
from benchmark.reads import FILE
from benchmark.results import Results
from benchmark.system import BenchError, install, python, run

DIGEST = Path(__file__).with_name("digest_files.py")


class Writes:
    """One file of random bytes, and a place for what is made of it."""

    def __init__(self, work: Path, size: int, results: Results, rounds: int) -> None:
        """Make the file."""
        self.work, self.size, self.results, self.rounds = work / "writes", size, results, rounds
        self.source = self.work / "source"
        self.source.mkdir(parents=True)
        write_random(self.source / FILE, size)
        make_keys(self.work / "keys")

    def measure_seal(self) -> None:
        """Wall time until everything is on the disk; the source is cached."""
        passes: dict[str, Callable[[Path], None]] = {"cp": self._copy, "modelfs": self._seal}
        gocryptfs = Gocryptfs("gocryptfs", self.source, self.work)
        if install(Gocryptfs.programs):
            self.results.missing["seal: gocryptfs"] = "gocryptfs is not installed"
        else:
            passes["gocryptfs"] = lambda _: self._copy(gocryptfs.path)
        try:
            if "gocryptfs" in passes:
                gocryptfs.create()
                gocryptfs.launch(writable=True)
            for number in range(self.rounds + 1):
                for name, make in passes.items():
                    target = self.work / "made"
                    shutil.rmtree(target, ignore_errors=True)
                    (gocryptfs.path / FILE).unlink(missing_ok=True)
                    os.sync()  # what earlier passes left to write is not this one's
                    warm([self.source / FILE])
                    start = time.perf_counter()
                    make(target)
                    seconds = time.perf_counter() - start
                    if number:
                        self.results.add("seal", name, self.size / seconds / 1e9)
        finally:
            gocryptfs.unmount()
            shutil.rmtree(self.work / "made", ignore_errors=True)
            shutil.rmtree(gocryptfs.store, ignore_errors=True)

    def _copy(self, target: Path) -> None:
        target.mkdir(exist_ok=True)
        run("cp", self.source / FILE, target / FILE)
        run("sync", target / FILE, target)

    def _seal(self, target: Path) -> None:
        run(*seal_command(self.source, target, self.work / "keys"))

    def measure_verify(self) -> None:
        """`modelfs verify` and the blake3 module on the same ciphertext, both as processes of their own, with as many threads."""
        sealed = self.work / "sealed"
        self._seal(sealed)
        blobs = sorted((sealed / "blobs").iterdir())
        size = sum(blob.stat().st_size for blob in blobs)
        sync(blobs)
        trust = self.work / "keys" / "sign.pub"
        commands: dict[str, list[str]] = {
            "modelfs": python("modelfs", "verify", sealed, "--trust", trust),
            "blake3": [sys.executable, str(DIGEST), "blake3", *map(str, blobs)],
        }
        inside = {"modelfs": [sys.executable, str(DIGEST), "verify", str(sealed), str(trust)], "blake3": commands["blake3"]}
        for number in range(self.rounds + 1):
            warm(files_below(sealed))
            for name, command in commands.items():
                start = time.perf_counter()
                run(*command)
                seconds = time.perf_counter() - start
                within = json.loads(run(*inside[name]))["seconds"]
                if number:
                    self.results.add("verify", name, size / seconds / 1e9)
                    self.results.add("verify-inside", name, size / within / 1e9)
        shutil.rmtree(sealed)


def measure_writes(work: Path, size: int, results: Results, rounds: int, rows: set[str]) -> None:
    """The rows `seal` and `verify`, if they are wanted."""
    writes = Writes(work, size, results, rounds)
    try:
        for row, measure in (("seal", writes.measure_seal), ("verify", writes.measure_verify)):
            if row in rows:
                try:
                    measure()
                except (BenchError, OSError) as exc:
                    results.missing[row] = str(exc)
    finally:
        shutil.rmtree(writes.work, ignore_errors=True)
