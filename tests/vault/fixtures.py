"""The session's real server. Import the fixture into a conftest."""

from collections.abc import Iterator

import pytest

from tests.vault.server import Server, running_server


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real OpenBao over TLS with a CA of its own, provisioned as scripts/dev-vault does."""
    with running_server(tmp_path_factory.mktemp("vault")) as found:
        yield found
