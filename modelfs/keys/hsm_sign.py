"""A publisher's signing key in an HSM or smart card: `hsm:[ID][?label=TOKEN]`, by securesystemslib's HSMSigner (PKCS#11). P-256 or P-384.

Environment: PYKCS11LIB is the path of the device's PKCS#11 module. The PIN comes from a file, read when it is needed: it is never an
argument, a variable of the environment or part of a message.
"""

import ctypes
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote_plus

import pkcs11
from pkcs11.exceptions import PinIncorrect, PinInvalid, PinLenRange, PinLocked, PKCS11Error
from securesystemslib.signer._hsm_signer import HSMSigner
from securesystemslib.signer._key import SSlibKey
from securesystemslib.signer._signature import Signature

from modelfs.crypto.keyfiles import read_private
from modelfs.errors import ConfigError, KeyAccessError, KeyDeniedError, KeyServiceError, ModelfsError
from modelfs.keys.deadline import within
from modelfs.keys.signer_options import SignerOptions

T = TypeVar("T")

MAX_PIN_SIZE = 256
TIMEOUT_S = 60.0
"""For one use of the token; a person may have to touch it."""
_URI = re.compile(r"hsm:([0-9]{0,18})(?:\?label=([^&#?]+))?")
_LIBRARY = "PYKCS11LIB"


class TokenSigner(HSMSigner):
    """HSMSigner whose errors are ours."""

    def __init__(self, keyid: int, public_key: SSlibKey, pin: Callable[[str], str], label: str | None, uri: str) -> None:
        """Bind one key of one token; `pin` reads the PIN."""
        super().__init__(keyid, public_key, pin, label)
        self._uri = uri

    def sign(self, payload: bytes) -> Signature:
        """Sign in the token; it is opened and closed, and its PIN read, each time.

        Raises:
            KeyAccessError: The token is not there, refuses the PIN, or has no such private key.
        """
        return _translate(self._uri, lambda: super(TokenSigner, self).sign(payload))


def open_signer(uri: str, options: SignerOptions) -> TokenSigner:
    """See `modelfs.keys.open_signer`."""
    found = _URI.fullmatch(uri)
    if not found:
        raise ConfigError(f"{uri!r} does not name a key in a token: use hsm:ID?label=TOKEN, for example hsm:2?label=release")
    library = os.environ.get(_LIBRARY, "")
    if not os.path.isfile(library):
        raise ConfigError(f"{_LIBRARY} must be the path of the token's PKCS#11 module, for example /usr/lib/softhsm/libsofthsm2.so")
    keyid = int(found[1]) if found[1] else HSMSigner.SCHEME_KEYID
    label = unquote_plus(found[2]) if found[2] else None

    def pin(_what: str) -> str:
        return read_pin(options.pin_file)

    def find() -> SSlibKey:
        _keep_loaded(library)
        return HSMSigner.import_(keyid, label, pin)[1]

    public_key = _translate(uri, find)
    return TokenSigner(keyid, public_key, pin, label, uri)


def _keep_loaded(library: str) -> None:
    """Load the module, for as long as the process lives.

    The interpreter's end would ask it to finalize, and one that has stopped answering, or still holds its lock for a call that was left
    behind, would keep the process from ending.
    """
    ctypes.pythonapi.Py_IncRef(ctypes.py_object(pkcs11.lib(library)))


def read_pin(path: Path | None) -> str:
    """The PIN: the file's only line.

    Raises:
        ConfigError: No file, one that others may read, or no PIN in it.
    """
    if path is None:
        raise ConfigError("the token asks for a PIN: name a file that holds it with --pin-file")
    try:
        text = read_private(path, MAX_PIN_SIZE, "PIN file").decode().rstrip("\r\n")
    except UnicodeDecodeError:
        text = ""
    if not text or "\n" in text:
        raise ConfigError(f"the PIN file {path} is not one line of text")
    return text


def _translate(uri: str, action: Callable[[], T]) -> T:
    """What an action of the token gives, its errors being ours.

    In a thread of its own: a module that shares OpenSSL with Python leaves errors in the calling thread's queue, where the next read from
    a TLS connection takes them for its own; and a token that has stopped answering is left behind.
    """
    try:
        return within(TIMEOUT_S, action)
    except ModelfsError:
        raise
    except TimeoutError:
        raise KeyServiceError(f"the token of {uri} did not answer within {TIMEOUT_S:g} s: see that it is there, and free") from None
    except (PinIncorrect, PinInvalid, PinLenRange):
        raise KeyDeniedError(
            f"the token of {uri} refuses the PIN: mend the file first, a token locks itself after a few wrong ones"
        ) from None
    except PinLocked:
        raise KeyDeniedError(f"the token of {uri} has locked itself after wrong PINs: its security officer can unlock it") from None
    except ValueError as exc:
        raise KeyAccessError(f"the key {uri} cannot be used: {exc}") from None
    except (PKCS11Error, pkcs11.PKCS11Error, RuntimeError, OSError, AssertionError) as exc:
        raise KeyAccessError(f"the token of {uri} cannot be used ({type(exc).__name__}): see that it is there, and {_LIBRARY}") from None
