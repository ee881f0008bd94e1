"""A running stand-in, and the environment that leads the client library to it."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.gcp.fake import FakeKms


@pytest.fixture(scope="module")
def gcp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeKms]:
    with FakeKms(tmp_path_factory.mktemp("gcp")).running() as kms:
        yield kms


@pytest.fixture
def gcp_login(gcp: FakeKms, monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], None]:
    """Be that service account, in this process and those that it starts."""

    def login(credentials: Path) -> None:
        for name, value in gcp.environment(credentials).items():
            monkeypatch.setenv(name, value)

    return login
