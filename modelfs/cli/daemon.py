"""A mount's control process in the background: its session, its log, and how the command learns whether it is ready."""

import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import modelfs.errors
from modelfs.cli.output import printable
from modelfs.control.process import close_others, die_with_parent, kill_child, outlive_parent, wait_child
from modelfs.errors import ConfigError, ModelfsError, MountError

MAX_REPORT_SIZE = 65536
END_SECONDS = 5.0
"""For a daemon whose command was interrupted."""


def log_to(path: Path | None, level: int, redirect: bool) -> None:
    """Send log lines of a level to `path` (None: stderr); `redirect` sends all of descriptor 2 there, for a daemon that has no other."""
    stream = sys.stderr
    if path is not None:
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as exc:
            raise ConfigError(f"cannot write the log {path}: {os.strerror(exc.errno or 0)}; name another with --log") from exc
        if redirect:
            os.dup2(fd, 2)
            os.close(fd)
        else:
            stream = os.fdopen(fd, "a")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s modelfs[%(process)d] %(levelname)s %(message)s"))
    handler.addFilter(_escape)
    logging.basicConfig(level=level, handlers=[handler])


def _escape(record: logging.LogRecord) -> bool:
    """One record is one line, whatever a sealed model calls its files."""
    record.msg, record.args = printable(record.getMessage()), None
    return True


def daemonise(
    run: Callable[[Callable[[dict[str, Any]], None]], object], announce: Callable[[dict[str, Any]], None], log: Path, level: int
) -> None:
    """Run in a child of its own session; return when it is ready, raise its error when it is not."""
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        # Until it is ready the daemon ends with the command that waits for it: an interrupted mount never comes to life later.
        die_with_parent(parent)
        close_others({writing})
        os._exit(_daemon(run, writing, log, level))
    os.close(writing)
    try:
        _wait(reading, announce, log)
    except SystemExit:  # interrupted: what has just come to life unmounts in order
        kill_child(pid, signal.SIGTERM)
        wait_child(pid, END_SECONDS)
        raise
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is mounted, and that has been said


def _wait(reading: int, announce: Callable[[dict[str, Any]], None], log: Path) -> None:
    report = b""
    while part := os.read(reading, MAX_REPORT_SIZE):
        report += part
    try:
        answer = json.loads(report)
    except ValueError:
        raise MountError(f"the mount's control process died while starting: see {log}") from None
    if "ready" in answer:
        announce(answer["ready"])
        return
    kind = getattr(modelfs.errors, str(answer.get("error")), MountError)
    raise kind(answer.get("message"))


def _daemon(run: Callable[[Callable[[dict[str, Any]], None]], object], writing: int, log: Path, level: int) -> int:
    reported = False

    def report(answer: dict[str, Any]) -> None:
        nonlocal reported
        reported = True
        outlive_parent()
        with contextlib.suppress(OSError):
            os.write(writing, json.dumps(answer).encode()[:MAX_REPORT_SIZE])
        os.close(writing)

    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        log_to(log, level, redirect=True)
        os.chdir("/")
        run(lambda facts: report({"ready": facts}))
    except ModelfsError as exc:
        if not reported:
            report({"error": type(exc).__name__, "message": str(exc)})
        if logging.root.handlers:  # else there is no log, which is what the command says just now
            logging.getLogger(__name__).error("%s", exc)
        return exc.exit_code
    except BaseException:
        logging.getLogger(__name__).exception("a bug ended the mount")
        return 1
    return 0
