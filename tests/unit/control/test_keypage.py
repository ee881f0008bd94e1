"""The key page is shared, locked in memory and wiped for everybody at once."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from modelfs.control import keypage
from modelfs.control.keypage import KeyPage


@pytest.fixture(params=["memfd_secret", "anonymous"])
def page(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> KeyPage:
    if request.param == "anonymous":
        monkeypatch.setattr(keypage, "_secret_page", lambda: None)
    return KeyPage()


def in_child(check: Callable[[], bool]) -> bool:
    pid = os.fork()
    if pid == 0:
        os._exit(0 if check() else 1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_a_child_writes_and_the_parent_wipes(page: KeyPage) -> None:
    assert in_child(lambda: page.write(b"k" * 32) is None)
    assert page.read() == b"k" * 32
    page.wipe()
    assert in_child(lambda: page.read() == bytes(32))


def test_a_session_goes_from_child_to_child_and_not_to_who_has_forgotten_it(page: KeyPage) -> None:
    assert in_child(lambda: page.write_session(b"token") is None)
    assert in_child(lambda: page.read_session() == b"token")

    def forgets() -> bool:
        page.forget_session()
        with pytest.raises(ValueError, match="closed"):
            page.read_session()
        page.write(b"k" * 32)
        return page.read() == b"k" * 32

    assert in_child(forgets)
    page.wipe()
    assert in_child(lambda: page.read_session() == b"token"), "a lock keeps the login, to ask again"
    page.wipe_all()
    assert page.read_session() is None


def test_only_a_whole_key_fits(page: KeyPage) -> None:
    with pytest.raises(ValueError):
        page.write(b"short")


def test_the_anonymous_page_is_locked_and_not_dumped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keypage, "_secret_page", lambda: None)
    before = Path("/proc/self/smaps").read_text().count(" lo ")
    page = KeyPage()
    flags = [
        line
        for line in Path("/proc/self/smaps").read_text().splitlines()
        if line.startswith("VmFlags") and " lo " in line and " dd " in line
    ]
    assert len(flags) >= 1
    assert Path("/proc/self/smaps").read_text().count(" lo ") > before
    assert page.read() == bytes(32)
