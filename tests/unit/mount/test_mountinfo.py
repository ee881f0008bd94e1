"""Parsing mountinfo: escapes, optional fields, the top mount."""

from modelfs.mount.mountinfo import parse_mountinfo, read_mounts

SAMPLE = rb"""22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
30 22 0:40 / /mnt/with\040space rw,nosuid shared:5 master:2 - fuse.modelfs modelfs:a rw
31 30 0:41 / /mnt/with\040space ro - fuse.modelfs modelfs:b\134c rw
"""


def test_escapes_optional_fields_and_order() -> None:
    root, lower, upper = parse_mountinfo(SAMPLE)
    assert (root.device, root.mountpoint, root.fs_type) == ("254:0", b"/", "ext4")
    assert lower.mountpoint == upper.mountpoint == b"/mnt/with space"
    assert (lower.device, upper.device) == ("0:40", "0:41")
    assert upper.source == rb"modelfs:b\c"


def test_the_real_table_parses() -> None:
    assert any(mount.mountpoint == b"/" for mount in read_mounts())
