"""Measures proofs, and how long a mounted model is readable after a denial or in an outage; prints the tables of docs/AWS.md.

python -m tests.aws.measure --runs 3
"""

import argparse
import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path

from modelfs.format.keysfile import keys_file
from tests.aws.emulators import Emulator, provider, running
from tests.aws.leased import DENIALS, Leased, variables
from tests.aws.outages import NAMES, TTL_S, run_outages
from tests.helpers import KeySet
from tests.leases.denials import seconds_to_dark
from tests.leases.tables import Times
from tests.leases.watching import mounts, pause
from tests.vault.server import CONTEXT, DEK, dev_vault, manifest


def measure_proofs(leased: Leased, count: int) -> tuple[list[float], list[float]]:
    """(wall, processor) milliseconds of proofs as the prover makes them: in a fork each, by a parent that has the module."""
    walls, processors = [], []
    with variables(leased.environment):
        keys = keys_file([provider(leased.key).wrap_key(DEK, CONTEXT)])
        for _ in range(count):
            started = time.perf_counter()
            pid = os.fork()
            if pid == 0:
                done = 1
                with contextlib.suppress(BaseException):
                    provider(leased.key).prove(keys, manifest(), None, True, 20)
                    done = 0
                os._exit(done)
            _pid, status, usage = os.wait4(pid, 0)
            assert status == 0
            walls.append((time.perf_counter() - started) * 1000)
            processors.append((usage.ru_utime + usage.ru_stime) * 1000)
    return walls, processors


def measure_denial(name: str, leased: Leased, base: Path) -> float:
    """Seconds from when the service has confirmed the denial to the last good read."""
    denial = DENIALS[name]
    wanted = leased.wanted(reference=leased.alias if denial.by_alias else "")
    with contextlib.ExitStack() as stack:
        mounted = stack.enter_context(mounts(base, {"one": wanted}))["one"]
        return seconds_to_dark(mounted, lambda: denial.act(leased, stack))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    times = Times(DENIALS, NAMES, TTL_S)
    with tempfile.TemporaryDirectory(prefix="modelfs-measure.") as directory, contextlib.ExitStack() as stack:
        base = Path(directory)
        (base / "keys").mkdir()
        (base / "ca").mkdir()
        keys, authority = KeySet.generate(base / "keys"), dev_vault.Authority(base / "ca")
        emulators: dict[str, Emulator] = {name: stack.enter_context(running(name, base / name)) for name in ("moto", "ministack")}
        for run in range(runs):
            for name, denial in DENIALS.items():
                place = base / f"{run} {name}"
                leased = Leased(emulators[denial.emulator], authority, keys, place)
                stack.callback(leased.close)
                times.add_denial(name, measure_denial(name, leased, place))
            (base / f"outages{run}").mkdir()
            times.add_outages(run_outages(emulators["ministack"], authority, keys, base / f"outages{run}", pause))
        leased = Leased(emulators["ministack"], authority, keys, base / "proofs")
        stack.callback(leased.close)
        walls, processors = measure_proofs(leased, 20)
    wall, processor = statistics.median(walls), statistics.median(processors)
    print(f"A proof, median of {len(walls)}: {wall:.0f} ms, of which {processor:.0f} ms of a processor\n")
    times.print_tables(runs)


if __name__ == "__main__":
    main()
