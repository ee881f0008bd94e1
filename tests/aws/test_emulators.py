"""What each emulator answers wrongly. A test that fails here says that a newer release has mended something: use that one for more."""

import json
from collections.abc import Callable
from typing import Any
from urllib.request import Request, urlopen

import pytest
from botocore.exceptions import ClientError

from tests.aws.emulators import Emulator, running

CONTEXT = {"modelfs:model": "demo"}


class Bench:
    """A key, something wrapped by it, and the SDK's own client: nothing of modelfs is in between."""

    def __init__(self, emulator: Emulator) -> None:
        self.emulator = emulator
        self.kms = emulator.admin()
        self.key = emulator.key()
        self.wrapped: bytes = self.kms.encrypt(KeyId=self.key, Plaintext=b"k" * 32, EncryptionContext=CONTEXT)["CiphertextBlob"]

    def decrypt(self, key: str = "", wrapped: bytes = b"", context: dict[str, str] | None = None) -> Any:
        """The plaintext, or the code of the error."""
        try:
            answer = self.kms.decrypt(
                KeyId=key or self.key, CiphertextBlob=wrapped or self.wrapped, EncryptionContext=CONTEXT if context is None else context
            )
        except ClientError as exc:
            return exc.response["Error"]["Code"]
        return answer["Plaintext"]


@pytest.fixture(params=["moto", "ministack"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(request.getfixturevalue(request.param))


def altered(data: bytes, position: int) -> bytes:
    changed = bytearray(data)
    changed[position] ^= 1
    return bytes(changed)


def test_what_both_do_right(bench: Bench) -> None:
    assert bench.decrypt() == b"k" * 32
    assert bench.decrypt(context={"modelfs:model": "other"}) == "InvalidCiphertextException"
    assert bench.decrypt(context={}) == "InvalidCiphertextException"
    assert bench.decrypt(wrapped=b"rubbish") == "InvalidCiphertextException"


def disabled(bench: Bench) -> Any:
    bench.kms.disable_key(KeyId=bench.key.rpartition("/")[2])  # moto knows no ARN here
    return bench.decrypt()


def pending_deletion(bench: Bench) -> Any:
    bench.kms.schedule_key_deletion(KeyId=bench.key.rpartition("/")[2], PendingWindowInDays=7)
    return bench.decrypt()


def another_key(bench: Bench) -> Any:
    return bench.decrypt(key=bench.emulator.key())


def last_byte(bench: Bench) -> Any:
    return bench.decrypt(wrapped=altered(bench.wrapped, -1))


def first_byte(bench: Bench) -> Any:
    return bench.decrypt(wrapped=altered(bench.wrapped, 0))


def no_such_key(bench: Bench) -> Any:
    return bench.decrypt(key="alias/nobody")


def rewrapped(bench: Bench) -> Any:
    try:
        again = bench.kms.re_encrypt(
            CiphertextBlob=bench.wrapped,
            SourceKeyId=bench.key,
            SourceEncryptionContext=CONTEXT,
            DestinationKeyId=bench.key,
            DestinationEncryptionContext=CONTEXT,
        )
    except ClientError as exc:
        return exc.response["Error"]["Code"]
    return bench.decrypt(wrapped=again["CiphertextBlob"])


RIGHT = {
    disabled: "DisabledException",
    pending_deletion: "KMSInvalidStateException",
    another_key: "IncorrectKeyException",
    last_byte: "InvalidCiphertextException",
    first_byte: "InvalidCiphertextException",
    no_such_key: "NotFoundException",
    rewrapped: b"k" * 32,
}
"""As AWS KMS answers."""

WRONG: dict[str, dict[Callable[[Bench], Any], Callable[[Any], bool]]] = {
    "moto": {
        disabled: lambda found: found == b"k" * 32,
        pending_deletion: lambda found: found == b"k" * 32,
        another_key: lambda found: found == "AccessDeniedException",
        first_byte: lambda found: found == "AccessDeniedException",
    },
    "ministack": {
        another_key: lambda found: isinstance(found, bytes) and found != b"k" * 32,
        last_byte: lambda found: isinstance(found, bytes) and found != b"k" * 32,
        first_byte: lambda found: found == b"k" * 32,
        no_such_key: lambda found: found == b"k" * 32,
        rewrapped: lambda found: found == "InvalidAction",
    },
}
"""What each answers instead."""


@pytest.mark.parametrize("ask", RIGHT, ids=lambda ask: ask.__name__)
def test_right_or_wrong_as_known(bench: Bench, ask: Callable[[Bench], Any]) -> None:
    found = ask(bench)
    wrong = WRONG[bench.emulator.name].get(ask)
    if wrong is None:
        assert found == RIGHT[ask]
    else:
        assert found != RIGHT[ask], "it is right now"
        assert wrong(found), f"it is wrong in another way: {found!r}"


def test_between_them_they_do_everything_but_one_thing() -> None:
    """Which of its own keys wrapped something, neither says as the service does: the impostor's part."""
    assert WRONG["moto"].keys() & WRONG["ministack"].keys() == {another_key, first_byte}


def test_moto_refuses_in_the_words_of_another_protocol(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Its IAM knows actions, and neither resources nor conditions; its refusal is XML, which is no answer of KMS."""
    with running("moto", tmp_path_factory.mktemp("iam")) as emulator:
        key, iam = emulator.key(), emulator.admin("iam")
        iam.create_user(UserName="host")
        made = iam.create_access_key(UserName="host")["AccessKey"]
        statement = {"Effect": "Allow", "Action": "kms:Decrypt", "Resource": key}
        document = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        iam.put_user_policy(UserName="host", PolicyName="host", PolicyDocument=document)
        order = Request(f"{emulator.address}/moto-api/reset-auth", b"0", {"Content-Type": "text/plain"}, method="POST")
        urlopen(order, timeout=20).close()
        with pytest.raises(ClientError) as caught:
            emulator.admin("kms", made["AccessKeyId"], made["SecretAccessKey"]).decrypt(CiphertextBlob=b"x", KeyId=key)
        assert "<Code>AccessDenied</Code>" in caught.value.response["Error"]["Message"], "it looks at resources, or speaks JSON"
