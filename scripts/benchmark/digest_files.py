"""Seconds of digesting files, as JSON, without the interpreter's start: `blake3 FILE...`, or `verify SEALED PUB` as modelfs does."""

import json
import os
import sys
import time
from datetime import UTC, datetime
from pathlib import Path


def digest(paths: list[str]) -> None:
    """What b3sum does: the file mapped, every core."""
    from blake3 import blake3

    for path in paths:
        blake3(max_threads=os.cpu_count() or 1).update_mmap(path).digest()


def verify(sealed: str, public: str) -> None:
    """All of `modelfs verify` but its command line."""
    from modelfs.crypto.signatures import load_trusted_keys
    from modelfs.reader.verify import verify_store
    from modelfs.store.local import Store
    from modelfs.trust.release import read_release

    with Store(Path(sealed)) as store:
        release = read_release(store, load_trusted_keys([Path(public)]), model=None, now=datetime.now(UTC))
        if verify_store(store, release.manifest):
            sys.exit("the sealed model has faults")


def main() -> None:
    """Twice: the first time is for imports."""
    what, *arguments = sys.argv[1:]
    seconds = 0.0
    for _ in range(2):
        start = time.perf_counter()
        verify(*arguments) if what == "verify" else digest(arguments)
        seconds = time.perf_counter() - start
    print(json.dumps({"seconds": seconds}))


main()
