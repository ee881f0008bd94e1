"""Measures how long a mounted model is readable after a denial or in an outage, and prints the tables of docs/OPERATIONS.md.

python -m tests.vault.measure --runs 5
"""

import argparse
import statistics
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from modelfs.keys.vault_session import boottime
from tests.helpers import KeySet
from tests.leases.outages import TTL_S
from tests.leases.watching import RENEW_S, Wanted, Watcher, mounts, pause
from tests.mount.conftest import Mounted, wait_until
from tests.vault.leased import DENIALS, Leased
from tests.vault.outages import NAMES, run_outages
from tests.vault.server import Server, dev_vault


def measure_denials(server: Server, keys: KeySet, base: Path) -> dict[str, float]:
    """Seconds from when the server has confirmed each denial to the last good read."""
    leased = {}
    for name in DENIALS:
        leased[name] = Leased(server, keys, base / f"{name}.model")

    def one(name: str, mounted: Mounted) -> float:
        with Watcher(mounted, pause_s=0.002) as watcher:
            wait_until(watcher.is_good, 10, "a first read")
            pause()
            DENIALS[name].act(leased[name])
            denied = boottime()
            wait_until(lambda: not mounted.is_attached(), 20, "the end of the mount")
        return watcher.last_good().ended - denied

    wanted = {name: Wanted(each.sealed, each.options()) for name, each in leased.items()}
    with mounts(base, wanted) as made, ThreadPoolExecutor(len(made)) as pool:
        return dict(zip(made, pool.map(one, made, made.values()), strict=True))


def line(name: str, *columns: list[float]) -> str:
    """Each column as smallest, median and largest."""
    cells = [" / ".join(f"{value:.2f}" for value in (min(column), statistics.median(column), max(column))) for column in columns]
    return f"| {' | '.join([name, *cells])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    denials: dict[str, list[float]] = {name: [] for name in DENIALS}
    outages: dict[str, list[tuple[float, float, float]]] = {name: [] for name in NAMES}
    with tempfile.TemporaryDirectory(prefix="modelfs-measure.") as directory:
        base = Path(directory)
        (base / "vault").mkdir()
        (base / "keys").mkdir()
        vault = dev_vault.DevVault(base / "vault")
        vault.start()
        try:
            vault.provision()
            server, keys = Server(vault), KeySet.generate(base / "keys")
            for run in range(runs):
                (base / f"denials{run}").mkdir()
                for name, seconds in measure_denials(server, keys, base / f"denials{run}").items():
                    denials[name].append(seconds)
                (base / f"outages{run}").mkdir()
                for name, outcome in run_outages(server, keys, base / f"outages{run}", pause).items():
                    last = outcome.good()[-1].ended
                    outages[name].append((last - outcome.began, last - outcome.lease_end[1], outcome.again()[0].ended - outcome.over))
        finally:
            vault.stop()
    print(f"Seconds, smallest / median / largest of {runs}; --renew-every {RENEW_S:g}\n")
    print("| denial | to the last good read |\n|---|---|")
    for name, times in denials.items():
        print(line(name, times))
    print(f"\n| outage, --ttl {TTL_S:g} | to the last good read | that read, from the lease's end | server back to the first good read |")
    print("|---|---|---|---|")
    for name, rows in outages.items():
        print(line(name, *(list(column) for column in zip(*rows, strict=True))))


if __name__ == "__main__":
    main()
