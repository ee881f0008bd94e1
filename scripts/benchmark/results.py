"""What was measured, as it is collected."""

from collections import defaultdict
from dataclasses import dataclass, field


@dataclass
class Results:
    """Samples by row and candidate; a row that was not measured for a candidate says why."""

    samples: dict[str, dict[str, list[float]]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(list)))
    points: dict[str, dict[str, dict[float, list[float]]]] = field(
        default_factory=lambda: defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    )
    """By curve, candidate and x."""
    missing: dict[str, str] = field(default_factory=dict)
    """Candidate, or `row: candidate`, and the reason."""
    notes: list[str] = field(default_factory=list)

    def add(self, row: str, candidate: str, value: float) -> None:
        """One sample."""
        self.samples[row][candidate].append(value)

    def add_point(self, curve: str, candidate: str, x: float, value: float) -> None:
        """One sample of a curve."""
        self.points[curve][candidate][x].append(value)
