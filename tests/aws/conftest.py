"""The emulators and mounts of these tests."""

from tests.aws.fixtures import authority, ministack, moto
from tests.mount.conftest import mount, program

__all__ = ["authority", "ministack", "moto", "mount", "program"]
