"""The shipped policies: what the code asks of KMS is allowed, and nothing else is. Judged by a small reading of IAM's rules."""

import fnmatch
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from modelfs.format.keysfile import keys_file, recipient, wrapping_context
from tests.aws.emulators import credentials_file, environment, provider, use
from tests.aws.impostor import KEY_ARN as KEY
from tests.aws.impostor import Impostor
from tests.helpers import REPOSITORY
from tests.vault.server import DEK, KEY_ID, manifest

POLICIES = REPOSITORY / "policies"
FILES = sorted(POLICIES.glob("aws-*.json"))
ACTIONS = {"Encrypt": ["kms:Encrypt"], "Decrypt": ["kms:Decrypt"], "ReEncrypt": ["kms:ReEncryptFrom", "kms:ReEncryptTo"]}
"""Operation -> what it takes."""
ASKED = ["kms:Encrypt", "kms:Decrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo", "kms:GenerateDataKey", "kms:DescribeKey", "kms:CreateGrant"]
ASKED += ["kms:PutKeyPolicy", "kms:DisableKey", "kms:ScheduleKeyDeletion", "kms:Sign", "kms:ListKeys", "kms:ReplicateKey"]
ADMINISTER = "Administer"


def many(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def read(path: Path) -> list[dict[str, Any]]:
    policy = json.loads(path.read_text())
    assert policy.keys() == {"Version", "Statement"}
    assert policy["Version"] == "2012-10-17"
    statements: list[dict[str, Any]] = policy["Statement"]
    assert statements
    assert len({statement["Sid"] for statement in statements}) == len(statements)
    return statements


def holds(operator: str, key: str, wanted: list[str], context: Mapping[str, str]) -> bool:
    """One line of a condition."""
    if key == "kms:EncryptionContextKeys":
        assert operator == "ForAllValues:StringEquals"
        return set(context) <= set(wanted)
    prefix = "kms:EncryptionContext:"
    assert key.startswith(prefix)
    value = context.get(key.removeprefix(prefix))
    if operator == "Null":
        return (value is None) == (wanted == ["true"])
    assert operator in ("StringEquals", "StringLike"), operator
    return value is not None and any(value == each if operator == "StringEquals" else fnmatch.fnmatchcase(value, each) for each in wanted)


def allows(statements: list[dict[str, Any]], action: str, key: str, context: Mapping[str, str], role: str = "") -> bool:
    for statement in statements:
        assert statement.keys() <= {"Sid", "Effect", "Principal", "Action", "Resource", "Condition"}
        assert statement["Effect"] == "Allow"
        if role and statement.get("Principal", {}).get("AWS") != f"arn:aws:iam::111122223333:role/{role}":
            continue
        if not any(fnmatch.fnmatchcase(action, each) for each in many(statement["Action"])):
            continue
        if not any(fnmatch.fnmatchcase(key, each) for each in many(statement["Resource"])):
            continue
        conditions = [
            (operator, name, many(value)) for operator, lines in statement.get("Condition", {}).items() for name, value in lines.items()
        ]
        if all(holds(operator, name, wanted, context) for operator, name, wanted in conditions):
            return True
    return False


@pytest.fixture
def impostor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Impostor]:
    made = Impostor(None, DEK)
    use(monkeypatch, environment(made.address, credentials_file(tmp_path / "credentials")))
    yield made
    made.close()


@pytest.fixture
def asked(impostor: Impostor) -> dict[str, list[tuple[str, dict[str, str]]]]:
    """Who -> actions and encryption contexts, as the code sends them for a release of `llama`."""
    release = manifest(model="llama")
    entry = recipient("awskms", KEY, "", b"wrapped")
    context = wrapping_context("llama", KEY_ID)

    def since(start: int) -> list[tuple[str, dict[str, str]]]:
        found = []
        for request in impostor.requests[start:]:
            fields = json.loads(request.body)
            contexts = [value for name, value in fields.items() if name.endswith("EncryptionContext")]
            assert contexts
            found += [(action, each) for action in ACTIONS[impostor.what_of(request)] for each in contexts]
        return found

    provider(KEY).prove(keys_file([entry]), release, None, True, 20)
    host = since(0)
    start = len(impostor.requests)
    provider(KEY).wrap_key(DEK, context)
    provider(KEY)._rewrap_key(entry, context)
    publisher = since(start)
    start = len(impostor.requests)
    provider(KEY).unwrap_key(entry, context)
    return {"aws-host": host, "aws-publisher": publisher, "aws-publisher-reuse": since(start)}


def test_there_are_policies() -> None:
    assert {path.stem for path in FILES} == {"aws-host", "aws-key", "aws-publisher", "aws-publisher-reuse", "aws-signer"}


WHO = ["aws-host", "aws-publisher", "aws-publisher-reuse"]


@pytest.mark.parametrize("who", WHO)
def test_what_the_code_asks_is_allowed_and_nothing_else(asked: dict[str, list[tuple[str, dict[str, str]]]], who: str) -> None:
    statements = read(POLICIES / f"{who}.json")
    needed = asked[who]
    assert needed
    for action, context in needed:
        assert allows(statements, action, KEY, context)
        for changed in (
            {**context, "modelfs:format": "modelfs/2"},
            {**context, "other": "pair"},
            {},
            {name: value for name, value in context.items() if name != "modelfs:key-id"},
            {name: value for name, value in context.items() if name != "modelfs:model"},
        ):
            assert not allows(statements, action, KEY, changed), changed
        assert not allows(statements, action, KEY.replace("1234abcd", "ffffffff"), context)
        assert not allows(statements, action, KEY.replace("111122223333", "999999999999"), context)
    actions = {action for action, _context in needed}
    context = needed[0][1]
    assert {action for action in ASKED if allows(statements, action, KEY, context)} == actions
    named = {action for statement in statements for action in many(statement["Action"])}
    assert named == actions, "a policy names an action that is never asked for, or a pattern"


def test_a_signer_signs_with_its_own_key_and_does_nothing_else() -> None:
    statements = read(POLICIES / "aws-signer.json")
    signing = KEY.replace("1234abcd-12ab", "5678abcd-12ab")
    asked = [*ASKED, "kms:GetPublicKey"]
    assert {action for action in asked if allows(statements, action, signing, {})} == {"kms:Sign", "kms:GetPublicKey"}
    assert not any(allows(statements, action, KEY, {}) for action in asked)


def test_a_host_unwraps_its_own_model_alone(asked: dict[str, list[tuple[str, dict[str, str]]]]) -> None:
    statements = read(POLICIES / "aws-host.json")
    [(action, context)] = asked["aws-host"]
    assert not allows(statements, action, KEY, {**context, "modelfs:model": "llama-2"})


def test_the_key_policy_gives_each_role_the_same(asked: dict[str, list[tuple[str, dict[str, str]]]]) -> None:
    statements = read(POLICIES / "aws-key.json")
    context = asked["aws-host"][0][1]

    def allowed(role: str) -> set[str]:
        return {action for action in ASKED if allows(statements, action, KEY, context, role)}

    assert allowed("modelfs-host") == {"kms:Decrypt"}
    for who in ("publisher", "publisher-reuse"):
        assert allowed(f"modelfs-{who}") == {action for action, _context in asked[f"aws-{who}"]}
    assert allowed("modelfs-operator") == {"kms:DescribeKey", "kms:DisableKey", "kms:ScheduleKeyDeletion"}
    assert allowed("modelfs-stranger") == set()
    for role in ("modelfs-host", "modelfs-publisher", "modelfs-publisher-reuse"):
        assert not any(allows(statements, action, KEY, {}, role) for action in ASKED)
    [administer] = [statement for statement in statements if statement["Sid"] == ADMINISTER]
    for action in ("kms:Decrypt", "kms:Encrypt", "kms:ReEncryptFrom", "kms:ReEncryptTo", "kms:GenerateDataKey"):
        assert not any(fnmatch.fnmatchcase(action, each) for each in administer["Action"]), "who administers the key may use it"
