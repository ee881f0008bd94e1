"""The stand-in for Google Cloud KMS of these tests, and mounts."""

from tests.gcp.fixtures import gcp, gcp_login
from tests.mount.conftest import mount, program

__all__ = ["gcp", "gcp_login", "mount", "program"]
