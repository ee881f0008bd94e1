"""The session's emulators. Import the fixtures into a conftest."""

from collections.abc import Iterator

import pytest

from tests.aws.emulators import Emulator, running


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running("moto", tmp_path_factory.mktemp("moto")) as found:
        yield found


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running("ministack", tmp_path_factory.mktemp("ministack")) as found:
        yield found
