"""The real server of these tests, and mounts."""

from tests.mount.conftest import mount, program
from tests.vault.fixtures import server

__all__ = ["mount", "program", "server"]
