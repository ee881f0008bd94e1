"""The session's real server. Import the fixture into a conftest."""

from collections.abc import Iterator

import pytest

from tests.vault.server import Server, dev_vault


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real OpenBao over TLS with a CA of its own, provisioned as scripts/dev-vault does."""
    vault = dev_vault.DevVault(tmp_path_factory.mktemp("vault"))
    vault.start()
    try:
        vault.provision()
        yield Server(vault)
    finally:
        vault.stop()
