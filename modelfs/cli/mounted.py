"""Commands about mounts that are there: status, lock, unlock, renew, unmount."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from modelfs.cli.config_option import Config
from modelfs.cli.options import Json, Mountpoint
from modelfs.cli.output import note, print_json, print_proof, printable
from modelfs.control.socket import NotAnsweringError, canonical_mountpoint, end_process, request, runtime_dir, socket_path
from modelfs.errors import MountError, MountLostError

ANSWER_SECONDS = 3
"""A control process that is well answers in milliseconds, whatever the store or the key service do."""
FORCED_SECONDS = 30


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(epilog="Examples: modelfs status | modelfs status /models/llama --json")(status)
    app.command(epilog="Example: modelfs lock /models/llama")(lock)
    app.command(epilog="Example: modelfs unlock /models/llama")(unlock)
    app.command(epilog="Example: modelfs renew /models/llama")(renew)
    app.command(epilog="Example: modelfs unmount /models/llama")(unmount)


def status(
    mountpoint: Annotated[Path | None, typer.Argument(metavar="[MOUNTPOINT]", parser=Path, help="One mount only.")] = None,
    json: Json = False,
) -> None:
    """Show this user's mounts, or one: model, release, state, process ids."""
    if mountpoint is not None:
        answers = [request(_find_socket(mountpoint), {"do": "status"}, ANSWER_SECONDS)]
    else:
        answers = []
        for path in sorted(runtime_dir().glob("*.sock")) if runtime_dir().is_dir() else []:
            try:
                answers.append(request(path, {"do": "status"}, ANSWER_SECONDS))
            except NotAnsweringError as exc:
                note(str(exc))
            except MountError:
                continue  # a socket that a dead mount left
    if json:
        print_json(answers[0] if mountpoint is not None else answers)
        return
    for answer in answers:
        for line in _describe(answer):
            typer.echo(printable(line))
    if not answers:
        typer.echo("no modelfs mount of this user")


_LEASE_GOES_ON = {"locked": "until the key service grants again", "paused": "until `modelfs unlock`", "revoked": "for good"}
"""What ends a lease's state, where it is not the time that it has left."""


def _describe(answer: dict[str, Any]) -> Iterator[str]:
    ago, version = answer["last_granted_s_ago"], answer["key_version"]
    ends = _LEASE_GOES_ON.get(answer["lease"], f"with {answer['lease_left_s']:.0f} s left")
    yield (
        f"{answer['mountpoint']}: {answer['model']} release {answer['release']}, {answer['state']}, "
        f"mounted {answer['uptime_s']:.0f} s ago, lease {answer['lease']} {ends}"
        + ("" if ago is None else f", last renewed {ago:.0f} s ago")
        + f", KEK {answer['kek']}"
        + ("" if version is None else f" version {version}")
        + f", control {answer['control']}, warden {answer['warden']}, workers {' '.join(map(str, answer['workers']))} "
        f"({answer['worker_deaths']} replaced)"
    )
    if answer.get("crash_loop"):  # an older daemon says nothing of it
        yield "  crash loop: workers die as fast as they are started, which is once a second now: see the log"
    if answer.get("ending"):
        yield f"  ending: {answer['ending']}"
    if answer["last_error"]:
        yield f"  last error: {answer['last_error']}"
    if answer["passed_over"]:
        yield f"  passed over: {answer['passed_over']}"
    for sentence in answer["not_confined"]:
        yield f"  not confined: {sentence}"
    if answer["audit_error"]:
        yield f"  not audited: {answer['audit_error']}"


def unmount(mountpoint: Mountpoint, config: Config = None, json: Json = False) -> None:
    """End access at once, open files and mappings included, and print the proof."""
    path = _find_socket(mountpoint)
    try:
        answer = request(path, {"do": "unmount"}, _patience(path, "unmount_s"), wait_for_end=True)
    except NotAnsweringError as exc:
        _end_silent(mountpoint, exc.pid)
    is_lost = answer.get("warden_lost")  # an older daemon says so otherwise
    try:
        print_proof(answer["proof"], json)
    except OSError:
        if not is_lost:
            raise
    if is_lost:
        raise MountLostError(
            "the warden died or did not answer while unmounting: control took the mount down, and the proof is clean; keep its log"
        )


def _patience(path: Path, what: str) -> float:
    """Seconds to wait for what takes longer the more files a model has; NotAnsweringError if the control process does not answer at all.

    Three times: when the warden dies in the middle, a child of control begins anew, and when that dies, control.
    """
    return 20 + 3 * float(request(path, {"do": "status"}, ANSWER_SECONDS).get(what, 0))


def _end_silent(mountpoint: Path, pid: int) -> NoReturn:
    """A control process that is stopped or hangs cannot be asked: it is ended, and the warden does the unmount sequence."""
    from modelfs.mount.mountinfo import top_mount

    end_process(pid, 5)
    place, deadline = os.fsencode(canonical_mountpoint(mountpoint)), time.monotonic() + FORCED_SECONDS
    while (top := top_mount(place)) is not None and top.fs_type == "fuse.modelfs" and time.monotonic() < deadline:
        time.sleep(0.05)
    if top is not None and top.fs_type == "fuse.modelfs":
        raise MountError(f"control process {pid} was ended, but the mount is still there: see its log, and end the readers")
    raise MountLostError(f"control process {pid} did not answer and was ended; the warden took the mount down: the proof is in its log")


def _find_socket(mountpoint: Path) -> Path:
    """The socket of the mount at a path: by name, or by device where a directory above has been renamed since.

    Raises:
        MountError: The mount that is there is none of this user's, or nobody is left of it.
    """
    canonical = canonical_mountpoint(mountpoint)
    path = socket_path(canonical)
    if path.exists():
        return path
    from modelfs.mount.mountinfo import top_mount

    top = top_mount(os.fsencode(canonical))
    for other in sorted(runtime_dir().glob("*.sock")) if top else []:
        with contextlib.suppress(MountError):
            if top and request(other, {"do": "status"}, ANSWER_SECONDS).get("device") == top.device:
                return other
    if top is not None and top.fs_type == "fuse.modelfs":
        raise MountError(
            f"the modelfs mount at {canonical} is another user's, or its processes have died: `modelfs unmount` is for the user who "
            "mounted it; `umount -l` detaches it, and ends it just the same"
        )
    return path


def lock(mountpoint: Mountpoint, json: Json = False) -> None:
    """Pause: readers get an error, keys and cached plaintext go, the mount stays until `modelfs unlock`."""
    path = _find_socket(mountpoint)
    _say(request(path, {"do": "lock"}, _patience(path, "unmount_s")), json)


def unlock(mountpoint: Mountpoint, json: Json = False) -> None:
    """End an operator's pause: the key service is asked again, and the mount serves if it grants."""
    _say(request(_find_socket(mountpoint), {"do": "unlock"}, 30), json)


def renew(mountpoint: Mountpoint, config: Config = None, json: Json = False) -> None:
    """Ask the key service now whether the key may still be held, instead of at the next interval."""
    _say(request(_find_socket(mountpoint), {"do": "renew"}, 30), json)


def _say(answer: dict[str, Any], json: bool) -> None:
    if json:
        print_json(answer)
    else:
        typer.echo(f"{printable(answer['mountpoint'])}: {answer['lease']}")
