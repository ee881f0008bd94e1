"""How tests/vectors/*/ were made, once, when the format was frozen: `python tests/vectors/make.py`. Never run it over an existing vector.

Each holds a sealed model, the test keys that open it and the expected tree as JSON. Test keys: never trust them.
"""

import json
import os
import shutil
import sys
import tempfile
from pathlib import Path

from tests.helpers import KeySet, seal

HERE = Path(__file__).parent
BLOCK = 4096
FILES = {
    "config.json": b'{"model_type": "vector"}\n',
    "sizes/empty": b"",
    "sizes/one": b"\x01",
    "sizes/block-1": bytes(range(256)) * 16,
    "sizes/block": b"B" * BLOCK,
    "sizes/block+1": b"C" * (BLOCK + 1),
    "sizes/many": bytes(i % 251 for i in range(5 * BLOCK + 123)),
    "名前/weights (1).bin": b"name in another script",
}
FILES["sizes/block-1"] = FILES["sizes/block-1"][: BLOCK - 1]
MTIME = 1_700_000_000_123_456_789


def build(name: str, digest: str) -> None:
    target = HERE / name
    if target.exists():
        sys.exit(f"{target} is frozen")
    with tempfile.TemporaryDirectory() as temporary:
        source = Path(temporary) / "source"
        for path, content in FILES.items():
            (source / path).parent.mkdir(parents=True, exist_ok=True)
            (source / path).write_bytes(content)
            (source / path).chmod(0o644)
            os.utime(source / path, ns=(MTIME, MTIME))
        (source / "latest").symlink_to("sizes/many")
        os.utime(source / "latest", ns=(MTIME, MTIME), follow_symlinks=False)
        for directory in (source / "sizes", source / "名前", source):
            directory.chmod(0o755)
            os.utime(directory, ns=(MTIME, MTIME))
        keys_dir = Path(temporary) / "keys"
        keys_dir.mkdir()
        keys = KeySet.generate(keys_dir)
        target.mkdir()
        seal(keys, source, target / "sealed", model="vector", release=7, digest=digest, block_size=BLOCK)
        for file in (keys.public, keys.kek):
            shutil.copyfile(file, target / file.name)
    expected = {path: content.hex() for path, content in FILES.items()}
    (target / "expected.json").write_text(json.dumps(expected, indent=1, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    build("v1-blake3", "blake3")
    build("v1-sha256", "sha256")
