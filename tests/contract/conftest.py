"""The servers of these tests."""

from tests.aws.fixtures import ministack, moto
from tests.gcp.fixtures import gcp, gcp_login
from tests.vault.fixtures import server

__all__ = ["gcp", "gcp_login", "ministack", "moto", "server"]
