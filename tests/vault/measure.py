"""Measures how long a mounted model is readable after a denial or in an outage, and prints the tables of docs/OPERATIONS.md.

python -m tests.vault.measure --runs 5
"""

import argparse
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.helpers import KeySet
from tests.leases.denials import seconds_to_dark
from tests.leases.outages import TTL_S
from tests.leases.tables import Times
from tests.leases.watching import Wanted, mounts, pause
from tests.mount.conftest import Mounted
from tests.vault.leased import DENIALS, Leased
from tests.vault.outages import NAMES, run_outages
from tests.vault.server import Server, dev_vault


def measure_denials(server: Server, keys: KeySet, base: Path) -> dict[str, float]:
    """Seconds from when the server has confirmed each denial to the last good read."""
    leased = {}
    for name in DENIALS:
        leased[name] = Leased(server, keys, base / f"{name}.model")

    def one(name: str, mounted: Mounted) -> float:
        return seconds_to_dark(mounted, lambda: DENIALS[name].act(leased[name]))

    wanted = {name: Wanted(each.sealed, each.options()) for name, each in leased.items()}
    with mounts(base, wanted) as made, ThreadPoolExecutor(len(made)) as pool:
        return dict(zip(made, pool.map(one, made, made.values()), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=5)
    runs = parser.parse_args().runs
    times = Times(DENIALS, NAMES, TTL_S)
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
                    times.add_denial(name, seconds)
                (base / f"outages{run}").mkdir()
                times.add_outages(run_outages(server, keys, base / f"outages{run}", pause))
        finally:
            vault.stop()
    times.print_tables(runs)


if __name__ == "__main__":
    main()
