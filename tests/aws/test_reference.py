"""Which names of keys are taken, and which entries a host tries for them."""

import pytest

from modelfs.errors import ConfigError
from modelfs.format.keysfile import recipient
from modelfs.keys import open_kek
from modelfs.keys.aws_reference import parse_key_arn

KEY = "1234abcd-12ab-34cd-56ef-1234567890ab"
MULTI = "mrk-" + "0a" * 16
BASE = "arn:aws:kms:eu-central-1:111122223333"
ELSEWHERE = "arn:aws:kms:us-east-1:111122223333"
STRANGER = "arn:aws:kms:eu-central-1:999999999999"

MATCHES = [
    (f"{BASE}:key/{KEY}", f"{BASE}:key/{KEY}", True),
    (f"{BASE}:key/{KEY}", f"{BASE}:key/{KEY.replace('1', '2')}", False),
    (f"{BASE}:key/{KEY}", f"{ELSEWHERE}:key/{KEY}", False),
    (f"{BASE}:key/{KEY}", f"{STRANGER}:key/{KEY}", False),
    (f"{BASE}:key/{KEY}", f"{BASE.replace('aws', 'aws-cn')}:key/{KEY}", False),
    (f"{BASE}:key/{MULTI}", f"{ELSEWHERE}:key/{MULTI}", True),
    (f"{BASE}:key/{MULTI}", f"{STRANGER}:key/{MULTI}", False),
    (f"{BASE}:alias/modelfs", f"{BASE}:key/{KEY}", True),
    (f"{BASE}:alias/modelfs", f"{ELSEWHERE}:key/{KEY}", False),
    (f"{BASE}:alias/modelfs", f"{ELSEWHERE}:key/{MULTI}", True),
    (f"{BASE}:alias/modelfs", f"{STRANGER}:key/{KEY}", False),
    ("alias/modelfs", f"{STRANGER}:key/{KEY}", True),
    (KEY, f"{STRANGER}:key/{KEY}", True),
    (KEY, f"{BASE}:key/{MULTI}", False),
    (MULTI, f"{ELSEWHERE}:key/{MULTI}", True),
]


@pytest.mark.parametrize(("ours", "theirs", "expected"), MATCHES)
def test_which_entries_are_tried(ours: str, theirs: str, expected: bool) -> None:
    provider = open_kek(f"awskms:{ours}")
    assert provider.describe() == f"awskms:{ours}"
    assert provider.is_recipient(recipient("awskms", theirs, "", b"x")) == expected
    assert not provider.is_recipient(recipient("vault", theirs, "", b"x"))


BAD = ["x", "alias/", "alias/a b", "key/x", f"{BASE}:key/", f"{BASE}:key/{KEY}\n", f"{BASE}:secret/x", "arn:aws:s3:::bucket"]
BAD += [f" {KEY}", f"{KEY}/x", "alias/é", "mrk-1"]


@pytest.mark.parametrize("reference", BAD)
def test_what_names_no_key(reference: str) -> None:
    with pytest.raises(ConfigError, match="does not name a key: use its ARN"):
        open_kek(f"awskms:{reference}")


@pytest.mark.parametrize(
    "text", [f"{BASE}:alias/modelfs", KEY, "", "*", f"{BASE}:key/*", f"{BASE}:key/{KEY}\n", f"{BASE}:key/../{KEY}", 7, None]
)
def test_an_entry_names_a_key_by_its_arn_and_nothing_else(text: object) -> None:
    assert parse_key_arn(text) is None
