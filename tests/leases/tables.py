"""The tables of the docs: what several runs of denials and outages took."""

import statistics
from collections.abc import Iterable, Mapping

from tests.leases.watching import RENEW_S, Outcome


class Times:
    """Seconds by denial and by outage; `print_tables` when all runs are over."""

    def __init__(self, denials: Iterable[str], outages: Iterable[str], ttl_s: float) -> None:
        self._denials: dict[str, list[float]] = {name: [] for name in denials}
        self._outages: dict[str, list[tuple[float, float, float]]] = {name: [] for name in outages}
        self._ttl_s = ttl_s

    def add_denial(self, name: str, seconds: float) -> None:
        """From when the service has confirmed it to the last good read."""
        self._denials[name].append(seconds)

    def add_outages(self, outcomes: Mapping[str, Outcome]) -> None:
        """One run of all of them."""
        for name, outcome in outcomes.items():
            last = outcome.good()[-1].ended
            self._outages[name].append((last - outcome.began, last - outcome.lease_end[1], outcome.again()[0].ended - outcome.over))

    def print_tables(self, runs: int) -> None:
        """As the docs have them."""
        print(f"Seconds, smallest / median / largest of {runs}; --renew-every {RENEW_S:g}\n")
        print("| denial | to the last good read |\n|---|---|")
        for name, times in self._denials.items():
            print(_line(name, times))
        print(
            f"\n| outage, --ttl {self._ttl_s:g} | to the last good read | that read, from the lease's end "
            "| service back to the first good read |"
        )
        print("|---|---|---|---|")
        for name, rows in self._outages.items():
            print(_line(name, *(list(column) for column in zip(*rows, strict=True))))


def _line(name: str, *columns: list[float]) -> str:
    cells = [" / ".join(f"{value:.2f}" for value in (min(column), statistics.median(column), max(column))) for column in columns]
    return f"| {' | '.join([name, *cells])} |"
