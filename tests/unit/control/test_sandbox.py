"""What a confined process can still do: each kind is forked and tries. The filter's tables are compared with the kernel's headers."""

import ctypes
import errno
import faulthandler
import fcntl
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from modelfs.control import sandbox, syscalls
from modelfs.control.process import fork_child, libc, wait_child
from modelfs.store.local import Store
from tests.helpers import REPOSITORY

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")

TGKILL = syscalls.TGKILL["tgkill"][0 if os.uname().machine == "x86_64" else 1]
F_SETSIG = 10
REFUSED = 99
"""Exit code of a child whose attempt was refused; 0 is success."""


def in_child(confine: Callable[[], None], attempt: Callable[[], object]) -> int:
    """The exit code of a fork that is confined and then attempts something."""

    def main() -> int:
        confine()
        try:
            attempt()
        except PermissionError:
            return REFUSED
        return 0

    code = wait_child(fork_child(main), 20)
    assert code is not None
    return code


def checked(result: int) -> None:
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")


@pytest.fixture
def store() -> Iterator[tuple[Path, int]]:
    """A directory that is the store, with a file in it, and another beside it."""
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        (base / "store").mkdir()
        (base / "store" / "blob").write_bytes(b"ciphertext")
        (base / "secret").write_bytes(b"secret")
        fd = os.open(base / "store", os.O_RDONLY | os.O_DIRECTORY)
        yield base, fd
        os.close(fd)


def open_and_close(path: Path | str, flags: int = os.O_RDONLY, dir_fd: int | None = None) -> None:
    os.close(os.open(path, flags, dir_fd=dir_fd))


def start_thread() -> None:
    thread = threading.Thread(target=lambda: None)
    thread.start()
    thread.join()


FORBIDDEN: dict[str, Callable[[Path, int], object]] = {
    "socket": lambda base, fd: socket.socket(socket.AF_INET),
    "socket to control": lambda base, fd: socket.socket(socket.AF_UNIX),
    "socketpair": lambda base, fd: socket.socketpair(),
    "execve": lambda base, fd: os.execv("/bin/true", ["true"]),
    "fork": lambda base, fd: os.fork() or os._exit(0),
    "ptrace": lambda base, fd: checked(libc.ptrace(16, os.getppid(), 0, 0)),
    "another process's memory": lambda base, fd: checked(libc.process_vm_readv(os.getppid(), None, 0, None, 0, 0)),
    "a signal": lambda base, fd: os.kill(os.getppid(), 0),
    "a signal to a thread": lambda base, fd: checked(libc.syscall(TGKILL, os.getppid(), os.getppid(), 0)),
    "a signal by the kernel": lambda base, fd: fcntl.fcntl(fd, fcntl.F_SETOWN, os.getppid()),
    "a signal of one's choice": lambda base, fd: fcntl.fcntl(fd, F_SETSIG, signal.SIGKILL),
    "a signal at each event": lambda base, fd: fcntl.fcntl(fd, fcntl.F_SETFL, os.O_ASYNC),
    "a lock": lambda base, fd: fcntl.lockf(fd, fcntl.LOCK_SH),
    "open for writing": lambda base, fd: open_and_close("blob", os.O_WRONLY, fd),
    "open for both": lambda base, fd: open_and_close("blob", os.O_RDWR, fd),
    "create": lambda base, fd: open_and_close("new", os.O_RDONLY | os.O_CREAT, fd),
    "truncate": lambda base, fd: open_and_close("blob", os.O_RDONLY | os.O_TRUNC, fd),
    "a file without a name": lambda base, fd: open_and_close(".", os.O_TMPFILE | os.O_WRONLY, fd),
    "unlink": lambda base, fd: os.unlink("blob", dir_fd=fd),
    "rename": lambda base, fd: os.rename("blob", "other", src_dir_fd=fd, dst_dir_fd=fd),
    "mkdir": lambda base, fd: os.mkdir("new", dir_fd=fd),
    "chmod": lambda base, fd: os.chmod(base / "secret", 0o777),
    "read elsewhere": lambda base, fd: open_and_close(base / "secret"),
    "read /etc/shadow": lambda base, fd: open_and_close("/etc/shadow"),
    "by handle": lambda base, fd: checked(libc.open_by_handle_at(fd, b"\x0c\0\0\0\1\0\0\0" + bytes(12), 0)),
    "become dumpable": lambda base, fd: checked(libc.prctl(4, 1, 0, 0, 0)),
    "io_uring": lambda base, fd: checked(libc.syscall(425, 1, bytes(120))),
    "mount": lambda base, fd: checked(libc.umount2(b"/nowhere", 0)),
    "ioctl": lambda base, fd: checked(libc.ioctl(fd, 0x5401, bytes(64))),
    "another ABI (x32)": lambda base, fd: checked(libc.syscall(0x40000000 + 39)),
}


@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "keyless"])
@pytest.mark.parametrize("what", FORBIDDEN)
def test_a_worker_that_tries_is_refused(store: tuple[Path, int], what: str, keyed: bool) -> None:
    base, fd = store
    if what in ("read elsewhere", "read /etc/shadow") and not sandbox._landlock_version():
        pytest.skip("this kernel has no Landlock")
    confine = lambda: sandbox.confine_worker(fd if keyed else None)  # noqa: E731
    assert in_child(confine, lambda: FORBIDDEN[what](base, fd)) == REFUSED


@pytest.mark.parametrize("what", [what for what in FORBIDDEN if "signal" in what])
def test_a_looker_signals_nobody(store: tuple[Path, int], what: str) -> None:
    base, fd = store
    assert in_child(sandbox.confine_looker, lambda: FORBIDDEN[what](base, fd)) == REFUSED


def test_landlock_alone_keeps_signals_in(store: tuple[Path, int]) -> None:
    """Where there is a call that the filter does not know of."""
    if sandbox._landlock_version() < 6:
        pytest.skip("this kernel's Landlock does not know signals")
    base, fd = store
    for what in ("a signal", "a signal to a thread"):
        assert in_child(lambda: sandbox._read_only_below(fd), lambda what=what: FORBIDDEN[what](base, fd)) == REFUSED


def test_a_worker_may_still_abort(store: tuple[Path, int]) -> None:
    """As the C library does where memory is corrupt."""

    def abort() -> None:
        faulthandler.disable()
        os.abort()

    assert in_child(lambda: sandbox.confine_worker(store[1]), abort) == -signal.SIGABRT


def test_the_attempts_succeed_without_confinement(store: tuple[Path, int]) -> None:
    base, fd = store
    for what in (
        "socket",
        "execve",
        "fork",
        "open for writing",
        "read elsewhere",
        *(what for what in FORBIDDEN if "signal" in what),
        "chmod",
        "unlink",
    ):
        assert in_child(lambda: None, lambda what=what: FORBIDDEN[what](base, fd)) == 0, what


def test_a_worker_reads_its_store_and_starts_threads(store: tuple[Path, int]) -> None:
    _, fd = store
    assert in_child(lambda: sandbox.confine_worker(fd), lambda: open_and_close("blob", dir_fd=fd)) == 0
    assert in_child(lambda: sandbox.confine_worker(fd), start_thread) == 0
    assert in_child(lambda: sandbox.confine_worker(fd), lambda: os.set_blocking(fd, False)) == 0
    if sandbox._landlock_version():
        assert in_child(lambda: sandbox.confine_worker(None), lambda: open_and_close("blob", dir_fd=fd)) == REFUSED


@pytest.mark.parametrize(
    "what", ["socket", "socket to control", "execve", "ptrace", "another process's memory", "rename", "chmod", "io_uring"]
)
def test_a_warden_that_tries_is_refused(store: tuple[Path, int], what: str) -> None:
    base, fd = store
    assert in_child(sandbox.confine_warden, lambda: FORBIDDEN[what](base, fd)) == REFUSED


def test_a_warden_still_forks_ends_and_detaches(store: tuple[Path, int]) -> None:
    def attempt() -> None:
        pid = fork_child(lambda: 7)
        assert wait_child(pid, 10) == 7
        libc.umount2(b"/nowhere", 0)
        assert ctypes.get_errno() == errno.ENOENT

    assert in_child(sandbox.confine_warden, attempt) == 0


def status_of_child(confine: Callable[[], None]) -> dict[str, str]:
    """/proc/self/status of a fork that is confined."""
    reading, writing = os.pipe()

    def main() -> int:
        file = os.open("/proc/self/status", os.O_RDONLY)  # before: a worker could not open it
        confine()
        os.write(writing, os.pread(file, 8192, 0))
        return 0

    assert wait_child(fork_child(main), 20) == 0
    os.close(writing)
    text = os.read(reading, 8192).decode()
    os.close(reading)
    return dict(re.findall(r"^(\w+):\t(.*)$", text, re.MULTILINE))


SYS_ADMIN, READ_SEARCH = 1 << 21, 1 << 2


@pytest.mark.parametrize(
    ("confine", "capabilities", "seccomp"),
    [
        (sandbox.confine_control, SYS_ADMIN | READ_SEARCH, "0"),
        (sandbox.confine_prover, READ_SEARCH, "0"),
        (sandbox.confine_warden, SYS_ADMIN | READ_SEARCH, "2"),
        (sandbox.confine_looker, READ_SEARCH, "2"),
        (lambda: sandbox.confine_worker(None, {2}), 0, "2"),
    ],
    ids=["control", "prover", "warden", "looker", "keyless worker"],
)
def test_the_kernel_says_what_each_kind_has(confine: Callable[[], None], capabilities: int, seccomp: str) -> None:
    status = status_of_child(confine)
    assert int(status["CapEff"], 16) == int(status["CapPrm"], 16) == capabilities
    assert int(status["CapBnd"], 16) == int(status["CapInh"], 16) == int(status["CapAmb"], 16) == 0
    assert (status["NoNewPrivs"], status["Seccomp"]) == ("1", seccomp)


def test_a_worker_keeps_a_capability_only_for_a_store_that_needs_it(tmp_path: Path) -> None:
    (tmp_path / "blobs").mkdir()
    blobs = ["a" * 32, "b" * 32]
    for blob in blobs:
        (tmp_path / "blobs" / blob).write_bytes(b"x")
        (tmp_path / "blobs" / blob).chmod(0o600)
    with Store(tmp_path) as store:
        assert sandbox.needed_to_read(store, blobs) == frozenset()
        os.chown(tmp_path / "blobs" / blobs[1], 1234, 1234)
        assert sandbox.needed_to_read(store, blobs) == {sandbox.CAP_DAC_READ_SEARCH}
        store.read_file(f"blobs/{blobs[1]}", 10)  # this process has its capabilities back
        assert sandbox.needed_to_read(store, ["c" * 32] * 10_001) == {sandbox.CAP_DAC_READ_SEARCH}
        fd = store.share()
        for kept, want in (({sandbox.CAP_DAC_READ_SEARCH}, 0), ((), REFUSED)):
            attempt = lambda: open_and_close(f"blobs/{blobs[1]}", dir_fd=fd)  # noqa: E731
            assert in_child(lambda kept=kept: sandbox.confine_worker(fd, kept), attempt) == want
        os.close(fd)


SAY = "from modelfs.control.sandbox import *; print(missing()); confine_warden(); import socket; socket.socket(); print('as before')"


def test_others_than_root_are_told_what_cannot_be_had() -> None:
    assert not any("root" in sentence for sentence in sandbox.missing())
    real = Path(sys.executable).resolve()
    if not all(parent.stat().st_mode & 0o001 for parent in [*real.parents, *REPOSITORY.parents, REPOSITORY]):
        code = f"import os; from modelfs.errors import *; os.setgroups([]); os.setgid(65534); os.setuid(65534); {SAY}"
        code = f"import modelfs.control.sandbox, socket; {code}"
    else:
        code = f"import os; os.setgroups([]); os.setgid(65534); os.setuid(65534); {SAY}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30, cwd=REPOSITORY)
    assert "fusermount3 is setuid root" in done.stdout
    assert "without root" in done.stdout
    assert "as before" in done.stdout, "a warden that is not root must be able to run fusermount3, which needs a socket"


HEADERS = {"x86_64": "/usr/include/x86_64-linux-gnu/asm/unistd_64.h", "aarch64": "/usr/include/asm-generic/unistd.h"}


@pytest.mark.parametrize("name", HEADERS)
def test_numbers_are_those_of_the_kernel_s_headers(name: str) -> None:
    path = Path(HEADERS[name])
    if not path.exists():
        pytest.skip("the kernel's headers are not installed (linux-libc-dev)")
    found = dict(re.findall(r"^#define __NR(?:3264)?_(\w+)\s+(\d+)\s*$", path.read_text(), re.MULTILINE))
    found.setdefault("newfstatat", found.get("fstatat", ""))
    assert len(found) > 300
    machine = syscalls.MACHINES[name]
    compared = 0
    for table in (
        syscalls.WORKER,
        syscalls.LOOKER,
        syscalls.WARDEN,
        syscalls.OPENAT,
        syscalls.CLONE,
        syscalls.FCNTL,
        syscalls.TGKILL,
        syscalls.NOT_THERE,
    ):
        for call in table:
            number = syscalls.number(call, machine)
            if call in found:
                assert number == int(found[call]), call
                compared += 1
            else:
                assert number == -1 or number > 440, f"{call} is not in the headers"
    assert compared > 80


def run_filter(instructions: list[tuple[int, int, int, int]], arch: int, number: int, argument: int = 0) -> int:
    """What a filter says of a call: BPF, as the kernel runs it."""
    at, loaded = 0, 0
    memory = {0: number, 4: arch, 16: argument, 24: argument, 32: argument}
    while True:
        code, if_true, if_false, value = instructions[at]
        at += 1
        match code:
            case 0x20:
                loaded = memory[value]
            case 0x15:
                at += if_true if loaded == value else if_false
            case 0x45:
                at += if_true if loaded & value else if_false
            case 0x06:
                return value


@pytest.mark.parametrize("name", syscalls.MACHINES)
def test_the_filter_of_each_processor(name: str) -> None:
    machine = syscalls.MACHINES[name]
    program = sandbox.call_filter(syscalls.WORKER, machine)
    allow, refuse = 0x7FFF0000, 0x00050000 | errno.EPERM
    number = {call: syscalls.number(call, machine) for call in ("read", "openat", "clone", "clone3", "ioctl", "kill", "umount2")}
    assert run_filter(program, machine.audit_arch, number["read"]) == allow
    assert run_filter(program, machine.audit_arch, number["openat"], os.O_RDONLY | os.O_CLOEXEC) == allow
    for flag in (os.O_WRONLY, os.O_RDWR, os.O_CREAT, os.O_TRUNC, os.O_APPEND):
        assert run_filter(program, machine.audit_arch, number["openat"], flag) == refuse
    assert run_filter(program, machine.audit_arch, number["clone"], 0x3D0F00) == allow
    assert run_filter(program, machine.audit_arch, number["clone"], 17) == refuse
    assert run_filter(program, machine.audit_arch, number["ioctl"], 0x5421) == allow
    assert run_filter(program, machine.audit_arch, number["ioctl"], 0x8004E500) == refuse
    assert run_filter(program, machine.audit_arch, number["clone3"]) == 0x00050000 | errno.ENOSYS
    for call in ("kill", "umount2"):
        assert run_filter(program, machine.audit_arch, number[call]) == refuse
    for other in syscalls.MACHINES.values():
        if other is not machine:
            assert run_filter(program, other.audit_arch, number["read"]) == 0x80000000, "another ABI's numbers mean other calls"
