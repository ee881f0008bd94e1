"""The session's emulators. Import the fixtures into a conftest."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.aws.emulators import Emulator, running
from tests.vault.server import dev_vault


@pytest.fixture(scope="session")
def moto(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running("moto", tmp_path_factory.mktemp("moto")) as found:
        yield found


@pytest.fixture(scope="session")
def ministack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with running("ministack", tmp_path_factory.mktemp("ministack")) as found:
        yield found


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The certificate authority that hosts trust."""
    return dev_vault.Authority(tmp_path_factory.mktemp("ca"))
