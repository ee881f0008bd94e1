"""Staying logged in at a real server, with tokens that live for seconds."""

import itertools
import time
from collections.abc import Callable

import hvac
import pytest

from modelfs.keys.vault import VaultProvider
from modelfs.keys.vault_session import LOGIN_AT, Session, boottime
from tests.vault.server import DEK, TIMEOUT, Server, manifest


@pytest.fixture
def quick(server: Server) -> tuple[Callable[[], VaultProvider], int]:
    auth = server.approle(server.role(server.policy(), token_ttl="2s", token_max_ttl="5s"))
    return lambda: server.provider(auth), server.audit_mark()


def test_three_real_lives(server: Server, quick: tuple[Callable[[], VaultProvider], int]) -> None:
    """ttl 2 s, max TTL 5 s: no proof fails, although the server, which counts in whole seconds, renews nothing in a token's last one."""
    make, mark = quick
    keys = server.wrapped()
    session, logins, began = None, dict[str | None, float](), time.monotonic()
    while time.monotonic() - began < 13:
        grant = make().prove(keys, manifest(), session, session is not None, TIMEOUT)
        assert grant.ttl_s is not None
        assert 0 < grant.ttl_s <= 2
        session = grant.session
        logins.setdefault(grant.accessor, time.monotonic())
        time.sleep(0.2)
    assert len(logins) >= 3
    assert server.paths(mark).count("auth/approle/login") == len(logins)
    # A second for the server's rounding, another for ours: the end may be taken for that much nearer than it is, but not for more.
    assert all(b - a >= LOGIN_AT * 3 for a, b in itertools.pairwise(logins.values()))


def test_a_real_token_in_its_last_second_is_replaced(server: Server, quick: tuple[Callable[[], VaultProvider], int]) -> None:
    """There the server answers a renewal with 500, which must not pass for an outage: the token is good, and a login due."""
    make, _mark = quick
    keys = server.wrapped()
    first = make().prove(keys, manifest(), None, False, TIMEOUT).session
    session = Session.from_bytes(first or b"")
    client = server.vault.client(session.token)
    with pytest.raises(hvac.exceptions.InternalServerError, match="past the max TTL"):
        while boottime() < session.started_at + 6:
            client.auth.token.renew_self(increment="2s")
            time.sleep(0.05)
    time.sleep(max(0.0, session.started_at + LOGIN_AT * 5 - boottime()))
    again = make().prove(keys, manifest(), first, True, TIMEOUT)
    assert client.auth.token.lookup_self(), "it was over, which is another matter"
    assert again.accessor != session.accessor


def test_a_real_token_that_ended_by_itself_is_followed_by_a_login(server: Server, quick: tuple[Callable[[], VaultProvider], int]) -> None:
    make, mark = quick
    keys = server.wrapped()
    session = make().prove(keys, manifest(), None, False, TIMEOUT).session
    time.sleep(2.2)
    assert make().prove(keys, manifest(), session, True, TIMEOUT).dek == DEK
    assert server.paths(mark).count("auth/approle/login") == 2
