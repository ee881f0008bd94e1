"""The roles in policies/ hold just the permissions of what modelfs calls, and docs/GCP.md names each."""

import ast
import json
from pathlib import Path

import modelfs
from tests.helpers import REPOSITORY

ROLES = {path.stem.removeprefix("gcp-"): json.loads(path.read_text()) for path in (REPOSITORY / "policies").glob("gcp-*.json")}
PERMISSION_OF = {"encrypt": "cloudkms.cryptoKeyVersions.useToEncrypt", "decrypt": "cloudkms.cryptoKeyVersions.useToDecrypt"}
"""Google's table of methods and permissions, as far as modelfs calls them."""


def called() -> set[str]:
    """Methods that keys/gcp.py asks the service for."""
    tree = ast.parse((Path(modelfs.__file__).parent / "keys" / "gcp.py").read_text())
    calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)]
    return {call.args[0].value for call in calls if call.func.attr == "_call" and isinstance(call.args[0], ast.Constant)}


def test_every_call_is_permitted_by_one_role_and_no_role_permits_more() -> None:
    assert {PERMISSION_OF[method] for method in called()} == {*_permissions("host"), *_permissions("publisher")}
    assert _permissions("host") == [PERMISSION_OF["decrypt"]]
    assert _permissions("publisher") == [PERMISSION_OF["encrypt"]]
    assert not {*_permissions("operator"), *_permissions("signer")} & {*PERMISSION_OF.values()}


def _permissions(role: str) -> list[str]:
    return list(ROLES[role]["includedPermissions"])


def test_roles_are_what_gcloud_takes_and_the_page_names_them() -> None:
    assert set(ROLES) == {"host", "publisher", "signer", "operator"}
    text = (REPOSITORY / "docs" / "GCP.md").read_text()
    for name, role in ROLES.items():
        assert set(role) == {"title", "description", "stage", "includedPermissions"}
        assert all(permission.startswith("cloudkms.") and "*" not in permission for permission in role["includedPermissions"])
        assert f"policies/gcp-{name}.json" in text
