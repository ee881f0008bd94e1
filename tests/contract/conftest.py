"""The real servers of these tests."""

from tests.aws.fixtures import ministack, moto
from tests.vault.fixtures import server

__all__ = ["ministack", "moto", "server"]
