"""Measures how long a mounted model is readable after a denial or in an outage of the stand-in; prints the tables of docs/GCP.md.

python -m tests.gcp.measure --runs 3
"""

import argparse
import tempfile
from pathlib import Path

from modelfs.keys.vault_session import boottime
from tests.gcp.fake import FakeKms
from tests.gcp.leased import DENIALS, NAMES, TTL_S, Leased, run_outages
from tests.helpers import KeySet
from tests.leases.watching import RENEW_S, Watcher, mounts, pause
from tests.mount.conftest import wait_until
from tests.vault.measure import line


def measure_denial(name: str, leased: Leased, base: Path) -> float:
    """Seconds from when the stand-in has confirmed the denial to the last good read."""
    with mounts(base, {"one": leased.wanted(leased.kms.endpoint)}) as made, Watcher(made["one"], pause_s=0.002) as watcher:
        wait_until(watcher.is_good, 10, "a first read")
        pause()
        DENIALS[name][0](leased)
        denied = boottime()
        wait_until(lambda: not made["one"].is_attached(), 20, "the end of the mount")
    return watcher.last_good().ended - denied


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    runs = parser.parse_args().runs
    denials: dict[str, list[float]] = {name: [] for name in DENIALS}
    outages: dict[str, list[tuple[float, float, float]]] = {name: [] for name in NAMES}
    with tempfile.TemporaryDirectory(prefix="modelfs-measure.") as directory:
        base = Path(directory)
        (base / "keys").mkdir()
        keys = KeySet.generate(base / "keys")
        with FakeKms(base / "kms").running() as kms:
            for run in range(runs):
                for number, name in enumerate(DENIALS):
                    place = base / f"{run}-{number}"
                    place.mkdir()
                    denials[name].append(measure_denial(name, Leased(kms, keys, place / "model", f"d{run}-{number}"), place))
                (base / f"outages{run}").mkdir()
                for name, outcome in run_outages(kms, keys, base / f"outages{run}", f"o{run}", pause).items():
                    last = outcome.good()[-1].ended
                    outages[name].append((last - outcome.began, last - outcome.lease_end[1], outcome.again()[0].ended - outcome.over))
    print(f"Seconds, smallest / median / largest of {runs}; --renew-every {RENEW_S:g}\n")
    print("| denial | to the last good read |\n|---|---|")
    for name, times in denials.items():
        print(line(name, times))
    print(f"\n| outage, --ttl {TTL_S:g} | to the last good read | that read, from the lease's end | service back to the first good read |")
    print("|---|---|---|---|")
    for name, rows in outages.items():
        print(line(name, *(list(column) for column in zip(*rows, strict=True))))


if __name__ == "__main__":
    main()
