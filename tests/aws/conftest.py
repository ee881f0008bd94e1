"""The emulators of these tests."""

from tests.aws.fixtures import authority, ministack, moto

__all__ = ["authority", "ministack", "moto"]
