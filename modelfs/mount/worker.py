"""Worker processes: forks of the warden that answer FUSE requests, with the keys or without. No network, no state of their own."""

import os
from dataclasses import dataclass
from pathlib import Path

from modelfs.control.fence import Fence
from modelfs.control.keypage import KeyPage
from modelfs.control.pins import Pinned, Rows
from modelfs.control.process import close_others, die_with_parent, fork_child
from modelfs.control.sandbox import confine_worker
from modelfs.crypto.kdf import commitment_agrees
from modelfs.mount.answers import KeyedAnswers, KeylessAnswers
from modelfs.mount.serve import serve
from modelfs.mount.session import Session
from modelfs.mount.view import Appearance, View
from modelfs.reader.table import Table
from modelfs.reader.table_pages import TablePages
from modelfs.store.local import Store

CONNECTION_ENDED = 3
"""Exit code of a worker whose connection was ended by somebody else: `umount -f`, or the abort file of fusectl."""


@dataclass(frozen=True)
class MountShare:
    """What every process of a mount inherits."""

    session: Session
    fence: Fence
    key_page: KeyPage
    pinned: Pinned
    rows: Rows
    sealed: Path
    """Canonical path of the store, for messages."""
    store_fd: int
    """Its directory: a path that somebody moves away later matters to no worker."""
    appearance: Appearance
    capabilities: frozenset[int]
    """What keyed workers keep, because they could not read the store without."""

    @property
    def descriptors(self) -> set[int]:
        """What a forked process of the mount keeps open, besides its standard streams and what is its own."""
        return {self.session.fd, self.pinned.table_fd, self.pinned.keys_fd, self.rows.fd, self.store_fd}


@dataclass(frozen=True)
class Worker:
    """A running worker as its parent knows it."""

    pid: int
    pidfd: int
    clone: int
    """A dup of its descriptor: while it is open, what the worker leaves unanswered is not lost."""

    def forget(self) -> None:
        """Close what the parent holds, once the worker is reaped or given up."""
        os.close(self.pidfd)
        os.close(self.clone)


def start_worker(share: MountShare, keyed: bool) -> Worker:
    """Fork a worker that answers on a clone of its own.

    Args:
        share: What the mount's processes have in common.
        keyed: With keys, for the current epoch; or answering errors only.
    """
    clone = share.session.clone()
    parent, epoch = os.getpid(), share.fence.epoch

    def main() -> int:
        die_with_parent(parent)
        close_others(share.descriptors | {clone})
        confine_worker(share.store_fd if keyed else None, share.capabilities)
        serve(clone, _open_answers(share, epoch) if keyed else KeylessAnswers(share.fence, share.rows))
        return CONNECTION_ENDED

    pid = fork_child(main)
    return Worker(pid, os.pidfd_open(pid), clone)


def _open_answers(share: MountShare, epoch: int) -> KeyedAnswers:
    dek = share.key_page.read()
    manifest = share.pinned.manifest
    if not share.fence.allows(epoch) or not commitment_agrees(dek, manifest.key_commitment):
        os._exit(0)  # fenced between fork and here
    table = Table(TablePages(share.pinned.table_fd, dek))
    view = View(Store(share.sealed, share.store_fd), manifest, table, share.appearance)
    return KeyedAnswers(view, share.fence, epoch)
