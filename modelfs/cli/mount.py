"""Commands about mounts: mount, status, unmount."""

import contextlib
import json as json_module
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

import modelfs.errors
from modelfs.cli import vault_options
from modelfs.cli.config_option import Config, file_of
from modelfs.cli.output import note, print_json, printable
from modelfs.cli.values import (
    check_id,
    check_release,
    default_state_dir,
    parse_lease,
    parse_log_level,
    parse_model,
    parse_octal,
    parse_workers,
)
from modelfs.control.notify import Notifier
from modelfs.control.process import close_others, die_with_parent, outlive_parent
from modelfs.control.socket import NotAnsweringError, canonical_mountpoint, end_process, request, runtime_dir, socket_path
from modelfs.crypto.signatures import load_trusted_keys
from modelfs.errors import ConfigError, KeyDeniedError, KeyServiceError, ModelfsError, MountError, MountLostError

Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]
# parser=Path: typer's own way with a path is to stat it, which asks the mount; its store may hang.
Mountpoint = Annotated[Path, typer.Argument(metavar="MOUNTPOINT", parser=Path, help="An empty directory, or where a model is mounted.")]

MAX_REPORT_SIZE = 65536
ANSWER_SECONDS = 3
"""A control process that is well answers in milliseconds, whatever the store or the key service do."""
FORCED_SECONDS = 30
WAIT_SECONDS = 3.0
"""Between two attempts of `mount --wait`."""


def register(app: typer.Typer) -> None:
    """Add the commands of this module."""
    app.command(
        epilog="Example: modelfs mount /srv/sealed/llama /models/llama --model llama --kek file:/etc/modelfs/kek --trust release.pem.pub"
    )(mount)
    app.command(epilog="Examples: modelfs status | modelfs status /models/llama --json")(status)
    app.command(epilog="Example: modelfs lock /models/llama")(lock)
    app.command(epilog="Example: modelfs unlock /models/llama")(unlock)
    app.command(epilog="Example: modelfs renew /models/llama")(renew)
    app.command(epilog="Example: modelfs unmount /models/llama")(unmount)


def mount(
    context: typer.Context,
    sealed: Annotated[Path, typer.Argument(metavar="SEALED", help="Directory of a sealed model.")],
    mountpoint: Mountpoint,
    model: Annotated[str, typer.Option("--model", help="Name of the model that is expected; any other is refused.")],
    kek: Annotated[str, typer.Option("--kek", metavar="URI", help="KEK of this host, for example file:PATH.")],
    trust: Annotated[list[Path], typer.Option("--trust", metavar="PUB", help="A publisher's public key; may be repeated.")] = [],  # noqa: B006
    threshold: Annotated[int, typer.Option("--threshold", help="How many distinct trusted keys must have signed.")] = 1,
    minimum_release: Annotated[int, typer.Option("--minimum-release", help="Refuse releases below this one.")] = 1,
    workers: Annotated[str, typer.Option("--workers", metavar="N|auto", help="Worker processes; auto is one for each core.")] = "auto",
    allow_other: Annotated[bool, typer.Option("--allow-other", help="Let other users in, as owner and mode allow.")] = False,
    uid: Annotated[int | None, typer.Option("--uid", help="Owner of everything shown. [default: who mounts]")] = None,
    gid: Annotated[int | None, typer.Option("--gid", help="Group of everything shown. [default: who mounts]")] = None,
    mode: Annotated[str, typer.Option("--mode", metavar="OCTAL", help="Mode of files, for example 0440. [default: as sealed]")] = "",
    foreground: Annotated[bool, typer.Option("--foreground", help="Stay in the foreground; Ctrl-C unmounts.")] = False,
    wait: Annotated[bool, typer.Option("--wait", help="Ask a key service that does not answer again, until it does.")] = False,
    state_dir: Annotated[Path | None, typer.Option("--state-dir", help="Where the host remembers releases.")] = None,
    log: Annotated[Path | None, typer.Option("--log", help="Log file. [default: stderr, or STATE_DIR/MODEL.log as a daemon]")] = None,
    log_level: Annotated[str, typer.Option("--log-level", metavar="LEVEL", help="debug, info, warning or error.")] = "info",
    audit: Annotated[Path | None, typer.Option("--audit", metavar="FILE", help="Append every event to FILE (JSON lines).")] = None,
    audit_required: Annotated[bool, typer.Option("--audit-required", help="Do not serve while --audit cannot be written.")] = False,
    renew_every: Annotated[float, typer.Option("--renew-every", help="Seconds between proofs that the key may still be held.")] = 30,
    ttl: Annotated[float, typer.Option("--ttl", help="Seconds that a proof counts: how long an outage may last.")] = 300,
    proof_timeout: Annotated[float, typer.Option("--proof-timeout", help="Seconds that one proof may take.")] = 1,
    vault_address: vault_options.Address = "",
    vault_auth: vault_options.Auth = "",
    vault_namespace: vault_options.Namespace = "",
    vault_ca_file: vault_options.CaFile = None,
    insecure_http: vault_options.InsecureHttp = False,
    allow_batch_tokens: vault_options.AllowBatch = False,
    config: Config = None,
    json: Json = False,
) -> None:
    """Mount a sealed model as a read-only plaintext view. Returns when the mount answers reads, or with the error."""
    try:
        from modelfs.mount.start import MountRequest, run_mount
        from modelfs.mount.view import Appearance
    except ImportError as exc:
        raise MountError(f"mounting needs pyfuse3 and libfuse3 ({exc}): install fuse3 and modelfs[mount]") from None

    if audit_required and audit is None:
        raise ConfigError("--audit-required says nothing without --audit FILE: name the file")
    level = parse_log_level(log_level)
    name, state = parse_model(model), state_dir or default_state_dir()
    order = MountRequest(
        sealed=sealed.absolute(),
        mountpoint=mountpoint.absolute(),
        model=name,
        kek=_absolute_kek(kek),
        trusted=load_trusted_keys(trust, threshold),
        minimum_release=check_release(minimum_release),
        workers=parse_workers(workers),
        allow_other=allow_other,
        appearance=Appearance(
            os.geteuid() if uid is None else check_id(uid),
            os.getegid() if gid is None else check_id(gid),
            parse_octal(mode) if mode else None,
        ),
        state_dir=state.absolute(),
        audit=audit.absolute() if audit else None,
        audit_required=audit_required,
        lease=parse_lease(renew_every, ttl, proof_timeout),
        vault=vault_options.read_settings(
            vault_address, vault_auth, vault_namespace, vault_ca_file, insecure_http, allow_batch_tokens, file_of(context).vault
        ),
    )

    def announce(facts: dict[str, Any]) -> None:
        if json:
            print_json(facts)
        else:
            typer.echo(printable(f"mounted {facts['model']} release {facts['release']} at {facts['mountpoint']}"))
        if facts["audit_error"]:
            note(f"mounted, and not audited: {facts['audit_error']}")
        sys.stdout.flush()

    notifier = Notifier.from_environment(os.environ)

    def run(ready: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        while True:
            notifier.starting(f"mounting {name}")
            try:
                return run_mount(order, ready, notifier)
            except KeyServiceError as exc:
                if not wait:
                    raise
                logging.getLogger(__name__).warning("%s; asking again in %g s", exc, WAIT_SECONDS)
                notifier.starting(f"waiting for the key service: {exc}")
                time.sleep(WAIT_SECONDS)

    if foreground:
        _log_to(log, level, redirect=False)
        proof = run(announce)
        print_proof(proof, json)
        if proof["reason"].startswith("revoked"):
            raise KeyDeniedError(f"{proof['mountpoint']} was unmounted, because access to the key has been {proof['reason']}")
        return
    path = (log or state / f"{name}.log").absolute()
    _daemonise(run, announce, path, level)


def _absolute_kek(uri: str) -> str:
    scheme, colon, reference = uri.partition(":")
    return f"file:{os.path.abspath(reference)}" if scheme == "file" and colon and reference else uri


def _log_to(path: Path | None, level: int, redirect: bool) -> None:
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


def _daemonise(
    run: Callable[[Callable[[dict[str, Any]], None]], object], announce: Callable[[dict[str, Any]], None], log: Path, level: int
) -> None:
    """Run in a child of its own session; return when it is ready, raise its error when it is not."""
    reading, writing = os.pipe()
    parent = os.getpid()
    if os.fork() == 0:
        # Until it is ready the daemon ends with the command that waits for it: an interrupted mount never comes to life later.
        die_with_parent(parent)
        close_others({writing})
        os._exit(_daemon(run, writing, log, level))
    os.close(writing)
    report = b""
    while part := os.read(reading, MAX_REPORT_SIZE):
        report += part
    try:
        answer = json_module.loads(report)
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
            os.write(writing, json_module.dumps(answer).encode()[:MAX_REPORT_SIZE])
        os.close(writing)

    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        os.dup2(null, 0)
        os.dup2(null, 1)
        _log_to(log, level, redirect=True)
        os.chdir("/")
        run(lambda facts: report({"ready": facts}))
    except ModelfsError as exc:
        if not reported:
            report({"error": type(exc).__name__, "message": str(exc)})
        logging.getLogger(__name__).error("%s", exc)
        return exc.exit_code
    except BaseException:
        logging.getLogger(__name__).exception("a bug ended the mount")
        return 1
    return 0


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
    if answer["last_error"]:
        yield f"  last error: {answer['last_error']}"
    for sentence in answer["not_confined"]:
        yield f"  not confined: {sentence}"
    if answer["audit_error"]:
        yield f"  not audited: {answer['audit_error']}"


def unmount(mountpoint: Mountpoint, config: Config = None, json: Json = False) -> None:
    """End access at once, open files and mappings included, and print the proof."""
    path = _find_socket(mountpoint)
    try:
        request(path, {"do": "status"}, ANSWER_SECONDS)  # whether it answers at all
        answer = request(path, {"do": "unmount"}, 60 + ANSWER_SECONDS, wait_for_end=True)
    except NotAnsweringError as exc:
        _end_silent(mountpoint, exc.pid)
    print_proof(answer["proof"], json)


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
    """The socket of the mount at a path: by name, or by device where a directory above has been renamed since."""
    canonical = canonical_mountpoint(mountpoint)
    path = socket_path(canonical)
    if path.exists() or not runtime_dir().is_dir():
        return path
    from modelfs.mount.mountinfo import top_mount

    top = top_mount(os.fsencode(canonical))
    for other in sorted(runtime_dir().glob("*.sock")) if top else []:
        with contextlib.suppress(MountError):
            if top and request(other, {"do": "status"}, ANSWER_SECONDS).get("device") == top.device:
                return other
    return path


def lock(mountpoint: Mountpoint, json: Json = False) -> None:
    """Pause: readers get an error, keys and cached plaintext go, the mount stays until `modelfs unlock`."""
    _say(request(_find_socket(mountpoint), {"do": "lock"}, 30), json)


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


def print_proof(proof: dict[str, Any], json: bool) -> None:
    """What an unmount did; MountError if something may be left."""
    if json:
        print_json(proof)
    else:
        steps = ", ".join(f"{name} {milliseconds:.1f}" for name, milliseconds in proof["steps_ms"].items())
        resident = (
            "not counted (needs root, Linux 6.5 and a mount that was still there)"
            if proof["resident_bytes"] is None
            else f"{proof['resident_bytes']} bytes"
        )
        typer.echo(f"unmounted {printable(proof['mountpoint'])} ({proof['model']} release {proof['release']}, {proof['reason']})")
        typer.echo(f"steps, ms from the start: {steps}")
        typer.echo(f"plaintext left in the page cache: {resident}")
    if not proof["evicted"] or not proof["detached"] or proof["resident_bytes"]:
        raise MountError("the unmount was forced: something may be left; see the proof, end the readers or restart the host")
