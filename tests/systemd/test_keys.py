"""What the key service and the release say, as systemd sees it: waiting, revoked, refused; and which ends are no reason to start again."""

import json
from pathlib import Path

import pytest

from modelfs.keys import open_kek
from tests.helpers import NOW, KeySet, load_signer, write_tree
from tests.systemd.conftest import MODELS, PLAIN, SUM, Host, wait_for
from tests.vault.server import Server


@pytest.fixture
def leased(server: Server, keys_dir: KeySet, tmp_path: Path) -> tuple[Path, str, str]:
    """A model sealed for a KEK of its own in a real key service; where it is, the KEK, and the role that may use it."""
    from modelfs.seal.publish import SealRequest, Surroundings, seal_model
    from modelfs.seal.scan import scan_source

    key = server.key()
    role = server.role(server.policy(key))
    source = scan_source(write_tree(tmp_path / "source", {"model.bin": PLAIN}), False)
    provider = open_kek(f"vault:{key}", server.settings(server.approle(role)))
    request = SealRequest("leased", 1, [provider], load_signer(keys_dir.signing), "blake3", 131072, None, None)
    seal_model(source, tmp_path / "sealed", request, Surroundings(now=NOW))
    return tmp_path / "sealed", key, role


def test_a_server_waits_for_the_key_service_and_stops_when_access_is_revoked(
    host: Host, server: Server, leased: tuple[Path, str, str]
) -> None:
    """A sealed Vault at boot; AppRole with role id and secret id as credentials; then the role's logins are revoked."""
    machine, (sealed, key, role) = host.machine, leased
    auth = server.approle(role)
    machine.write("/etc/credstore/modelfs.vault.role-id", auth.role_id_file.read_bytes())
    machine.write("/etc/credstore/modelfs.vault.secret-id", auth.secret_id_file.read_bytes())
    credentials = "/run/credentials/modelfs@vault.service"
    login = f'{{method = "approle", role_id_file = "{credentials}/role-id", secret_id_file = "{credentials}/secret-id"}}'
    vault = f'{{address = "{server.vault.address}", ca_file = "{server.vault.ca.path}", auth = {login}}}'
    unit = host.instance(
        "vault",
        sealed=json.dumps(str(sealed)),
        model='"leased"',
        kek=f'"vault:{key}"',
        allow_other="true",
        renew_every=300,
        ttl=3000,
        vault=vault,
    )
    needs = host.server("vault")

    server.root.sys.seal()
    try:
        machine.systemctl("start", "--no-block", needs)
        wait_for(lambda: "waiting for the key service" in machine.show(unit, "StatusText")["StatusText"], lambda: machine.journal(unit))
        assert machine.show(unit, "ActiveState", "NRestarts") == {"ActiveState": "activating", "NRestarts": "0"}
        assert machine.show(needs, "ActiveState") == {"ActiveState": "inactive"}, "it waits"
    finally:
        server.vault.unseal()
    machine.wait(unit, ActiveState="active")
    machine.wait(needs, ActiveState="active")
    host.wait_for_read("vault")

    for accessor in server.root.list("auth/token/accessors")["data"]["keys"]:
        if (server.root.auth.token.lookup_accessor(accessor)["data"]["meta"] or {}).get("role_name") == role:
            server.root.auth.token.revoke_accessor(accessor)
    machine.systemctl("reload", unit, check=False)  # ask now, not in five minutes
    machine.wait(unit, ActiveState="failed", Result="exit-code", ExecMainStatus="5", NRestarts="0")
    machine.wait(needs, ActiveState="inactive")
    assert not host.is_mounted("vault")
    assert machine.run("ls", "/run/credentials").stdout.count("vault") == 0, "credentials outlive the unit"


def test_ends_that_do_not_mend_themselves_are_not_tried_again(host: Host) -> None:
    """Bad configuration, a stranger's signature, a KEK that opens nothing, a credential that cannot be read: failed, once."""
    machine, keys = host.machine, host.keys
    refused = {
        host.instance("typo", trusts="[]"): "2",
        host.instance("stranger", trust=f'["{keys.stranger_public}"]'): "4",
        host.instance("denied", kek=f'"file:{keys.stranger_kek}"'): "5",
        host.instance("credential", unit="LoadCredential=kek:/nowhere/kek\n"): "243",
    }
    machine.systemctl("start", *refused, check=False)
    for unit, code in refused.items():
        shown = machine.show(unit, "ActiveState", "Result", "ExecMainStatus", "NRestarts")
        assert shown == {"ActiveState": "failed", "Result": "exit-code", "ExecMainStatus": code, "NRestarts": "0"}, machine.journal(unit)


def test_storage_that_comes_late_is_tried_again(host: Host) -> None:
    machine = host.machine
    unit = host.instance("late", sealed='"/srv/late"')
    machine.systemctl("start", unit, check=False)
    machine.wait(unit, ExecMainStatus="6")
    machine.run("ln", "-s", host.sealed, "/srv/late")
    machine.wait(unit, ActiveState="active")
    assert machine.run("sha256sum", f"{MODELS}/late/model.bin").stdout.startswith(SUM)
