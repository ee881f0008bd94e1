"""Every key service at once."""

from tests.aws.fixtures import authority, ministack
from tests.gcp.fixtures import gcp
from tests.vault.fixtures import server

__all__ = ["authority", "gcp", "ministack", "server"]
