"""A model sealed for a KEK of its own in a real server, mounted with short leases; what takes it away; and what a reader sees meanwhile."""

import contextlib
import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from modelfs.control.socket import request, socket_path
from modelfs.errors import MountError
from modelfs.keys import open_kek
from modelfs.keys.vault_session import boottime
from modelfs.keys.vault_settings import AppRole
from modelfs.mount.mountinfo import top_mount
from modelfs.seal.publish import SealRequest, Surroundings, seal_model
from modelfs.seal.scan import scan_source
from tests.helpers import NOW, KeySet, Sealed, load_signer, write_tree
from tests.mount.conftest import Mounted, modelfs, mount_command, wait_until
from tests.vault.server import Server

RENEW_S, TTL_S = 1.0, 4.0
PLAIN = os.urandom(3_000_000)
FILE = "model.bin"


class Leased:
    """A sealed model and the login of the host that mounts it."""

    def __init__(self, server: Server, keys: KeySet, base: Path, more: int = 0) -> None:
        """`more` bytes of zeros beside the file that readers read: the sealed model is that much larger."""
        self.server = server
        self.key = server.key()
        self.policy = server.policy(self.key)
        self.role = server.role(self.policy)
        self.auth: AppRole = server.approle(self.role)
        source = write_tree(base / "source", {FILE: PLAIN, **({"more": b""} if more else {})})
        if more:
            os.truncate(source / "more", more)
        provider = open_kek(f"vault:{self.key}", server.settings(self.auth))
        order = SealRequest("demo", 1, [provider], load_signer(keys.signing), "blake3", 131072, None, None)
        seal_model(scan_source(source, False), base / "sealed", order, Surroundings(now=NOW))
        self.sealed = Sealed(base / "sealed", source, keys)

    @property
    def login(self) -> str:
        return f"approle:role_id_file={self.auth.role_id_file},secret_id_file={self.auth.secret_id_file}"

    def options(self, *, auth: str = "", address: str = "", ttl_s: float = TTL_S) -> list[object]:
        vault = self.server.vault
        where = ["--kek", f"vault:{self.key}", "--vault-address", address or vault.address, "--vault-ca-file", vault.ca.path]
        return [*where, "--vault-auth", auth or self.login, "--renew-every", RENEW_S, "--ttl", ttl_s]

    def accessors(self) -> list[str]:
        """Of every token that has this model's policy."""
        auth = self.server.root.auth.token
        found = []
        for accessor in auth.list_accessors()["data"]["keys"]:
            with contextlib.suppress(Exception):
                if self.policy in auth.lookup_accessor(accessor)["data"]["policies"]:
                    found.append(accessor)
        assert found
        return found

    def rewrap(self) -> "subprocess.CompletedProcess[str]":
        """`modelfs rewrap`, by somebody who may do nothing else."""
        vault, name = self.server.vault, self.key_name
        auth = self.server.token_file(self.server.policy(rules=f'path "transit/rewrap/{name}" {{ capabilities = ["update"] }}\n'))
        where = ["--kek", f"vault:{self.key}", "--vault-address", vault.address, "--vault-ca-file", vault.ca.path]
        what = ["rewrap", self.sealed.path, "--model", "demo", "--trust", self.sealed.keys.public]
        return modelfs(*what, *where, "--vault-auth", f"token:{auth.path}", "--json")

    @property
    def key_name(self) -> str:
        return self.key.rpartition("/")[2]


# Denials.


def revoke_accessors(leased: Leased) -> None:
    for accessor in leased.accessors():
        leased.server.root.auth.token.revoke_accessor(accessor)


def remove_policy(leased: Leased) -> None:
    leased.server.root.sys.delete_policy(leased.policy)


def raise_minimum(leased: Leased) -> None:
    transit = leased.server.root.secrets.transit
    transit.rotate_key(leased.key_name)
    transit.update_key_configuration(leased.key_name, min_decryption_version=2)


def delete_key(leased: Leased) -> None:
    transit = leased.server.root.secrets.transit
    transit.update_key_configuration(leased.key_name, deletion_allowed=True)
    transit.delete_key(leased.key_name)


@dataclass(frozen=True)
class Denial:
    """An operator's act, and what the audit log says of it afterwards."""

    act: Callable[[Leased], None]
    reason: str


DENIALS = {
    "accessor revoked": Denial(revoke_accessors, "it was revoked"),
    "policy removed": Denial(remove_policy, "it was revoked (or may not `update` auth/token/renew-self any more)"),
    "min_decryption_version raised": Denial(raise_minimum, "min_decryption_version is above the version that wrapped it"),
    "key deleted": Denial(delete_key, "the key does not exist"),
}


# Readers.


@dataclass(frozen=True)
class Sample:
    """One read; CLOCK_BOOTTIME seconds."""

    started: float
    ended: float
    errno: int | None
    """None: it gave the right bytes."""


class Watcher:
    """Reads a block of a mounted model again and again, past the page cache, through one descriptor that stays open."""

    def __init__(self, mounted: Mounted, pause_s: float = 0.02) -> None:
        self.samples: list[Sample] = []
        self._fd = os.open(mounted.path / FILE, os.O_RDONLY)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._wrong = False
        self._pause_s = pause_s

    def __enter__(self) -> "Watcher":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        os.close(self._fd)
        assert not self._wrong, "a read gave wrong bytes"

    def is_good(self) -> bool:
        """Whether the last read was."""
        return bool(self.samples) and self.samples[-1].errno is None

    def bad(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.errno is not None]

    def last_good(self) -> Sample:
        return [sample for sample in self.samples if sample.errno is None][-1]

    def _run(self) -> None:
        while not self._stop.wait(self._pause_s):
            started, errno = boottime(), None
            try:
                os.posix_fadvise(self._fd, 0, 0, os.POSIX_FADV_DONTNEED)
                self._wrong |= os.pread(self._fd, 4096, 0) != PLAIN[:4096]
            except OSError as exc:
                errno = exc.errno
            self.samples.append(Sample(started, boottime(), errno))


def status(mounted: Mounted) -> dict[str, Any]:
    """As `modelfs status`, without the time that a process takes."""
    return request(socket_path(str(mounted.path)), {"do": "status"}, 3)


# Outages.


@dataclass(frozen=True)
class Outage:
    """How to begin one, and how to end it."""

    begin: Callable[[], object]
    end: Callable[[], object]


@dataclass(frozen=True)
class Outcome:
    """What became of a mount; CLOCK_BOOTTIME seconds."""

    began: float
    """When the outage was there."""
    lease_end: tuple[float, float]
    """The lease's end lies between these two."""
    over: float
    """When the server was told to come back."""
    samples: list[Sample]
    """Since the outage was there."""
    state: str
    audited: list[str]
    """Kinds of the events in its audit log since then, in order."""

    def good(self) -> list[Sample]:
        """Before the server came back."""
        return [sample for sample in self.samples if sample.errno is None and sample.started < self.over]

    def dark(self) -> list[Sample]:
        return [sample for sample in self.samples if sample.errno is not None]

    def again(self) -> list[Sample]:
        """Good reads since the server came back."""
        return [sample for sample in self.samples if sample.errno is None and sample.started >= self.over]


def endure(mounted: Mounted, outage: Outage, dark_s: float = 1.5) -> Outcome:
    """Live through an outage: into it, past the lease's end for `dark_s`, and out of it again."""

    def is_fresh() -> bool:
        found = status(mounted)
        return found["lease"] == "granted" and found["last_granted_s_ago"] < RENEW_S

    # Others that are being mounted at the same time may keep it from a proof or two.
    wait_until(is_fresh, 30, "a quiet start")
    with Watcher(mounted) as watcher:
        wait_until(lambda: is_fresh() and watcher.is_good(), 30, "a first read")
        before_it = len(_events(mounted))
        outage.begin()
        began = boottime()
        deadline, lease_end = began + 30, (0.0, 0.0)
        while (before := boottime(), found := status(mounted))[1]["lease"] in ("granted", "unreachable"):
            if found["lease_left_s"] > 0:  # else the lease has ended, and control is about to say so
                # Rounded to milliseconds.
                lease_end = before + found["lease_left_s"] - 0.001, boottime() + found["lease_left_s"] + 0.001
            assert before < deadline, "the lease does not end"
            time.sleep(0.05)
        time.sleep(dark_s)
        over = boottime()
        outage.end()
        wait_until(lambda: status(mounted)["lease"] == "granted", 10, "the grant after the outage")
        since = len(watcher.samples)
        wait_until(lambda: len(watcher.samples) > since + 20, 10, "reads after the outage")
    samples = [sample for sample in watcher.samples if sample.started >= began]
    return Outcome(began, lease_end, over, samples, status(mounted)["state"], _events(mounted)[before_it:])


def _events(mounted: Mounted) -> list[str]:
    return [json.loads(line)["event"] for line in mounted.facts["audit"].read_text().splitlines()]


@contextlib.contextmanager
def mounts(base: Path, wanted: Mapping[str, tuple[Sealed, list[object]]]) -> Iterator[dict[str, Mounted]]:
    """Many mounts at once, made and taken down side by side. Each has an audit log, `audit`, in its state directory."""

    def make(name: str) -> Mounted:
        sealed, options = wanted[name]
        path, state_dir = base / f"{name}.mnt", base / f"{name}.state"
        path.mkdir()
        done = modelfs(*mount_command(sealed, path, state_dir, "--json", "--workers", 1, "--audit", base / f"{name}.audit", *options))
        assert done.returncode == 0, done.stderr
        return Mounted(sealed, path, state_dir, {"audit": base / f"{name}.audit"})

    def end(name: str) -> None:
        path = base / f"{name}.mnt"
        with contextlib.suppress(MountError):  # it was never there
            request(socket_path(str(path)), {"do": "unmount"}, 60, wait_for_end=True)
        assert top_mount(os.fsencode(path)) is None, f"{path} was left mounted"

    with ThreadPoolExecutor(4) as pool:
        try:
            yield dict(zip(wanted, pool.map(make, wanted), strict=True))
        finally:
            list(pool.map(end, wanted))


def pause() -> None:
    """Wait for any part of a renewal's interval, so that an event does not always find the same one."""
    time.sleep(int.from_bytes(os.urandom(2)) / 65536 * RENEW_S)
