"""Which KEK opens a release, and whose no counts: every row of docs/DESIGN.md's table, with providers that say what they are told."""

from dataclasses import dataclass, field

import pytest

from modelfs.errors import ConfigError, KeyAccessError, KeyDeniedError, KeyServiceError
from modelfs.format.keysfile import Recipient, keys_file, recipient
from modelfs.keys import MAX_KEKS, list_keks, open_keks
from modelfs.keys.file import generate_kek
from modelfs.keys.interface import Attempt, Grant, KeyProvider, unwrap_dek
from modelfs.keys.several import MAX_WAIT_S, Round, prove_in_order, unwrap_by_any
from tests.helpers import REPOSITORY
from tests.vault.server import DEK, manifest

GRANTED, DENIED, REFUSED, SILENT, WRONG, MISSING, ABSENT = "granted", "denied", "refused", "silent", "wrong bytes", "missing", "not wrapped"


@dataclass
class Clock:
    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Scripted(KeyProvider):
    """Says what it is told to."""

    name: str
    says: str
    clock: Clock
    takes_s: float = 0.0
    """How long it would take, were it not for its deadline."""
    asked: list[tuple[float, bool, bytes | None]] = field(default_factory=list)
    """Deadline, whether it has opened before, and the session that it was given."""

    scheme = "scripted"

    def open(self) -> KeyProvider:
        if self.says == MISSING:
            raise KeyAccessError("cannot read the KEK")
        return self

    def describe(self) -> str:
        return self.name

    def is_recipient(self, recipient: Recipient) -> bool:
        return recipient.key_ref == self.name

    def _wrap_key(self, dek: bytes, context: bytes) -> Recipient:
        return recipient(self.scheme, self.name, "", dek)

    def _unwrap_key(self, recipient: Recipient, context: bytes) -> bytes | None:
        if self.says == DENIED:
            raise KeyDeniedError("denies")
        if self.says == SILENT:
            raise KeyServiceError("no answer")
        return DEK if self.says == GRANTED else None

    def _prove(self, attempt: Attempt) -> Grant:
        timeout_s, opened_before = attempt.timeout_s, attempt.opened_before
        self.asked.append((timeout_s, opened_before, attempt.session))
        self.clock.now += min(self.takes_s, timeout_s)
        attempt.keep(f"login at {self.name}".encode())
        if self.takes_s > timeout_s:
            raise KeyServiceError("no answer in time")
        match self.says:
            case "granted":
                return Grant(DEK, f"login at {self.name}".encode(), None, None)
            case "denied":
                raise KeyDeniedError("denies")
            case "refused":
                raise (KeyDeniedError if opened_before else KeyAccessError)("refuses the entry")
            case "wrong bytes":
                raise KeyServiceError("ALARM")
            case "not wrapped":
                unwrap_dek(self, attempt.keys, attempt.release)
        raise KeyServiceError("no answer")


class Sessions(dict[int, bytes]):
    def read_session(self, position: int) -> bytes | None:
        return self.get(position)

    def write_session(self, session: bytes, position: int) -> None:
        self[position] = session


def ask(*says: str, opened: set[int] | None, takes: dict[int, float] | None = None, timeout_s: float = 1.0) -> tuple[Round, list[Scripted]]:
    clock = Clock()
    keks = [Scripted(f"kek-{n}", word, clock, (takes or {}).get(n, 0.0)) for n, word in enumerate(says)]
    entries = [recipient("scripted", kek.name, "", kek.name.encode()) for kek in keks if kek.says != ABSENT]
    keys = keys_file(entries or [recipient("file", "stranger", "", b"x")])
    sessions = Sessions({n: f"login at {kek.name}".encode() for n, kek in enumerate(keks)})
    known = None if opened is None else frozenset(opened)
    made = prove_in_order(keks, range(len(keks)), keys, manifest(), sessions, known, timeout_s, clock)
    for kek in keks:
        assert all(session == f"login at {kek.name}".encode() for _, _, session in kek.asked), "a login of another service"
    return made, keks


COUNTS, PASSES, GRANTS = "counts", "is passed over", "grants"
ROWS = {
    # what the first of two says: at the first proof, later if it has opened the mount, later if it has not
    GRANTED: (GRANTS, GRANTS, GRANTS),
    DENIED: (COUNTS, COUNTS, PASSES),
    REFUSED: (COUNTS, COUNTS, PASSES),
    SILENT: (PASSES, PASSES, PASSES),
    WRONG: (PASSES, PASSES, PASSES),
    MISSING: (PASSES, PASSES, PASSES),
    ABSENT: (PASSES, COUNTS, PASSES),
}
WHEN: list[set[int] | None] = [None, {0}, {1}]


@pytest.mark.parametrize("when", range(3), ids=["first proof", "it has opened the mount", "only the other has"])
@pytest.mark.parametrize("says", ROWS)
def test_what_the_first_says_and_the_second_grants(says: str, when: int) -> None:
    made, (first, second) = ask(says, GRANTED, opened=WHEN[when])
    match ROWS[says][when]:
        case "grants":
            assert (made.position, made.error, second.asked) == (0, None, [])
        case "counts":
            assert (made.grant, made.position, made.refused, second.asked) == (None, 0, (0,), [])
            assert isinstance(made.error, KeyDeniedError if says != REFUSED or when else KeyAccessError)
            assert "kek-0" in str(made.error)
        case _:
            assert (made.position, made.error) == (1, None)
            assert len(made.passed) == 1
            assert "kek-0" in made.passed[0]
            assert made.refused == ((0,) if says in (DENIED, REFUSED) else ())
    if says == ABSENT and when != 1:
        assert first.asked == [], "a service was asked about a model that is not wrapped for it"


def test_the_table_of_the_design_is_this_one() -> None:
    text = (REPOSITORY / "docs" / "DESIGN.md").read_text()
    start = text.index("| what a KEK says | first proof |")
    rows = [line.strip("| ").split(" | ") for line in text[start : text.index("\n\n", start)].splitlines()[2:]]
    words = {GRANTS: "granted", COUNTS: "**counts**", PASSES: "next"}
    assert [row[1:] for row in rows] == [
        [words[cell] for cell in ROWS[says]] for says in (GRANTED, DENIED, REFUSED, SILENT, WRONG, MISSING, ABSENT)
    ]


@pytest.mark.parametrize(
    ("says", "opened", "kind"),
    [
        ((SILENT, SILENT), None, KeyServiceError),
        ((SILENT, ABSENT), None, KeyServiceError),
        ((ABSENT, ABSENT), None, KeyDeniedError),
        ((MISSING, ABSENT), None, KeyServiceError),
        ((SILENT, DENIED), None, KeyDeniedError),
        ((SILENT, DENIED), {0}, KeyServiceError),
        ((SILENT, DENIED), {0, 1}, KeyDeniedError),
        ((DENIED, DENIED), {2}, KeyServiceError),
        ((SILENT,), None, KeyServiceError),
        ((MISSING,), None, KeyAccessError),
        ((ABSENT,), None, KeyDeniedError),
        ((REFUSED,), None, KeyAccessError),
    ],
)
def test_nobody_grants(says: tuple[str, ...], opened: set[int] | None, kind: type[KeyAccessError]) -> None:
    made, keks = ask(*says, opened=opened)
    assert made.grant is None
    assert type(made.error) is kind
    if len(keks) > 1 and made.position is None:
        assert all(kek.name in str(made.error) for kek in keks), "who was passed over, and why, is said"


def test_a_silent_one_does_not_eat_the_others_time() -> None:
    made, keks = ask(SILENT, SILENT, GRANTED, opened={2}, takes={0: 60, 1: 60, 2: 0.1}, timeout_s=1.0)
    assert made.position == 2
    assert [round(kek.asked[0][0], 6) for kek in keks] == [pytest.approx(1 / 3), pytest.approx(1 / 3), pytest.approx(1 / 3)]
    assert made.sent_at_s == pytest.approx(100 + 2 / 3), "the lease runs from when the one that granted was asked"


def test_who_answers_at_once_leaves_its_time_to_the_next() -> None:
    _, keks = ask(SILENT, GRANTED, opened={1}, timeout_s=1.0)
    assert keks[1].asked[0][0] == pytest.approx(1.0)
    _, keks = ask(SILENT, GRANTED, opened=None, takes={0: 100}, timeout_s=60.0)
    assert keks[0].asked[0][0] == MAX_WAIT_S
    _, keks = ask(SILENT, opened=None, takes={0: 100}, timeout_s=60.0)
    assert keks[0].asked[0][0] == pytest.approx(60.0), "alone, it may take all of it"


def test_each_is_told_whether_it_has_opened_this_mount() -> None:
    _, keks = ask(SILENT, GRANTED, opened={0})
    assert [kek.asked[0][1] for kek in keks] == [True, False]


def test_an_empty_list_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no KEK"):
        ask(opened=None)


def test_commands_take_the_first_that_opens() -> None:
    clock = Clock()
    keks = [Scripted(f"kek-{n}", word, clock) for n, word in enumerate([DENIED, SILENT, GRANTED])]
    keys = keys_file([recipient("scripted", kek.name, "", kek.name.encode()) for kek in keks])
    assert unwrap_by_any(keks, keys, manifest()) == (DEK, keks[2])
    with pytest.raises(KeyServiceError, match="no KEK opens the model: denies; no answer"):
        unwrap_by_any(keks[:2], keys, manifest())
    with pytest.raises(KeyDeniedError, match=r"^denies$"):
        unwrap_by_any(keks[:1], keys, manifest())


def test_lists_of_keks(tmp_path) -> None:
    with pytest.raises(ConfigError, match="no KEK"):
        list_keks([])
    with pytest.raises(ConfigError, match="named twice"):
        list_keks([("file:/a", None), ("file:/b", None), ("file:/a", None)])
    with pytest.raises(ConfigError, match="8"):
        list_keks([(f"file:/{n}", None) for n in range(MAX_KEKS + 1)])
    generate_kek(tmp_path / "a")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    with pytest.raises(ConfigError, match="named twice"):
        open_keks([f"file:{tmp_path}/a", f"file:{tmp_path}/b"])
    with pytest.raises(ConfigError, match="64"):
        open_keks(["file:/a"] * 65)
    with pytest.raises(ConfigError, match="no KEK"):
        open_keks([])
