"""What a check says."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warning", "error", "unknown"]


@dataclass(frozen=True)
class Check:
    """The result of one check. Holds no secret."""

    name: str
    level: Level
    """error: modelfs does not work so; warning: slower or less safe than it could be; unknown: it cannot be found out from here."""
    found: str
    """What is there."""
    advice: str = ""
    """What to do about it; empty when nothing is to be done."""


def has_errors(checks: list[Check]) -> bool:
    """Whether one of them is an error."""
    return any(check.level == "error" for check in checks)
