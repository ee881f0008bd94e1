"""The real server of these tests."""

from tests.vault.fixtures import server

__all__ = ["server"]
