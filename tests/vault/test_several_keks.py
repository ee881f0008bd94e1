"""A host with several KEKs: two real servers and a file, every row of docs/DESIGN.md's table, and mounts that live through it."""

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from modelfs.control.keypage import KeyPage
from modelfs.errors import ConfigError, KeyAccessError, KeyDeniedError
from modelfs.format.keysfile import KeysFile, keys_file, recipient
from modelfs.keys import Kek, list_keks, open_kek
from modelfs.keys.file import generate_kek, open_provider
from modelfs.keys.several import Round, prove_in_order
from modelfs.keys.vault_session import boottime
from modelfs.keys.vault_settings import TokenFile, VaultSettings
from modelfs.mount.mountinfo import top_mount
from modelfs.seal.publish import SealRequest, Surroundings, seal_model
from modelfs.seal.recipients import Subject, add_recipients
from modelfs.seal.scan import scan_source
from modelfs.store.local import Store
from tests.helpers import NOW, KeySet, Sealed, load_signer, write_tree
from tests.leases.impostor import Misbehave, hang, server_context
from tests.leases.switch import Switch
from tests.mount.conftest import Mounted, modelfs, wait_until
from tests.vault.impostor import Impostor
from tests.vault.leased import FILE, PLAIN, Watcher, status
from tests.vault.server import CONTEXT, DEK, Server, manifest, running_server, write_secret

RENEW_S, TTL_S = 1.0, 4.0


@pytest.fixture(scope="module")
def other_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Another region's."""
    with running_server(tmp_path_factory.mktemp("other")) as found:
        yield found


@dataclass
class Region:
    """A KEK in a real server behind a switch, and a host's login there."""

    server: Server
    key: str

    def __post_init__(self) -> None:
        self.impostor: Impostor | None = None
        self.switch = Switch(self.server.vault.port)
        self.policy = self.server.policy(self.key)
        self.auth = self.server.approle(self.server.role(self.policy))
        self.settings = self.server.settings(self.auth, address=self.switch.address)

    def replace_by(self, overrides: dict[str, Misbehave] | None = None, dek: bytes = DEK) -> Impostor:
        """Somebody with a good certificate answers in the server's place."""
        context = server_context(*self.server.vault.ca.issue(f"in-place-of-{self.name}", is_server=True))
        self.impostor = Impostor(context, dek, dict(overrides or {}))
        self.switch.lead_to(int(self.impostor.address.rpartition(":")[2]))
        return self.impostor

    def close(self) -> None:
        self.switch.close()
        if self.impostor is not None:
            self.impostor.close()

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def with_all(self) -> VaultSettings:
        return self.server.settings(
            TokenFile(path=write_secret(self.server.directory / self.server.name("root"), self.server.vault.root_token))
        )

    @property
    def uri(self) -> str:
        return f"vault:{self.key}"

    def revoke(self) -> None:
        """The host's logins of now; the next one is granted again."""
        auth = self.server.root.auth.token
        for accessor in auth.list_accessors()["data"]["keys"]:
            if self.policy in auth.lookup_accessor(accessor)["data"]["policies"]:
                auth.revoke_accessor(accessor)

    def deny(self) -> None:
        self.server.root.sys.delete_policy(self.policy)

    def silence(self) -> None:
        self.switch.refuse()

    def speak(self) -> None:
        self.switch.lead_to(self.server.vault.port)

    def shut_off_version(self, version: int) -> None:
        self.server.root.secrets.transit.update_key_configuration(self.name, min_decryption_version=version + 1)

    def table(self, address: str, login: str) -> str:
        """Of a configuration file."""
        where = f'address = "{address}"\nca_file = "{self.server.vault.ca.path}"\n'
        return f'[[kek]]\nuri = "{self.uri}"\n[kek.vault]\n{where}[kek.vault.auth]\n{login}\n'

    def of_host(self) -> str:
        """The host's table."""
        files = f'role_id_file = "{self.auth.role_id_file}"\nsecret_id_file = "{self.auth.secret_id_file}"'
        return self.table(self.switch.address, f'method = "approle"\n{files}')

    def of_rewrapper(self) -> str:
        """The table of somebody who may do nothing but rewrap there."""
        rules = f'path "transit/rewrap/{self.name}" {{ capabilities = ["update"] }}\n'
        auth = self.server.token_file(self.server.policy(rules=rules))
        return self.table(self.server.vault.address, f'method = "token"\npath = "{auth.path}"')


@pytest.fixture
def regions(server: Server, other_server: Server) -> Iterator[tuple[Region, Region]]:
    """A and B; the keys have the same name, as they would have."""
    name = f"transit/{server.name('several')}"
    made = []
    for each in (server, other_server):
        each.root.secrets.transit.create_key(name.rpartition("/")[2], derived=True)
        made.append(Region(each, name))
    yield made[0], made[1]
    for region in made:
        region.close()


# Every row of the table, without a mount.


class Host:
    """What a mount's control process holds, and asks provers with."""

    def __init__(self, keks: tuple[Kek, ...], keys: KeysFile) -> None:
        self.keks, self.keys, self.page = keks, keys, KeyPage(len(keks))
        self.opened: set[int] | None = None

    def ask(self, timeout_s: float = 2.0) -> Round:
        opened = None if self.opened is None else frozenset(self.opened)
        made = prove_in_order(self.keks, range(len(self.keks)), self.keys, manifest(), self.page, opened, timeout_s, boottime)
        if made.position is not None and made.grant is not None:
            assert made.grant.dek == DEK
            self.opened = (self.opened or set()) | {made.position}
        return made


def wrapped_for(*regions: Region, more: tuple[Path, ...] = ()) -> KeysFile:
    entries = [open_kek(region.uri, region.with_all).wrap_key(DEK, CONTEXT) for region in regions]
    return keys_file([*entries, *(open_provider(str(path)).wrap_key(DEK, CONTEXT) for path in more)])


@pytest.fixture
def host(regions: tuple[Region, Region]) -> Host:
    a, b = regions
    return Host(list_keks([(a.uri, a.settings), (b.uri, b.settings)]), wrapped_for(a, b))


def a_denies(a: Region, host: Host) -> None:
    a.deny()


def a_shuts_its_version_off(a: Region, host: Host) -> None:
    a.server.root.secrets.transit.rotate_key(a.name)
    a.shut_off_version(1)


def a_is_silent(a: Region, host: Host) -> None:
    a.silence()


def a_is_sealed(a: Region, host: Host) -> None:
    a.switch.lead_to(1)  # nothing listens there: the connection breaks off


def a_gives_wrong_bytes(a: Region, host: Host) -> None:
    a.replace_by(dek=b"E" * 32)


def nobody_wrapped_it_for_a(a: Region, host: Host) -> None:
    # Under another name, because B's has A's.
    host.keks = list_keks([("vault:transit/models", host.keks[0].vault), (host.keks[1].uri, host.keks[1].vault)])


COUNTS, PASSES = "counts", "is passed over"
ROWS: dict[str, tuple[Callable[[Region, Host], None], tuple[str, str, str]]] = {
    "denied": (a_denies, (COUNTS, COUNTS, PASSES)),
    "its version is shut off": (a_shuts_its_version_off, (COUNTS, COUNTS, PASSES)),
    "refuses connections": (a_is_silent, (PASSES, PASSES, PASSES)),
    "breaks off": (a_is_sealed, (PASSES, PASSES, PASSES)),
    "wrong key bytes": (a_gives_wrong_bytes, (PASSES, PASSES, PASSES)),
    "not wrapped for it": (nobody_wrapped_it_for_a, (PASSES, COUNTS, PASSES)),
}


@pytest.mark.parametrize("row", ROWS)
@pytest.mark.parametrize("when", ["first proof", "it has opened the mount", "only the other has"])
def test_a_says_and_b_grants(regions: tuple[Region, Region], host: Host, row: str, when: str) -> None:
    (a, _b), (act, expected) = regions, ROWS[row]
    if when == "it has opened the mount":
        assert host.ask().position == 0
    elif when != "first proof":
        a.silence()
        assert host.ask().position == 1
        a.speak()
    act(a, host)
    made = host.ask()
    if expected[["first proof", "it has opened the mount", "only the other has"].index(when)] is COUNTS:
        assert made.grant is None
        assert made.position == 0
        assert isinstance(made.error, KeyDeniedError if when != "first proof" or row == "denied" else KeyAccessError)
    else:
        assert (made.position, made.error) == (1, None)
        assert host.keks[0].name in made.passed[0]
        assert ("ALARM" in made.passed[0]) == (row == "wrong key bytes")


def test_a_file_comes_after_a_vault(regions: tuple[Region, Region], tmp_path: Path) -> None:
    a, _b = regions
    generate_kek(tmp_path / "kek")
    kek = (f"file:{tmp_path}/kek", None)
    keys = wrapped_for(a, more=(tmp_path / "kek",))
    host = Host(list_keks([(a.uri, a.settings), kek]), keys)
    assert [host.ask().position, a.silence(), host.ask().position] == [0, None, 1]
    host = Host(list_keks([kek, (a.uri, a.settings)]), keys)
    assert host.ask().position == 0
    (tmp_path / "kek").rename(tmp_path / "elsewhere")
    a.speak()
    made = host.ask()
    assert (made.position, "No such file" in made.passed[0]) == (1, True)
    generate_kek(tmp_path / "kek")
    made = host.ask()
    assert isinstance(made.error, KeyDeniedError), "another key in the place of one that has opened this"
    assert "not wrapped for the KEK file:" in str(made.error)


def test_no_login_is_sent_to_another_service(regions: tuple[Region, Region], host: Host) -> None:
    """A is taken by somebody who collects what hosts send to it."""
    a, _b = regions
    assert host.ask().position == 0
    a.silence()
    assert host.ask().position == 1
    theirs = json.loads(host.page.read_session(1) or b"")["token"]
    ours = json.loads(host.page.read_session(0) or b"")["token"]
    assert theirs != ours
    collector = a.replace_by()
    assert host.ask().position == 0
    tokens = {token for _path, token in collector.seen}
    assert ours in tokens, "A's own login was not gone on with"
    assert theirs not in tokens


def test_a_token_that_was_revoked_during_an_outage_is_not_followed_by_a_new_login(regions: tuple[Region, Region], host: Host) -> None:
    a, _b = regions
    assert host.ask().position == 0
    a.silence()
    assert [host.ask().position for _ in range(3)] == [1, 1, 1]
    a.revoke()
    a.speak()
    made = host.ask()
    assert (made.position, type(made.error)) == (0, KeyDeniedError)
    assert "before its own end: it was revoked" in str(made.error)


def test_a_silent_one_leaves_time_to_the_next(regions: tuple[Region, Region], host: Host) -> None:
    a, _b = regions
    assert host.ask().position == 0
    a.replace_by({"": hang})
    began = time.monotonic()
    made = host.ask(1.0)
    assert made.position == 1, made
    assert 0.4 < time.monotonic() - began < 1.0
    assert "did not answer within 0.5 s" in made.passed[0]


def test_an_entry_of_the_same_name_in_the_other_vault_is_in_nobody_s_way(regions: tuple[Region, Region], host: Host) -> None:
    """A's entry is refused by B, and B's by A; neither is a denial as long as one opens."""
    a, b = regions
    assert len({entry.name for entry in host.keys.recipients}) == 1
    host.keys = keys_file(list(reversed(host.keys.recipients)))
    assert host.ask().position == 0
    a.silence()
    assert host.ask().position == 1
    b.silence()
    made = host.ask()
    assert (made.grant, made.position, made.refused) == (None, None, ())
    assert all(kek.name in str(made.error) for kek in host.keks)


# Mounted.


@dataclass
class Scene:
    """A model for A and B, and a host's configuration that names both."""

    sealed: Sealed
    a: Region
    b: Region
    config: Path
    audit: Path

    def events(self) -> list[dict[str, str]]:
        return [json.loads(line) for line in self.audit.read_text().splitlines()]

    def mount(self, mount: Callable[..., Mounted], *options: object) -> Mounted:
        return mount(self.sealed, "--config", self.config, "--audit", self.audit, "--workers", 1, *options, kek=False)

    def refused(self, tmp_path: Path) -> str:
        """What `modelfs mount` says when it does not mount."""
        (tmp_path / "refused").mkdir()
        what = ["mount", self.sealed.path, tmp_path / "refused", "--config", self.config, "--state-dir", tmp_path / "refused.state"]
        done = modelfs(*what, "--model", "demo", "--trust", self.sealed.keys.public)
        assert done.returncode == 5, done
        assert top_mount(os.fsencode(tmp_path / "refused")) is None
        assert done.stderr.count("\n") == 1
        return done.stderr

    def name(self, region: Region) -> str:
        return f"{region.uri} at {region.switch.address}"


@pytest.fixture
def scene(regions: tuple[Region, Region], keys_dir: KeySet, tmp_path: Path) -> Scene:
    """Sealed for A; B is added, as its publisher would: a key of the same name in another Vault, told apart by a label."""
    a, b = regions
    source = write_tree(tmp_path / "source", {FILE: PLAIN})
    opener = open_kek(a.uri, a.with_all)
    order = SealRequest("demo", 1, [opener], load_signer(keys_dir.signing), "blake3", 131072, None, None)
    seal_model(scan_source(source, False), tmp_path / "sealed", order, Surroundings(now=NOW))
    with Store(tmp_path / "sealed") as store:
        subject = Subject(store, keys_dir.trusted(), "demo")
        with pytest.raises(ConfigError, match="tell this one apart by a --label"):
            add_recipients(subject, [opener], [open_kek(b.uri, b.with_all)], "")
        change = add_recipients(subject, [opener], [open_kek(b.uri, b.with_all)], "b")
        with pytest.raises(ConfigError, match="is a recipient already"):
            add_recipients(subject, [opener], [open_kek(b.uri, b.with_all)], "another label")
    assert [entry.label for entry in change.recipients] == ["", "b"]
    config = tmp_path / "host.toml"
    config.write_text(f"renew_every = {RENEW_S}\nttl = {TTL_S}\n{a.of_host()}{b.of_host()}")
    return Scene(Sealed(tmp_path / "sealed", source, keys_dir), a, b, config, tmp_path / "audit")


def test_a_region_that_goes_down_costs_no_read(scene: Scene, mount: Callable[..., Mounted]) -> None:
    """A down for longer than a lease lasts: B serves; and A again, when it is back."""
    mounted = scene.mount(mount)
    assert status(mounted)["kek"] == scene.name(scene.a)
    assert status(mounted)["keks"] == [scene.name(scene.a), scene.name(scene.b)]
    with Watcher(mounted) as watcher:
        wait_until(watcher.is_good, 10, "a first read")
        scene.a.silence()
        wait_until(lambda: status(mounted)["kek"] == scene.name(scene.b), 10, "B's grant")
        time.sleep(TTL_S + 1)
        found = status(mounted)
        assert (found["lease"], found["kek"]) == ("granted", scene.name(scene.b))
        assert "Connection refused" in found["passed_over"]
        shown = modelfs("status", mounted.path).stdout
        assert f"KEK {scene.name(scene.b)}" in shown
        assert f"passed over: {scene.name(scene.a)}" in shown
        scene.a.speak()
        wait_until(lambda: status(mounted)["kek"] == scene.name(scene.a), 10, "A's grant")
        assert status(mounted)["passed_over"] is None
    assert watcher.bad() == []
    mounted.unmount()
    found = [(event["event"], event["kek"]) for event in scene.events() if event["event"] != "renewal failed"]
    a, b = scene.name(scene.a), scene.name(scene.b)
    assert found == [("mount", a), ("other KEK", b), ("other KEK", a), ("unmount", a)]
    (moved,) = [event for event in scene.events() if event["event"] == "other KEK" and event["kek"] == b]
    assert "Connection refused" in moved["reason"]
    assert f"granted by {b}; passed over: {a}" in mounted.log


def test_both_down_is_an_outage_and_either_ends_it(scene: Scene, mount: Callable[..., Mounted]) -> None:
    mounted = scene.mount(mount)
    with Watcher(mounted) as watcher:
        wait_until(watcher.is_good, 10, "a first read")
        scene.a.silence()
        scene.b.silence()
        wait_until(lambda: status(mounted)["lease"] == "locked", TTL_S + 5, "the lease's end")
        wait_until(watcher.bad, 5, "a read that is refused")
        scene.b.speak()
        wait_until(lambda: status(mounted)["lease"] == "granted", 10, "B's grant")
        wait_until(watcher.is_good, 10, "a good read")
        assert status(mounted)["kek"] == scene.name(scene.b)
    assert {sample.errno for sample in watcher.bad()} == {errno.EKEYEXPIRED}
    unlocked = [event for event in scene.events() if event["event"] == "unlock"]
    assert [event["kek"] for event in unlocked] == [scene.name(scene.b)]


def test_a_denies_and_b_would_grant(scene: Scene, mount: Callable[..., Mounted], tmp_path: Path) -> None:
    """A has opened the mount: its word is the end of it. And it does not begin again by way of B."""
    mounted = scene.mount(mount)
    with Watcher(mounted) as watcher:
        wait_until(watcher.is_good, 10, "a first read")
        scene.a.deny()
        denied = boottime()
        wait_until(lambda: not mounted.is_attached(), RENEW_S + 2.0, "the end of the mount")
        wait_until(watcher.bad, 1, "a read that is refused")
    assert watcher.last_good().ended - denied <= RENEW_S + 2.0
    wait_until(lambda: scene.events()[-1]["event"] == "revoked", 10, "the record of the end")
    assert scene.events()[-2]["event"] == "denied"
    assert {event["kek"] for event in scene.events()} == {scene.name(scene.a)}
    assert "denies" in scene.refused(tmp_path)


def test_whoever_takes_a_s_entry_out_of_the_file_does_not_undo_its_denial(scene: Scene, mount: Callable[..., Mounted]) -> None:
    """The keys file is read once more after a no: only who said it may grant by that."""
    mounted = scene.mount(mount)
    (path,) = (scene.sealed.path / "keys").iterdir()
    with Store(scene.sealed.path):
        entries = json.loads(path.read_bytes())
    entries["recipients"] = entries["recipients"][1:]
    assert len(entries["recipients"]) == 1
    path.write_bytes(json.dumps(entries, sort_keys=True, separators=(",", ":")).encode())
    scene.a.deny()
    wait_until(lambda: not mounted.is_attached(), RENEW_S + 2.0, "the end of the mount")


def test_b_has_opened_it_and_a_never_did(scene: Scene, mount: Callable[..., Mounted]) -> None:
    """What A says about a mount that rests on B changes nothing; B's no ends it."""
    scene.a.silence()
    mounted = scene.mount(mount)
    assert status(mounted)["kek"] == scene.name(scene.b)
    scene.a.deny()
    scene.a.speak()
    wait_until(lambda: "denies" in (status(mounted)["passed_over"] or ""), 10, "A's no")
    time.sleep(2 * RENEW_S)
    assert status(mounted)["lease"] == "granted"
    scene.b.deny()
    wait_until(lambda: not mounted.is_attached(), RENEW_S + 2.0, "the end of the mount")


def test_a_fallback_that_is_set_up_wrongly_takes_nothing_down(scene: Scene, mount: Callable[..., Mounted]) -> None:
    """A is silent, and B, which never opened it, says no: an outage, not a revocation."""
    mounted = scene.mount(mount)
    scene.b.deny()
    scene.a.silence()
    wait_until(lambda: status(mounted)["lease"] == "unreachable", 5, "an outage")
    time.sleep(2 * RENEW_S)
    assert "denies" in status(mounted)["last_error"]
    scene.a.speak()
    wait_until(lambda: status(mounted)["lease"] == "granted", 10, "A's grant")


def test_both_are_rewrapped_and_both_old_versions_shut_off(scene: Scene, mount: Callable[..., Mounted]) -> None:
    """Nobody notices; and B, whose old entry was pinned and never asked about, opens it by its new one."""
    mounted = scene.mount(mount)
    with Watcher(mounted) as watcher:
        wait_until(watcher.is_good, 10, "a first read")
        publisher = scene.config.with_name("publisher.toml")
        publisher.write_text(scene.a.of_rewrapper() + scene.b.of_rewrapper())
        for region in (scene.a, scene.b):
            region.server.root.secrets.transit.rotate_key(region.name)
        done = modelfs("rewrap", scene.sealed.path, "--model", "demo", "--trust", scene.sealed.keys.public, "--config", publisher, "--json")
        assert done.returncode == 0, done.stderr
        assert [(each["label"], each["key_version"]) for each in json.loads(done.stdout)["rewrapped"]] == [("", 2), ("b", 2)]
        assert done.stderr == "", "each is rewrapped by its own Vault, and nothing is left"
        # A's is shut off when A is not asked any more: a no to its old entry would count if it were silenced right after it.
        scene.b.shut_off_version(1)
        scene.a.silence()
        wait_until(lambda: status(mounted)["kek"] == scene.name(scene.b), 10, "B's grant by its new entry")
        assert status(mounted)["key_version"] == 2
        scene.a.shut_off_version(1)
        scene.a.speak()
        wait_until(lambda: status(mounted)["kek"] == scene.name(scene.a), 10, "A's grant by its new entry")
        assert status(mounted)["key_version"] == 2
    assert watcher.bad() == []


def test_doctor_asks_every_kek(scene: Scene) -> None:
    done = modelfs("doctor", "--config", scene.config, "--json")
    checks = json.loads(done.stdout)["checks"]
    servers = [check["found"] for check in checks if check["name"] == "vault-server"]
    assert [found.partition(": ")[0] for found in servers] == [scene.name(scene.a), scene.name(scene.b)]
    assert {check["level"] for check in checks if check["name"] in ("vault-server", "vault-key", "secrets")} == {"ok"}
    scene.b.silence()
    done = modelfs("doctor", "--config", scene.config, "--json")
    broken = [check["found"] for check in json.loads(done.stdout)["checks"] if check["level"] == "error"]
    assert done.returncode == 5
    assert any(scene.name(scene.b) in found and "Connection refused" in found for found in broken)
    assert not any(scene.name(scene.a) + ":" in found for found in broken)


def test_a_recipient_that_nobody_asked_for_is_no_way_in(host: Host) -> None:
    """An address, or a scheme, in an unsigned file is never followed."""
    stranger = recipient("vault", "transit/evil", "", b"vault:v1:AAAA")
    host.keys = keys_file(
        [stranger, recipient("vault", "https://evil.example/transit/models", "", b"vault:v1:AAAB"), *host.keys.recipients]
    )
    assert host.ask().position == 0
