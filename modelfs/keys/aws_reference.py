"""How a KMS key is named (docs/FORMAT.md section 5, scheme `awskms`): by its ARN, its alias's ARN, its alias or its id. Asks nobody."""

import re
from dataclasses import dataclass

from modelfs.errors import ConfigError

_ARN = re.compile(r"arn:(aws[a-z0-9-]{0,40}):kms:([a-z0-9-]{1,40}):([0-9]{12}):(key/[A-Za-z0-9-]{1,128}|alias/[A-Za-z0-9/_-]{1,250})")
_SHORT = re.compile(r"alias/[A-Za-z0-9/_-]{1,250}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}|mrk-[0-9a-f]{32}")
_MULTI_REGION = "mrk-"


@dataclass(frozen=True)
class KeyReference:
    """A key's or an alias's name, with what it says of where it is."""

    text: str
    """As the service takes it."""
    name: str
    """A key's id, or `alias/NAME`."""
    partition: str | None = None
    region: str | None = None
    account: str | None = None

    @property
    def is_alias(self) -> bool:
        """Whether it may be pointed at another key."""
        return self.name.startswith("alias/")

    def may_be(self, key: "KeyReference") -> bool:
        """Whether this may name `key`, a key by its ARN, as far as the two texts say. An alias may name any key of its account and region.

        A multi-region key is one key wherever its replicas are: the region does not count.
        """
        if not self.is_alias and self.name != key.name:
            return False
        pairs = [(self.partition, key.partition), (self.account, key.account)]
        if not key.name.startswith(_MULTI_REGION):
            pairs.append((self.region, key.region))
        return all(ours is None or ours == theirs for ours, theirs in pairs)


def parse_reference(text: str) -> KeyReference:
    """What follows `awskms:`.

    Raises:
        ConfigError: It names no key.
    """
    if found := _ARN.fullmatch(text):
        return KeyReference(text, found[4].removeprefix("key/"), found[1], found[2], found[3])
    if _SHORT.fullmatch(text):
        return KeyReference(text, text)
    raise ConfigError(
        f"awskms:{text} does not name a key: use its ARN, the ARN of its alias, alias/NAME or its id, "
        "for example awskms:arn:aws:kms:eu-central-1:111122223333:alias/modelfs"
    )


def parse_key_arn(text: object) -> KeyReference | None:
    """The ARN of a key, as the service answers it and entries hold it; None for anything else."""
    found = _ARN.fullmatch(text) if isinstance(text, str) else None
    if found is None or found[4].startswith("alias/"):
        return None
    return KeyReference(found[0], found[4].removeprefix("key/"), found[1], found[2], found[3])
