"""`modelfs after-stop`: what modelfs@.service runs when its main process has ended, whatever has ended it."""

import contextlib
import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from modelfs.cli.output import note
from modelfs.control.process import is_running
from modelfs.control.socket import canonical_mountpoint, is_live, socket_path
from modelfs.errors import ConfigError
from modelfs.mount.mountinfo import top_mount

WARDEN_SECONDS = 60.0
"""How long a warden that has lost its control process may take; each of its steps has a deadline far below."""
END_SECONDS = 2.0
"""For processes to end by themselves, and again after SIGKILL: one that waits for storage that hangs does neither."""


def register(app: typer.Typer) -> None:
    """Add the command of this module."""
    app.command(hidden=True, epilog="Example: modelfs after-stop --config /etc/modelfs/llama.toml")(after_stop)


def after_stop(config: Annotated[Path, typer.Option("--config", metavar="FILE", help="The mount's configuration.")]) -> None:
    """For ExecStopPost= of modelfs@.service: wait for the warden, end what is left, take a dead mount off its mountpoint.

    systemd calls it whatever has ended the main process. If that died, its warden is evicting the page cache just now.
    """
    from modelfs.config.mount_file import read_mount_file

    group = _group("self")
    if group is None:
        raise ConfigError("after-stop is for the unit modelfs@.service: use `modelfs unmount`")
    try:
        mountpoint = read_mount_file(config).mountpoint
    except ConfigError as exc:
        note(str(exc))
        mountpoint = None
    place = canonical_mountpoint(Path(mountpoint)) if mountpoint else None
    _until(lambda: not _others(group) or (place is not None and _device(place) is None), WARDEN_SECONDS)
    _until(lambda: not _others(group), END_SECONDS)
    for pid in _others(group):
        note(f"process {pid} is left of the mount: ending it")
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _until(lambda: not _others(group), END_SECONDS)
    if place is not None and (device := _device(place)) is not None and not is_live(socket_path(place)):
        from modelfs.mount.session import detach_device

        note(f"a dead mount was left at {place}: {'detached' if detach_device(device) else 'it cannot be detached'}")


def _until(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.02)


def _device(place: str) -> str | None:
    """Of the modelfs mount on top of a mountpoint; the mount itself is not asked."""
    top = top_mount(os.fsencode(place))
    return top.device if top is not None and top.fs_type == "fuse.modelfs" else None


def _group(pid: str) -> str | None:
    """The control group of a process of modelfs@.service, in whichever hierarchy is systemd's; None for any other process."""
    with contextlib.suppress(OSError):
        groups = [line.split(":", 2)[2] for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines()]
        return next((group for group in groups if re.search(r"/modelfs@[^/]*\.service$", group)), None)
    return None


def _others(group: str) -> list[int]:
    """Running processes of a control group, but for this one."""
    pids = [int(name) for name in os.listdir("/proc") if name.isdecimal() and int(name) != os.getpid()]
    return [pid for pid in pids if _group(str(pid)) == group and is_running(pid)]
