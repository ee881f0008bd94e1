"""A mount with its KEK in a Vault: no key, token or secret id in what it says, shows or leaves in memory, in whatever form."""

import base64
import contextlib
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import hvac
import pytest

from modelfs.control.keypage import has_secret_memory
from modelfs.keys import open_kek
from modelfs.keys.interface import unwrap_dek
from modelfs.keys.vault_settings import AppRole, TokenFile
from modelfs.reader.index import fetch_index, open_index
from modelfs.store.local import Store
from modelfs.trust.release import read_keys
from tests.helpers import NOW, KeySet, Sealed, load_signer, write_tree
from tests.mount.conftest import Mounted, modelfs, wait_until
from tests.mount.test_memory import memory
from tests.vault.server import Server, write_secret

PLAIN = os.urandom(1_000_000)
TTL_S = 10.0  # longer than starting a mount takes on a busy machine


def forms(secret: bytes) -> set[bytes]:
    """Raw, hex and base64 in both alphabets; of base64, at each of the three offsets, what does not depend on its neighbours."""
    found = {secret, secret.hex().encode(), secret.hex().upper().encode()}
    for shift in range(3):
        skip = (shift * 8 + 5) // 6  # characters that the bytes before take part in
        whole = (shift + len(secret)) * 8 // 6
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            found.add(encode(bytes(shift) + secret)[skip:whole])
    assert all(len(form) >= 20 for form in found)
    return found


def test_the_forms_are_found_wherever_they_start() -> None:
    secret = bytes(range(200, 232))
    for before in range(4):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            text = encode(bytes([255]) * before + secret + b"after")
            assert any(form in text for form in forms(secret))
            assert not any(form in encode(os.urandom(64)) for form in forms(secret))


def leaks(secrets: dict[str, bytes], text: bytes) -> list[str]:
    return [name for name, secret in secrets.items() if any(form in text for form in forms(secret))]


class Case:
    """A mounted model, everything secret about it, and everything that it has said."""

    def __init__(self, server: Server, keys: KeySet, base: Path, method: str) -> None:
        from modelfs.seal.publish import SealRequest, Surroundings, seal_model
        from modelfs.seal.scan import scan_source

        self.server = server
        self.key = server.key()
        self.policy = server.policy(self.key)
        self.auth: AppRole | TokenFile
        self.secrets: dict[str, bytes] = {}
        if method == "token":
            self.auth = server.token_file(self.policy)
            self.secrets["token"] = self.auth.path.read_bytes()
            login = f"token:{self.auth.path}"
        else:
            role = server.role(self.policy)
            self.auth = server.approle(role)
            self.secrets["secret id"] = self.auth.secret_id_file.read_bytes()
            login = f"approle:role_id_file={self.auth.role_id_file},secret_id_file={self.auth.secret_id_file}"
            if method == "wrapped":
                # One whose value is known here: the mount unwraps it, and keeps it from login to login.
                custom = {"secret_id": self.secrets["secret id"].decode() + "-custom"}
                answer = server.root.auth.approle.create_custom_secret_id(role, custom["secret_id"], wrap_ttl="60s")
                self.secrets = {"secret id": custom["secret_id"].encode(), "wrapping token": answer["wrap_info"]["token"].encode()}
                login += ",secret_id_wrapped=true"
        with_all = TokenFile(path=write_secret(base / "root", server.vault.root_token))
        provider = open_kek(f"vault:{self.key}", server.settings(with_all))
        source = write_tree(base / "source", {"model.bin": PLAIN, "other": b"x"})
        request = SealRequest("demo", 1, [provider], load_signer(keys.signing), "blake3", 131072, None, None)
        seal_model(scan_source(source, False), base / "sealed", request, Surroundings(now=NOW))
        self.sealed = Sealed(base / "sealed", source, keys)
        with Store(self.sealed.path) as store:
            manifest = self.sealed.manifest
            dek = unwrap_dek(provider, read_keys(store, manifest), manifest)
            index = open_index(fetch_index(store, manifest), manifest, dek)
        self.keys = {"DEK": dek, **{f"blob key of {entry.path}": entry.blob_key for entry in index.files}}
        if method == "wrapped" and isinstance(self.auth, AppRole):
            write_secret(self.auth.secret_id_file, self.secrets["wrapping token"].decode())
        vault = server.vault
        self.options: list[object] = ["--kek", f"vault:{self.key}", "--vault-address", vault.address, "--vault-ca-file", vault.ca.path]
        self.options += ["--vault-auth", login, "--renew-every", 1, "--ttl", TTL_S, "--workers", 2, "--log-level", "debug"]
        self.options += ["--audit", base / "audit"]
        self.audit = base / "audit"


@pytest.fixture(params=["token", "approle", "wrapped"])
def case(server: Server, keys_dir: KeySet, tmp_path: Path, request: pytest.FixtureRequest) -> Case:
    return Case(server, keys_dir, tmp_path, request.param)


def shown(pids: list[int]) -> Iterator[bytes]:
    """What anybody who may look sees of processes."""
    for pid in pids:
        for name in ("environ", "cmdline", "status", "maps"):
            yield Path(f"/proc/{pid}/{name}").read_bytes()


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def is_dark(mounted: Mounted, keyed: list[int]) -> bool:
    workers = mounted.status()["workers"]
    return bool(workers) and not set(workers) & set(keyed) and not any(os.path.exists(f"/proc/{pid}") for pid in keyed)


def memories(mounted: Mounted) -> dict[str, bytes]:
    """Of every process of the mount."""
    status = mounted.status()
    pids = {"control": [status["control"]], "warden": [status["warden"]], "worker": status["workers"]}
    found = {f"{role} {pid}": memory(pid) for role, each in pids.items() for pid in each}
    assert len(found) >= 4
    assert all(len(held) > 1 << 20 for held in found.values()), "nothing was read"
    return found


def search(held: dict[str, bytes], secrets: dict[str, bytes]) -> None:
    if not has_secret_memory():
        # The page that control hands from prover to prover is hidden by the kernel, or lies open in control.
        held = {process: text for process, text in held.items() if not process.startswith("control")}
    assert {process: leaks(secrets, text) for process, text in held.items()} == {process: [] for process in held}


def tokens_in(server: Server, text: bytes) -> dict[str, bytes]:
    """Tokens of the server: what looks like one, and is."""
    found = {}
    for candidate in set(re.findall(rb"\bs\.[A-Za-z0-9]{24}(?![A-Za-z0-9])", text)):
        with contextlib.suppress(hvac.exceptions.VaultError):
            server.root.auth.token.lookup(candidate.decode())
            found[f"login {len(found)}"] = candidate
    return found


def test_nothing_secret_is_said_or_shown_or_left_in_memory(case: Case, mount: Callable[..., Mounted]) -> None:
    mounted = mount(case.sealed, *case.options)
    assert (mounted.path / "model.bin").read_bytes() == PLAIN
    assert (mounted.path / "other").read_bytes() == b"x"
    secrets = {**case.keys, **case.secrets}
    said = [modelfs("status", mounted.path).stdout.encode(), modelfs("status", mounted.path, "--json").stdout.encode()]
    status = mounted.status()
    keyed = status["workers"]

    # The search finds keys where they are needed; and no login anywhere but in provers.
    assert "blob key of model.bin" in leaks(case.keys, b"".join(map(memory, keyed)))
    search(memories(mounted), case.secrets)
    if has_secret_memory():
        pages = {pid: Path(f"/proc/{pid}/maps").read_text().count("secretmem") for pid in mounted.pids()}
        assert pages.pop(status["control"]) == 2, "a key's page and a login's"
        assert set(pages.values()) == {1}, "warden and workers have the key's page alone"
    assert not any(leaks(secrets, text) for text in shown(mounted.pids()))

    assert modelfs("lock", mounted.path).returncode == 0
    wait_until(lambda: is_dark(mounted, keyed), 10, "workers without keys alone")
    search(memories(mounted), secrets)
    assert modelfs("unlock", mounted.path).returncode == 0
    assert (mounted.path / "model.bin").read_bytes() == PLAIN
    keyed = mounted.status()["workers"]

    # An outage: provers wait for the server with the login in their memory. Nobody else has it; after the lease's end nobody has a key.
    os.kill(case.server.vault.pid, signal.SIGSTOP)
    try:
        waiting: list[bytes] = []

        def is_in_a_prover() -> bool:
            for pid in set(children(status["control"])) - {status["warden"]}:
                with contextlib.suppress(OSError):  # it has just ended
                    waiting.append(memory(pid))
            return len(waiting) >= 3

        wait_until(is_in_a_prover, TTL_S + 10, "a look into the memory of three provers")
        wait_until(lambda: mounted.status()["lease"] == "locked", TTL_S + 10, "the lease's end")
        wait_until(lambda: is_dark(mounted, keyed), 10, "workers without keys alone")
        held = memories(mounted)
        search(held, secrets)
        said.append(modelfs("status", mounted.path, "--json").stdout.encode())
    finally:
        os.kill(case.server.vault.pid, signal.SIGCONT)
    logins = tokens_in(case.server, b"".join(waiting))
    assert logins, "the search must find a login where there is one"
    search(held, logins)
    secrets |= logins
    wait_until(lambda: mounted.status()["lease"] == "granted", 30, "the unlock")
    assert (mounted.path / "model.bin").read_bytes() == PLAIN

    # A denial: its reasons are said everywhere.
    pids = mounted.pids()
    case.server.root.sys.delete_policy(case.policy)
    wait_until(lambda: not mounted.is_attached(), 10, "the revocation")
    wait_until(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in pids), 10, "the end of every process")
    log = (mounted.state_dir / "demo.log").read_bytes()
    assert re.search(rb"DEBUG PUT /v1/transit/decrypt/|DEBUG POST /v1/transit/decrypt/", log), "the log is not at debug level"
    assert b"DEBUG proof: " in log
    audit = case.audit.read_bytes()
    assert [kind in audit for kind in (b'"denied"', b'"locked"', b'"revoked"')] == [True] * 3
    for text in (*said, log, audit):
        assert len(text) > 100
        assert leaks(secrets, text) == []
