"""One time limit for what has limits for its steps only: the clients of key services."""

import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


def within(timeout_s: float, action: Callable[[], T]) -> T:
    """What an action gives or raises; TimeoutError if it has not ended by then, in which case it is left behind.

    A thread, because neither name resolution nor an answer that trickles in can be bounded otherwise; it ends with the process.
    """
    results: list[T] = []
    errors: list[Exception] = []

    def work() -> None:
        try:
            results.append(action())
        except Exception as exc:
            errors.append(exc)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(max(0.0, timeout_s))
    if results:
        return results[0]
    if errors:
        raise errors[0]
    raise TimeoutError
