"""A token in software, the real Vault, and the emulators of AWS."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.aws.fixtures import ministack, moto
from tests.signing.token import Token, make_token, missing
from tests.vault.fixtures import server

__all__ = ["ministack", "moto", "server"]


@pytest.fixture(scope="session")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Token]:
    """One token for the session: a process loads a PKCS#11 module once, with the configuration that it finds then."""
    if missing():
        pytest.skip(f"no token in software: install {missing()} (scripts/setup does)")
    made = make_token(Path(tmp_path_factory.mktemp("token")))
    before = {name: os.environ.get(name) for name in made.environment}
    os.environ.update(made.environment)
    yield made
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value
