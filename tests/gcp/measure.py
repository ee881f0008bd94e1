"""Measures how long a mounted model is readable after a denial or in an outage of the stand-in; prints the tables of docs/GCP.md.

python -m tests.gcp.measure --runs 3
"""

import argparse
import tempfile
from pathlib import Path

from tests.gcp.fake import FakeKms
from tests.gcp.leased import DENIALS, NAMES, TTL_S, Leased, run_outages
from tests.helpers import KeySet
from tests.leases.denials import seconds_to_dark
from tests.leases.tables import Times
from tests.leases.watching import mounts, pause


def measure_denial(name: str, leased: Leased, base: Path) -> float:
    """Seconds from when the stand-in has confirmed the denial to the last good read."""
    with mounts(base, {"one": leased.wanted(leased.kms.endpoint)}) as made:
        return seconds_to_dark(made["one"], lambda: DENIALS[name][0](leased))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    times = Times(DENIALS, NAMES, TTL_S)
    with tempfile.TemporaryDirectory(prefix="modelfs-measure.") as directory:
        base = Path(directory)
        (base / "keys").mkdir()
        keys = KeySet.generate(base / "keys")
        with FakeKms(base / "kms").running() as kms:
            for run in range(runs):
                for number, name in enumerate(DENIALS):
                    place = base / f"{run}-{number}"
                    place.mkdir()
                    leased = Leased(kms, keys, place / "model", f"d{run}-{number}")
                    times.add_denial(name, measure_denial(name, leased, place))
                (base / f"outages{run}").mkdir()
                times.add_outages(run_outages(kms, keys, base / f"outages{run}", f"o{run}", pause))
    times.print_tables(runs)


if __name__ == "__main__":
    main()
