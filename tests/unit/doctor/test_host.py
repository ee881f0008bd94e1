"""Every check of a host: right on a good host, and shown to fail on a bad one. The trees are files, the program's own host is read once."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from modelfs.doctor import host as module
from modelfs.doctor.check import Check, Level, has_errors
from modelfs.doctor.host import CHECKS, Host, check_host
from tests.unit.doctor.conftest import GOOD, Builder

USER = {"euid": 1000}
SWAP = GOOD["proc/swaps"] + "{} partition 1048572 0 -2\n"
ARM = "processor\t: 0\nBogoMIPS\t: 243.75\nFeatures\t: fp asimd {} sha1 atomics\n"


def by_name(checks: list[Check]) -> dict[str, Check]:
    found = {check.name: check for check in checks}
    assert len(found) == len(checks)
    return found


def refuse(error: BaseException) -> Callable[..., Any]:
    def call(*_: object) -> Any:
        raise error

    return call


def test_a_good_host_is_good(host: Builder) -> None:
    checks = check_host(host())
    assert [check.level for check in checks] == ["ok"] * len(CHECKS)
    assert not any(check.advice for check in checks)


def test_a_good_host_is_good_for_others_than_root(host: Builder) -> None:
    checks = check_host(host(**USER))
    assert {check.name for check in checks if check.level != "ok"} == {"read-ahead"}


BAD: dict[str, tuple[str, Level, dict[str, str | None], dict[str, Any], str]] = {
    "no fusermount3": ("fusermount3", "error", {"usr/bin/fusermount3": None}, USER, "missing"),
    "fusermount3 not in the path": ("fusermount3", "error", {}, {**USER, "search_path": "/bin"}, "missing"),
    "pyfuse3": ("libfuse", "error", {}, {"import_mount": refuse(ImportError("libfuse3.so.3: not found"))}, "libfuse3.so.3"),
    "no device": ("dev-fuse", "error", {"dev/fuse": None}, {}, "there is no /dev/fuse"),
    "file as device": ("dev-fuse", "error", {"dev/fuse": "x"}, {}, "no device"),
    "device denied": ("dev-fuse", "error", {}, {"open_device": refuse(PermissionError(1, "no"))}, "no permission"),
    "device without driver": ("dev-fuse", "error", {}, {"open_device": refuse(OSError(6, "no"))}, "No such device"),
    "no fuse.conf": ("user-allow-other", "warning", {"etc/fuse.conf": None}, USER, "--allow-other will be refused"),
    "commented out": ("user-allow-other", "warning", {"etc/fuse.conf": "#user_allow_other\n"}, USER, "not in /etc/fuse.conf"),
    "no bdi": ("read-ahead", "unknown", {"sys/class/bdi/0:52/read_ahead_kb": None}, {}, "no /sys/class/bdi"),
    "read-only sys": ("read-ahead", "warning", {}, {"may": lambda path, _: path.name != "read_ahead_kb"}, "128 KiB"),
    "bdi not root": ("read-ahead", "warning", {}, USER, "128 KiB"),
    "6.8": ("kernel-resend", "warning", {"proc/sys/kernel/osrelease": "6.8.0-45-generic\n"}, {}, "forced instead of clean"),
    "5.15": ("kernel-cachestat", "warning", {"proc/sys/kernel/osrelease": "5.15.0\n"}, {}, "page cache"),
    "6.10 is not 6.1": ("kernel-cachestat", "warning", {"proc/sys/kernel/osrelease": "6.1.0\n"}, {}, "cachestat"),
    "no release": ("kernel-resend", "unknown", {"proc/sys/kernel/osrelease": "odd\n"}, {}, "odd"),
    "no release at all": ("kernel-cachestat", "unknown", {"proc/sys/kernel/osrelease": None}, {}, "not said"),
    "no aes": ("aes", "warning", {"proc/cpuinfo": "flags\t: fpu pclmulqdq\n"}, {}, "lacks aes:"),
    "no pclmulqdq": ("aes", "warning", {"proc/cpuinfo": "flags\t: fpu aes\n"}, {}, "lacks pclmulqdq"),
    "one core without": ("aes", "warning", {"proc/cpuinfo": "flags : aes pclmulqdq\n\nflags : pclmulqdq\n"}, {}, "lacks aes:"),
    "arm without": ("aes", "warning", {"proc/cpuinfo": ARM.format("crc32")}, {}, "lacks aes and pmull"),
    "no cpuinfo": ("aes", "unknown", {"proc/cpuinfo": None}, {}, "says nothing"),
    "no decrypt_into": ("aead", "error", {}, {"has_decrypt_into": lambda: False}, "has no decrypt_into"),
    "holds the GIL": ("aead", "warning", {}, {"aead_drops_gil": lambda: False}, "measured"),
    "swap on a disk": ("swap", "warning", {"proc/swaps": SWAP.format("/dev/vda2")}, {}, "on /dev/vda2"),
    "swap on LVM": ("swap", "warning", {"proc/swaps": SWAP.format("/dev/dm-1"), "sys/class/block/dm-1/dm/uuid": "LVM-x"}, {}, "dm-1"),
    "zram that spills": (
        "swap",
        "warning",
        {"proc/swaps": SWAP.format("/dev/zram0"), "sys/block/zram0/backing_dev": "/dev/vdb\n"},
        {},
        "zram0",
    ),
    "no swaps file": ("swap", "unknown", {"proc/swaps": None}, {}, "cannot be read"),
    "cores to a pipe": ("core-pattern", "warning", {"proc/sys/kernel/core_pattern": "|/usr/lib/crash %p\n"}, {}, "/usr/lib/crash"),
    "no core_pattern": ("core-pattern", "unknown", {"proc/sys/kernel/core_pattern": None}, {}, "cannot be read"),
    "init_on_free off": ("init-on-free", "warning", {"proc/cmdline": "init_on_free=1 init_on_free=0\n"}, {}, "off"),
    "init_on_free unsaid": ("init-on-free", "unknown", {"proc/cmdline": "quiet xinit_on_free=1\n"}, {}, "not on the kernel's command line"),
    "memlock": ("memlock", "warning", {"proc/self/limits": "Max locked memory         4096    4096    bytes\n"}, {}, "4096 bytes"),
    "memlock unsaid": ("memlock", "unknown", {"proc/self/limits": "Max cpu time unlimited\n"}, {}, "does not say"),
    "no memfd_secret": ("memfd-secret", "warning", {}, {"has_secret_memory": lambda: False}, "locked page"),
    "not confined": ("confinement", "warning", {}, {"not_confined": lambda: ["the kernel has no Landlock"]}, "no Landlock"),
    "disk full": ("state-dir", "error", {}, {"free_bytes": lambda _: 1000}, "no space"),
    "disk nearly full": ("state-dir", "warning", {}, {"free_bytes": lambda _: 50 << 20}, "only 50 MiB"),
    "state not writable": ("state-dir", "error", {}, {"may": lambda _path, mode: not mode & os.W_OK}, "cannot be written"),
    "clock in 1970": ("clock", "error", {}, {"now": lambda: 100.0}, "1970"),
    "clock in 2300": ("clock", "error", {}, {"now": lambda: 10_420_000_000.0}, "2300"),
    "clock drifts": ("clock", "warning", {}, {"is_clock_synchronised": lambda: False}, "not synchronised"),
    "clock unsaid": ("clock", "unknown", {}, {"is_clock_synchronised": lambda: None}, "does not say"),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_host_is_found(host: Builder, case: str) -> None:
    name, level, files, changes, text = BAD[case]
    bad = host(files, **changes)
    check = by_name(check_host(bad))[name]
    assert check.level == level, check
    assert text in check.found
    assert check.found.isprintable()
    assert has_errors([check]) == (level == "error")
    assert check.advice or level == "unknown", "a complaint without advice"


def test_every_check_is_shown_to_fail() -> None:
    assert {name for name, *_ in BAD.values()} == {
        "fusermount3", "libfuse", "dev-fuse", "user-allow-other", "read-ahead", "kernel-resend", "kernel-cachestat", "aes", "aead", "swap",
        "core-pattern", "init-on-free", "memlock", "memfd-secret", "confinement", "state-dir", "clock",
    }  # fmt: skip
    assert len({name for name, *_ in BAD.values()}) == len(CHECKS)


GOOD_TOO: dict[str, tuple[str, dict[str, str | None], dict[str, Any]]] = {
    "root needs no fusermount3": ("fusermount3", {"usr/bin/fusermount3": None}, {}),
    "root needs no fuse.conf": ("user-allow-other", {"etc/fuse.conf": None}, {}),
    "7.0": ("kernel-resend", {"proc/sys/kernel/osrelease": "7.0-rc1\n"}, {}),
    "6.9": ("kernel-resend", {"proc/sys/kernel/osrelease": "6.9.0\n"}, {}),
    "6.5": ("kernel-cachestat", {"proc/sys/kernel/osrelease": "6.5.0\n"}, {}),
    "arm": ("aes", {"proc/cpuinfo": ARM.format("aes pmull")}, {}),
    "zram": ("swap", {"proc/swaps": SWAP.format("/dev/zram0"), "sys/block/zram0/backing_dev": "none\n"}, {}),
    "encrypted swap": ("swap", {"proc/swaps": SWAP.format("/dev/dm-0"), "sys/class/block/dm-0/dm/uuid": "CRYPT-PLAIN-swap"}, {}),
    "cores to nobody": ("core-pattern", {"proc/sys/kernel/core_pattern": "|/bin/false\n"}, {}),
    "unlimited": ("memlock", {"proc/self/limits": "Max locked memory         unlimited    unlimited    bytes\n"}, {}),
    "may lock": (
        "memlock",
        {"proc/self/limits": "Max locked memory         0    0    bytes\n", "proc/self/status": "CapEff:\t0000000000004000\n"},
        {},
    ),
}


@pytest.mark.parametrize("case", GOOD_TOO)
def test_another_good_host_is_good(host: Builder, case: str) -> None:
    name, files, changes = GOOD_TOO[case]
    assert by_name(check_host(host(files, **changes)))[name].level == "ok"


def test_fusermount3_without_setuid(host: Builder) -> None:
    some = host(**USER)
    (some.root / "usr/bin/fusermount3").chmod(0o755)
    assert module.check_fusermount(some).level == "warning"
    (some.root / "usr/bin/fusermount3").chmod(0o644)
    assert module.check_fusermount(some).level == "error"


def test_a_state_dir_that_others_may_change(host: Builder) -> None:
    some = host()
    some.state_dir.chmod(0o777)
    check = module.check_state_dir(some)
    assert (check.level, "others may write" in check.found) == ("warning", True)


def test_a_state_dir_that_is_not_there_yet(host: Builder, tmp_path: Path) -> None:
    check = module.check_state_dir(host(state_dir=tmp_path / "state" / "deeper" / "still"))
    assert (check.level, f"to be made in {tmp_path / 'state'}" in check.found) == ("ok", True)
    assert not (tmp_path / "state" / "deeper").exists(), "a check made something"


def test_a_state_dir_that_is_a_file(host: Builder, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert module.check_state_dir(host(state_dir=tmp_path / "file")).level == "error"


def test_this_host_answers_every_question(tmp_path: Path) -> None:
    """Nothing raises, whatever is found."""
    checks = by_name(check_host(Host(tmp_path)))
    assert len(checks) == len(CHECKS)
    assert checks["kernel-resend"].level != "unknown"
    assert checks["aead"].level == "ok"
    assert checks["libfuse"].level == "ok"
