"""Every key service at once, and mounts."""

from tests.aws.fixtures import authority, ministack
from tests.gcp.fixtures import gcp
from tests.mount.conftest import mount
from tests.vault.fixtures import server

__all__ = ["authority", "gcp", "ministack", "mount", "server"]
