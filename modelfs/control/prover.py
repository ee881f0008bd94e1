"""The prover: a short-lived process that unwraps the DEK, checks the commitment, opens the index once and leaves the key in the key page.

Whatever handles a key in Python is a process that ends; control only learns yes or no.
"""

import json
import os
import stat

import modelfs.errors
from modelfs.control.keypage import KeyPage
from modelfs.control.pins import Pinned, Rows
from modelfs.control.process import fork_child, kill_child, wait_child
from modelfs.errors import KeyAccessError, ModelfsError
from modelfs.format.index import DirEntry, FileEntry, Index
from modelfs.format.keysfile import parse_keys
from modelfs.keys import open_kek
from modelfs.keys.interface import unwrap_dek
from modelfs.reader.index import open_index

MAX_ANSWER_SIZE = 4096


def prove(kek_uri: str, pinned: Pinned, key_page: KeyPage, rows: Rows, timeout_s: float) -> None:
    """Have a child prove that the KEK opens the pinned release, and leave the DEK in `key_page`.

    Raises:
        ModelfsError: What the child found wrong, as its own class.
        KeyAccessError: No answer within `timeout_s`.
    """
    reading, writing = os.pipe()

    def main() -> int:
        try:
            _unwrap(kek_uri, pinned, key_page, rows)
        except ModelfsError as exc:
            answer = {"error": type(exc).__name__, "message": str(exc)}
            os.write(writing, json.dumps(answer).encode()[:MAX_ANSWER_SIZE])
            return exc.exit_code
        return 0

    pid = fork_child(main)
    os.close(writing)
    try:
        code = wait_child(pid, timeout_s)
        if code is None:
            kill_child(pid)
            wait_child(pid, 1)
            raise KeyAccessError(f"the KEK {kek_uri} did not open the key within {timeout_s:g} s: check where it lies")
        if code != 0:
            raise _error(os.read(reading, MAX_ANSWER_SIZE), code)
    finally:
        os.close(reading)


def _error(answer: bytes, code: int) -> ModelfsError:
    try:
        fields = json.loads(answer)
        kind = getattr(modelfs.errors, fields["error"])
        return kind(fields["message"]) if issubclass(kind, ModelfsError) else KeyAccessError(fields["message"])
    except (ValueError, KeyError, AttributeError, TypeError):
        return KeyAccessError(f"the prover failed with exit code {code}: see the log")


def _unwrap(kek_uri: str, pinned: Pinned, key_page: KeyPage, rows: Rows) -> None:
    manifest = pinned.manifest
    dek = unwrap_dek(open_kek(kek_uri), parse_keys(pinned.keys_data()), manifest)
    index = open_index(pinned.index_ciphertext(), manifest, dek)
    rows.write(_rows(index))
    key_page.write(dek)


def _rows(index: Index) -> list[tuple[int, int]]:
    return [
        (entry.size, stat.S_IFREG | entry.mode)
        if isinstance(entry, FileEntry)
        else (0, (stat.S_IFDIR | entry.mode) if isinstance(entry, DirEntry) else stat.S_IFLNK | 0o777)
        for entry in index.entries
    ]
