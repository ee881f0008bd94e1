"""A host on which everything is right, made of files, and what breaks it."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelfs.doctor.host import Host

GOOD = {
    "usr/bin/fusermount3": "",
    "dev/fuse": "",
    "etc/fuse.conf": "# mount_max = 1000\nuser_allow_other\n",
    "sys/class/bdi/0:52/read_ahead_kb": "128\n",
    "proc/sys/kernel/osrelease": "6.12.9-generic\n",
    "proc/sys/kernel/core_pattern": "core\n",
    "proc/cpuinfo": "processor\t: 0\nflags\t\t: fpu aes pclmulqdq avx\n\nprocessor\t: 1\nflags\t\t: fpu aes pclmulqdq avx\n",
    "proc/swaps": "Filename\t\t\t\tType\t\tSize\t\tUsed\t\tPriority\n",
    "proc/cmdline": "quiet init_on_free=1 root=/dev/vda\n",
    "proc/self/status": "Name:\tmodelfs\nCapEff:\t0000000000000000\n",
    "proc/self/limits": "Limit                     Soft Limit           Hard Limit           Units     \n"
    "Max locked memory         8388608              8388608              bytes     \n",
}
NOW = 1_780_000_000.0


def put(root: Path, path: str, text: str | None) -> None:
    """Write a file of the tree; None removes it."""
    if text is None:
        (root / path).unlink()
        return
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(text)


Builder = Callable[..., Host]


@pytest.fixture
def host(tmp_path: Path) -> Builder:
    """`host(files={path: text or None}, **fields of Host)`: the good one, with that changed."""

    def build(files: dict[str, str | None] | None = None, **changes: Any) -> Host:
        root, state = tmp_path / "root", tmp_path / "state"
        state.mkdir(mode=0o700, exist_ok=True)
        for path, text in {**GOOD, **(files or {})}.items():
            if text is not None or (root / path).exists():
                put(root, path, text)
        if (root / "usr/bin/fusermount3").exists():
            (root / "usr/bin/fusermount3").chmod(0o4755)
        if files is None or "dev/fuse" not in files:
            # A device that every host has stands in for /dev/fuse.
            (root / "dev/fuse").unlink(missing_ok=True)
            (root / "dev/fuse").symlink_to(os.devnull)
        good = Host(
            state_dir=state,
            root=root,
            euid=0,
            search_path="/bin:/usr/bin",
            free_bytes=lambda _: 1 << 30,
            import_mount=lambda: None,
            has_secret_memory=lambda: True,
            not_confined=lambda: [],
            cryptography_version=lambda: "50.0.2",
            has_decrypt_into=lambda: True,
            aead_drops_gil=lambda: True,
            now=lambda: NOW,
            is_clock_synchronised=lambda: True,
        )
        return replace(good, **changes)

    return build
