"""Measures `modelfs rewrap` of a large model with a reader running, and that mounts do not notice, for docs/OPERATIONS.md.

python -m tests.vault.measure_rewrap --gib 2 --runs 10
"""

import argparse
import resource
import statistics
import tempfile
import time
from pathlib import Path

from tests.helpers import KeySet
from tests.leases.watching import Wanted
from tests.mount.conftest import wait_until
from tests.vault.leased import RENEW_S, Leased, Watcher, mounts, status
from tests.vault.server import running_server


def used_s() -> float:
    """Processor time of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gib", type=float, default=2)
    parser.add_argument("--runs", type=int, default=10)
    options = parser.parse_args()
    times: list[float] = []
    cpu: list[float] = []
    with tempfile.TemporaryDirectory(prefix="modelfs-measure.") as directory, running_server(Path(directory) / "vault") as server:
        base = Path(directory)
        (base / "keys").mkdir()
        (base / "model").mkdir()
        leased = Leased(server, KeySet.generate(base / "keys"), base / "model", int(options.gib * (1 << 30)))
        size = sum(path.stat().st_size for path in (leased.sealed.path / "blobs").iterdir())
        transit = server.root.secrets.transit
        with mounts(base, {"large": Wanted(leased.sealed, leased.options(ttl_s=60))}) as made, Watcher(made["large"]) as watcher:
            wait_until(watcher.is_good, 10, "a first read")
            for run in range(options.runs):
                transit.rotate_key(leased.key_name)
                began, used = time.monotonic(), used_s()
                done = leased.rewrap()
                times.append(time.monotonic() - began)
                cpu.append(used_s() - used)
                assert done.returncode == 0, done.stderr
                transit.update_key_configuration(leased.key_name, min_decryption_version=run + 2)
                wait_until(lambda wanted=run + 2: status(made["large"])["key_version"] == wanted, 5 * RENEW_S, "the new entry")
        assert watcher.bad() == [], "a read failed"
    print(f"{size / (1 << 30):.2f} GiB sealed, {len(times)} rewraps with a reader ({len(watcher.samples)} reads, none failed)")
    for what, found in (("seconds, the whole command", times), ("of them processor time", cpu)):
        print(f"{what}: {min(found):.2f} / {statistics.median(found):.2f} / {max(found):.2f} (smallest, median, largest)")


if __name__ == "__main__":
    main()
