"""The command line of `scripts/bench`."""

import argparse
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from benchmark import candidates, data, plot, report
from benchmark.loads import measure_loads
from benchmark.reads import Reads, read_ahead_of
from benchmark.results import Results
from benchmark.scale import measure_scale
from benchmark.system import MIB, REPOSITORY, BenchError, install
from benchmark.writes import measure_writes

READS = ["first-read", "cold-read", "second-read", "mmap", "random", "four-readers", "memory", "page-cache"]
WRITES = ["seal", "verify"]
SCALE = ["ready", "file-size", "file-count", "workers", "readers", "model-size", "model-files"]
BEGIN = time.monotonic()
EVERYTHING = [*READS, "loads", *WRITES, *SCALE]
QUICK = [*READS, "loads", *WRITES, "ready"]


STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(frozen=True)
class Order:
    """What is asked for."""

    rows: list[str]
    names: list[str]
    rounds: int
    size: int
    write_size: int
    quick: bool
    results: Path


def main() -> int:
    """Measure and report; 0 also where candidates are missing, which the report says."""
    for number in STOPS:
        signal.signal(number, _stop)
    arguments = _parse(sys.argv[1:])
    try:
        return _run(arguments)
    except BenchError as exc:
        print(f"bench: {exc}", file=sys.stderr)
        return 1
    except OSError as exc:
        where = f" {exc.filename}" if exc.filename else ""
        print(f"bench: cannot go on: {exc.strerror}{where}; see --work and --results", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("bench: interrupted; everything is unmounted, what was measured is in the report", file=sys.stderr)
        return 130


def _run(arguments: argparse.Namespace) -> int:
    if arguments.work is not None and not arguments.work.is_dir():
        raise BenchError(f"{arguments.work} is no directory: name one for the data with --work")
    order = _order(arguments)
    order.results.mkdir(parents=True, exist_ok=True)  # said now, and not after the first row
    with tempfile.TemporaryDirectory(prefix="modelfs-bench-", dir=arguments.work) as temporary:
        work = Path(temporary).resolve()  # as the kernel's table of mounts has it
        if arguments.blocks:
            from benchmark.blocks import measure_blocks

            sys.stdout.write(measure_blocks(work, order.size, order.rounds))
        else:
            measure(order, work)
    return 0


def _stop(number: int, _frame: object) -> NoReturn:
    for each in STOPS:
        signal.signal(each, signal.SIG_IGN)  # a second one must not keep us from unmounting
    raise KeyboardInterrupt(signal.Signals(number).name)


def _parse(words: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/bench", description="Measure modelfs against others in one run: see docs/PERFORMANCE.md."
    )
    parser.add_argument("--quick", action="store_true", help="about two minutes: small files, three rounds, no curves")
    parser.add_argument("--rounds", type=_positive, metavar="N", help="rounds that count; one more is thrown away [5; 3 with --quick]")
    parser.add_argument("--rows", metavar="A,B", help=f"only these: {', '.join(EVERYTHING)}")
    parser.add_argument("--candidates", metavar="A,B", help=f"only these: {', '.join(candidates.DEFAULT)}; modelfs-N has N workers")
    parser.add_argument("--size", type=_positive, metavar="MIB", help="size of the file that is read [256; 128 with --quick]")
    parser.add_argument("--write-size", type=_positive, metavar="MIB", help="size of the file that is sealed [2048; 256 with --quick]")
    parser.add_argument("--work", type=Path, metavar="DIR", help="where the data goes; a disk, not a tmpfs [$TMPDIR]")
    parser.add_argument("--results", type=Path, metavar="DIR", default=REPOSITORY / "results", help="where the report goes [results]")
    parser.add_argument("--blocks", action="store_true", help="compare block sizes instead (docs/FORMAT.md, section 9)")
    return parser.parse_args(words)


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return int(text)


def _order(arguments: argparse.Namespace) -> Order:
    rows = arguments.rows.split(",") if arguments.rows else QUICK if arguments.quick else EVERYTHING
    unknown = set(rows) - set(EVERYTHING)
    if unknown:
        raise BenchError(f"there are no rows {', '.join(sorted(unknown))}: choose from {', '.join(EVERYTHING)}")
    default = candidates.QUICK if arguments.quick else candidates.DEFAULT
    names = arguments.candidates.split(",") if arguments.candidates else default
    for name in names:
        candidates.kind_of(name)
    return Order(
        rows,
        list(dict.fromkeys(names)),
        arguments.rounds or (3 if arguments.quick else 5),
        (arguments.size or (128 if arguments.quick else 256)) * MIB,
        (arguments.write_size or (256 if arguments.quick else 2048)) * MIB,
        arguments.quick,
        arguments.results,
    )


def measure(order: Order, work: Path) -> None:
    """All rows in turn; the report is written after each, so that a run which is cut short has one too."""
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise BenchError("/dev/fuse is missing or not ours: mounts are what is measured")
    results = Results()
    settings: dict[str, object] = {
        "rounds": order.rounds,
        "size_mib": order.size // MIB,
        "write_size_mib": order.write_size // MIB,
        "read_ahead_kb": None,
    }

    def write() -> None:
        found = report.describe(results, ["scripts/bench", *sys.argv[1:]], settings)
        report.write(found, order.results)
        problem = plot.draw(found, order.results)
        if problem:
            results.missing["plot"] = problem

    try:
        if set(order.rows) & set(READS):
            _measure_reads(order, work, results, settings, write)
        if "loads" in order.rows:
            say("loads")
            wanted = ["ext4", "modelfs"] if order.quick else ["ext4", "gocryptfs", "modelfs"]  # slower ones would show nothing more
            measure_loads(work / "loads", [name for name in wanted if name in order.names], results, order.rounds)
            write()
        if set(order.rows) & set(WRITES):
            say("seal, verify")
            measure_writes(work, order.write_size, results, order.rounds, set(order.rows))
            write()
        for row in SCALE:
            if row in order.rows:
                say(row)
                measure_scale(work, results, order.rounds, order.quick, {row})
                write()
    finally:
        write()
    sys.stdout.write((order.results / "report.md").read_text())


def say(text: str) -> None:
    """Progress, on stderr, with the seconds since the beginning."""
    print(f"bench: {time.monotonic() - BEGIN:4.0f} s  {text}", file=sys.stderr, flush=True)


def _measure_reads(order: Order, work: Path, results: Results, settings: dict[str, object], write: Callable[[], None]) -> None:
    source = work / "source"
    data.make_source(source, order.size)
    say(f"preparing {', '.join(order.names)}")
    mounted, missing = candidates.bring_up(order.names, source, work)
    results.missing.update(missing)
    try:
        settings["read_ahead_kb"] = read_ahead_of(mounted)
        reads = Reads(mounted, results, order.rounds, read_ahead_of(mounted))
        parts: dict[str, Callable[[], None]] = {
            "first-read": reads.first_read,
            "cold-read": reads.cold_read,
            "second-read": reads.second_read,
            "mmap": reads.mapped,
            "random": reads.random,
            "four-readers": reads.four_readers,
            "memory": reads.memory,
            "page-cache": reads.page_cache,
        }
        for name, part in parts.items():
            if name not in order.rows:
                continue
            if name == "random" and install(["fio"]):
                results.missing[name] = "fio is not installed (as root the benchmark installs it on Debian)"
                continue
            say(name)
            part()
            write()
    finally:
        candidates.take_down(mounted)
        for each in [source, *(candidate.store for candidate in mounted)]:
            shutil.rmtree(each, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
