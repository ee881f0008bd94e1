"""The stand-in for Google Cloud KMS of these tests."""

from tests.gcp.fixtures import gcp, gcp_login

__all__ = ["gcp", "gcp_login"]
