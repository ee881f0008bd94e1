"""AWS credentials: where the SDK finds them, and how temporary ones go from one proof to the next.

A prover lives for one proof. Were each to assume a role or ask for a token anew, a proof would cost two calls, and ending the sessions of a
role would end nothing: so temporary credentials are used to near their own end, as a login to a Vault is.
"""

import json
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

MAX_SESSION_SIZE = 2048
FULL_LIFE_S = 15 * 60
"""With less left, new ones are asked for: the SDK does so, too."""


@dataclass(frozen=True)
class Login:
    """Credentials, as they sign requests."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str | None = field(repr=False)
    ends_at: float | None
    """Seconds since 1970; None: they have no end, or it is not known."""

    def left_s(self, now: float) -> float:
        """Seconds to their end."""
        return float("inf") if self.ends_at is None else self.ends_at - now

    def to_bytes(self) -> bytes | None:
        """For the next proof; None for credentials without an end, which the SDK finds again, and for what is too long to keep."""
        if self.ends_at is None:
            return None
        data = json.dumps([self.access_key, self.secret_key, self.token, self.ends_at]).encode()
        return data if len(data) <= MAX_SESSION_SIZE else None


def login_from(session: bytes | None) -> Login | None:
    """What `to_bytes` gave."""
    return Login(*json.loads(session)) if session else None


def login_of(found: Any) -> Login:
    """The SDK's credentials object, asked: may take the network.

    Its end is an attribute that the SDK keeps to itself. Without it nothing is kept, and every proof asks for credentials.
    """
    frozen = found.get_frozen_credentials()
    ends = getattr(found, "_expiry_time", None)
    return Login(frozen.access_key, frozen.secret_key, frozen.token, ends.timestamp() if isinstance(ends, datetime) else None)
