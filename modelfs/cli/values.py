"""Command-line values: sizes, dates, paths of this host. Each refuses what it does not understand in one sentence."""

import logging
import os
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from modelfs.control.lease import LeasePolicy
from modelfs.errors import ConfigError
from modelfs.format.fields import check_model_name
from modelfs.format.geometry import is_block_size
from modelfs.format.limits import MAX_RELEASE

if TYPE_CHECKING:
    from modelfs.config.mount_file import MountFile

_SIZE = re.compile(r"([0-9]{1,10})\s*(?:([KM])(?:i?B)?|B)?", re.IGNORECASE)


def parse_block_size(text: str) -> int:
    """`128K`, `256KiB`, `1M` or plain bytes."""
    match = _SIZE.fullmatch(text.strip())
    value = int(match[1]) * {"": 1, "K": 1024, "M": 1024 * 1024}[(match[2] or "").upper()] if match else 0
    if not is_block_size(value):
        raise ConfigError(f"{text!r} is not a block size: use a power of two from 4K to 4M, for example 128K")
    return value


def parse_expiry(text: str, now: datetime) -> datetime:
    """An ISO 8601 date (midnight UTC) or time (UTC unless it says otherwise), in the future."""
    try:
        moment = datetime.fromisoformat(text)
        moment = moment.astimezone(UTC) if moment.tzinfo else moment.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        raise ConfigError(f"{text!r} is not a date: use YYYY-MM-DD or YYYY-MM-DDTHH:MM:SSZ") from None
    if moment <= now:
        raise ConfigError(f"the expiry date {text} has passed already: name a later one")
    return moment


def parse_model(name: str) -> str:
    """A model name."""
    try:
        return check_model_name(name)
    except ValueError as exc:
        raise ConfigError(f"{name!r} is no model name: {exc}") from None


def check_release(release: int) -> int:
    """A release number."""
    if not 1 <= release <= MAX_RELEASE:
        raise ConfigError(f"a release is a number from 1 to {MAX_RELEASE}, not {release}")
    return release


def default_state_dir() -> Path:
    """/var/lib/modelfs for root, $XDG_STATE_HOME/modelfs for others."""
    if os.geteuid() == 0:
        return Path("/var/lib/modelfs")
    home = os.environ.get("XDG_STATE_HOME") or os.path.expanduser("~/.local/state")
    return Path(home) / "modelfs"


def parse_workers(text: str) -> int:
    """A number of workers, or `auto`: one for each core, at most 16."""
    if text == "auto":
        return min(16, os.cpu_count() or 1)
    if not text.isdecimal() or not 1 <= int(text) <= 256:
        raise ConfigError(f"{text!r} is no number of workers: use 1 to 256, or auto")
    return int(text)


def check_id(number: int) -> int:
    """A user or group id."""
    if not 0 <= number < 2**32 - 1:
        raise ConfigError(f"{number} is no user or group id: use 0 to {2**32 - 2}")
    return number


def parse_octal(text: str) -> int:
    """Permission bits in octal."""
    if not re.fullmatch(r"0?[0-7]{3}", text):
        raise ConfigError(f"{text!r} is no mode: use three octal digits, for example 440")
    return int(text, 8)


def parse_log_level(text: str) -> int:
    """`debug`, `info`, `warning` or `error`, as logging's number."""
    if text not in ("debug", "info", "warning", "error"):
        raise ConfigError(f"{text!r} is no log level: use debug, info, warning or error")
    return int(getattr(logging, text.upper()))


def parse_lease(renew_every_s: float, ttl_s: float, proof_timeout_s: float) -> LeasePolicy:
    """Intervals of the lease."""
    if not 0.1 <= proof_timeout_s <= 60:
        raise ConfigError(f"a proof's deadline is 0.1 to 60 seconds, not {proof_timeout_s:g}")
    if not 0.5 <= renew_every_s <= 3600:
        raise ConfigError(f"--renew-every is 0.5 to 3600 seconds, not {renew_every_s:g}")
    if not renew_every_s + proof_timeout_s < ttl_s <= 7 * 86400:
        raise ConfigError(f"--ttl is more than --renew-every and a proof's deadline together, and at most a week, not {ttl_s:g}")
    return LeasePolicy(renew_every_s, ttl_s, proof_timeout_s)


def check_values(file: "MountFile") -> LeasePolicy:
    """The values of a configuration file as `modelfs mount` takes them; its lease, with the defaults of what it does not say."""
    parsers: dict[str, Callable[[Any], object]] = {
        "model": parse_model,
        "minimum_release": check_release,
        "workers": lambda value: parse_workers(str(value)),
        "uid": check_id,
        "gid": check_id,
        "log_level": parse_log_level,
        "mode": lambda value: value and parse_octal(value),
    }
    for name, value in file:
        if value is not None and name in parsers:
            parsers[name](value)
    usual = LeasePolicy()
    return parse_lease(
        usual.renew_every_s if file.renew_every is None else file.renew_every,
        usual.ttl_s if file.ttl is None else file.ttl,
        usual.proof_timeout_s if file.proof_timeout is None else file.proof_timeout,
    )
