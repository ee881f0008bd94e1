"""What control and warden tell each other when one of them reads nothing, or gets what is no message. Real sockets and processes."""

import json
import signal
import socket
import subprocess
from unittest.mock import create_autospec

import trio
import trio.testing

from modelfs.control.fence import Fence, State
from modelfs.control.leasing import Effects, LeaseHolder
from modelfs.control.loop import ControlLoop
from modelfs.control.warden_link import MAX_REASON_BYTES, cut
from modelfs.mount.warden import MAX_PACKET_SIZE, Warden


def test_a_full_channel_is_a_warden_that_does_not_answer() -> None:
    """What it was told is lost, and may have been the word that a new epoch is open: so it is ended, and not left as it is."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    fence = Fence()
    fence.open_epoch()
    effects: list[Effects] = []

    def lease(given: Effects) -> LeaseHolder:
        effects.append(given)
        holder = create_autospec(LeaseHolder, instance=True)
        holder.key_version = holder.kek = None
        return holder

    loop = ControlLoop(fence, ours, lease)
    with subprocess.Popen(["sleep", "60"]) as warden:

        async def main() -> None:
            async with trio.open_nursery() as nursery:
                loop._warden.know(warden.pid)
                nursery.start_soon(loop._warden.run)
                await trio.testing.wait_all_tasks_blocked()
                for _ in range(5000):
                    effects[0].light()
                await loop._warden.ended.wait()
                nursery.cancel_scope.cancel()

        trio.run(main)
        assert warden.wait(5) == -signal.SIGKILL
    assert fence.state is State.REVOKED
    assert loop._why_ending == "the warden does not answer"
    theirs.close()


def test_a_reason_is_cut_by_what_it_takes_in_json() -> None:
    for reason in ("x" * 5000, "\N{GRINNING FACE}" * 1000, '"' * 3000, "\udcff" * 2000):
        short = cut(reason)
        assert reason.startswith(short)
        assert MAX_REASON_BYTES / 2 < len(json.dumps(short)) <= MAX_REASON_BYTES < MAX_PACKET_SIZE
    assert cut("unmount") == "unmount"


def test_a_warden_survives_what_is_no_message() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    warden = Warden(None, theirs, 1)
    for packet in (b'{"do": "unmo', b"\xff\xfe", b"[1]", b"7", b"[" * 60000, b"null"):
        ours.send(packet)
        assert warden._receive() == {}
    ours.send(b'{"do": "light"}')
    assert warden._receive() == {"do": "light"}
    ours.close()
    assert warden._receive() is None
    theirs.close()


def test_a_warden_does_not_wait_for_a_control_that_reads_nothing() -> None:
    """A stopped control must not keep it from darkening when the lease ends."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    warden = Warden(None, theirs, 1)
    for _ in range(5000):
        warden._tell({"workers": [1, 2, 3]})
    ours.close()
    theirs.close()
