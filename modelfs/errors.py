"""Every error modelfs raises on purpose, on one screen.

Classes are split by what the caller does next: mend the input, distrust the publisher or the storage, ask whoever owns the key,
try again, mend the configuration. Programming mistakes stay ValueError, TypeError and RuntimeError.
"""

import errno as _errno


class ModelfsError(Exception):
    """Root of every error that modelfs raises on purpose. Its text is one sentence: what is wrong, and what to do."""

    errno: int = _errno.EIO
    """What the caller of a file-system call sees."""
    exit_code: int = 1
    """What a shell sees; stable, listed in README.md."""


class ConfigError(ModelfsError):
    """An argument, path or local file is unusable."""

    exit_code = 2


class FormatError(ModelfsError):
    """Untrusted bytes are malformed."""

    exit_code = 3


class UnsupportedVersionError(FormatError):
    """The bytes say they are of a format that this program does not know."""


class LimitExceededError(FormatError):
    """A size or a count is over its documented bound."""


class VerificationError(ModelfsError):
    """Well-formed but not authentic, or not what was asked for. Never retried."""

    exit_code = 4


class SignatureError(VerificationError):
    """Fewer trusted keys than the threshold signed."""


class RollbackError(VerificationError):
    """An older release, or another payload for a release already seen."""


class ExpiredError(VerificationError):
    """The manifest's expiry date has passed."""


class BlockAuthError(VerificationError):
    """A block disagrees with its signed digest or its tag."""


class KeyAccessError(ModelfsError):
    """The key cannot be had."""

    errno = _errno.ENOKEY
    exit_code = 5


class KeyDeniedError(KeyAccessError):
    """The key's owner said no, or the KEK opens none of the wrapped keys."""

    errno = _errno.EACCES


class KeyServiceError(KeyAccessError):
    """The key service gave no answer that counts: unreachable, sealed, garbled. The same call may succeed later."""

    errno = _errno.ETIMEDOUT


class StoreError(ModelfsError):
    """The sealed model's directory cannot be read or written."""

    exit_code = 6


class BlobNotFoundError(StoreError):
    """The manifest names a blob that the store does not have."""


class SourceChangedError(ModelfsError):
    """A source file changed while it was sealed."""

    exit_code = 6


class MountError(ModelfsError):
    """Mounting, or talking to a mount, failed."""

    exit_code = 7


class MountLostError(MountError):
    """A process of the mount died; the mount was taken down in order."""

    exit_code = 8
