"""Exit codes are documented and stable; every error is one of the family."""

import re

import pytest

from modelfs import errors
from modelfs.cli.app import EXIT_CODES
from modelfs.errors import ModelfsError

FAMILY = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, ModelfsError)]


def test_every_exit_code_is_documented() -> None:
    documented = {int(number) for number in re.findall(r"(?:^|[\s,])(\d) [a-z]", EXIT_CODES)}
    assert len(FAMILY) > 10
    assert {error.exit_code for error in FAMILY} | {0, 2} == documented


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.ConfigError, 2),
        (errors.FormatError, 3),
        (errors.UnsupportedVersionError, 3),
        (errors.LimitExceededError, 3),
        (errors.SignatureError, 4),
        (errors.RollbackError, 4),
        (errors.ExpiredError, 4),
        (errors.BlockAuthError, 4),
        (errors.KeyAccessError, 5),
        (errors.KeyDeniedError, 5),
        (errors.StoreError, 6),
        (errors.BlobNotFoundError, 6),
        (errors.SourceChangedError, 6),
        (errors.MountError, 7),
        (errors.MountLostError, 8),
    ],
)
def test_exit_codes_are_stable(error: type[ModelfsError], code: int) -> None:
    assert error.exit_code == code
    assert error.errno > 0
