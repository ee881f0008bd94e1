"""What may block in a child: its answer, and every way in which there is none. Real processes."""

import os
import signal
import time
from collections.abc import Callable
from typing import Any, NoReturn

import pytest

from modelfs.control import child, prover
from modelfs.control.child import in_child
from modelfs.control.keypage import KeyPage
from modelfs.control.pins import Pinned, Rows, empty_pin
from modelfs.control.process import fork_child
from modelfs.control.prover import Prover, Verdict
from modelfs.errors import KeyServiceError


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


async def test_an_answer() -> None:
    before = descriptors()
    large = {"text": "x" * 300_000, "child": True}
    assert await in_child(lambda: large, 10) == large
    assert descriptors() == before


def die() -> dict[str, Any]:
    os.kill(os.getpid(), signal.SIGKILL)
    return {}


def hang() -> dict[str, Any]:
    time.sleep(60)
    return {}


def fail() -> dict[str, Any]:
    raise ValueError


@pytest.mark.parametrize("action", [die, hang, fail])
async def test_no_answer(action: Callable[[], dict[str, Any]]) -> None:
    before, start = descriptors(), time.monotonic()
    assert await in_child(action, 0.5) is None
    assert time.monotonic() - start < 5
    assert descriptors() == before


async def test_who_inherits_the_pipe_is_not_waited_for() -> None:
    started: list[int] = []

    def leave_one() -> dict[str, Any]:
        return {"pid": fork_child(lambda: time.sleep(60) or 0)}

    start = time.monotonic()
    answer = await in_child(leave_one, 20)
    assert answer is not None
    started.append(answer["pid"])
    assert time.monotonic() - start < 5
    os.kill(started[0], signal.SIGKILL)


def no_process(*_: object) -> NoReturn:
    raise BlockingIOError(11, "Resource temporarily unavailable")


async def test_no_process_can_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    before = descriptors()
    monkeypatch.setattr(child, "fork_child", no_process)
    assert await in_child(lambda: {}, 5) is None
    assert descriptors() == before


async def test_a_proof_for_which_no_process_can_be_had_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease runs on: the key service has said nothing."""
    pinned = Pinned(None, empty_pin("table"), empty_pin("keys"))
    made = Prover((), pinned, "/", KeyPage(1), Rows())
    before = descriptors()
    monkeypatch.setattr(prover, "fork_child", no_process)
    answer = await made.prove(False, 1)
    assert (answer.verdict, answer.refused) == (Verdict.NO_ANSWER, ())
    assert "no process for a proof can be had" in answer.reason
    with pytest.raises(KeyServiceError, match="no process for a proof"):
        made.first(None, b"", 1)
    assert descriptors() == before
