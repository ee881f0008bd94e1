"""The emulators of these tests."""

from tests.aws.fixtures import ministack, moto

__all__ = ["ministack", "moto"]
