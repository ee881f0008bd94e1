"""An ordinary user mounts, reads and unmounts with fusermount3, where /dev/fuse is open to all, as distributions have it."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.helpers import REPOSITORY, KeySet, Sealed, seal
from tests.mount.conftest import mount_command, python_for_users

NOBODY = 65534

SCRIPT = r"""
set -e
mount -t tmpfs -o mode=755 none /dev
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/urandom c 1 9
mknod -m 666 /dev/fuse c 10 229
eval "$PLACE_PYTHON"
modelfs() { setpriv --reuid=65534 --regid=65534 --clear-groups "$PYTHON" -m modelfs "$@"; }
modelfs "$@"
setpriv --reuid=65534 --regid=65534 --clear-groups cmp source/model.bin mnt/model.bin
modelfs status
workers=$(modelfs status | sed -n "s/.*workers \([0-9 ]*\) (.*/\1/p")
for pid in $workers; do grep -E "^(Cap(Eff|Prm)|NoNewPrivs|Seccomp):" /proc/$pid/status; done
"$PYTHON" -m modelfs unmount mnt && exit 9
modelfs unmount mnt
! grep "$PWD/mnt" /proc/self/mounts
"""


def test_an_ordinary_user_mounts_reads_and_unmounts() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        base = Path(temporary)
        base.chmod(0o755)
        keys = KeySet.generate(base)
        for name in ("source", "mnt", "run"):
            (base / name).mkdir()
        (base / "source" / "model.bin").write_bytes(os.urandom(3_000_000))
        seal(keys, base / "source", base / "sealed")
        for path in (base / "mnt", base / "run", keys.kek):
            os.chown(path, NOBODY, NOBODY)
        sealed = Sealed(base / "sealed", base / "source", keys)
        command = mount_command(sealed, base / "mnt", base / "run" / "state")
        packages = os.pathsep.join([str(REPOSITORY), *sys.path[1:]])
        python, place = python_for_users(base)
        env = {**os.environ, "PYTHON": python, "PLACE_PYTHON": place, "PYTHONPATH": packages, "XDG_RUNTIME_DIR": str(base / "run")}
        full = ["unshare", "-m", "bash", "-c", SCRIPT, "bash", *map(str, command)]
        done = subprocess.run(full, capture_output=True, text=True, check=False, timeout=60, env=env, cwd=base)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "serving" in done.stdout
        assert "is another user's" in done.stderr, "root does not hear that nothing is mounted there"
        assert "not confined: control and warden may gain privileges" in done.stdout
        assert "without root" in done.stdout
        workers = [line.split() for line in done.stdout.splitlines() if line.startswith(("Cap", "NoNewPrivs", "Seccomp"))]
        want = [["CapPrm:", "0" * 16], ["CapEff:", "0" * 16], ["NoNewPrivs:", "1"], ["Seccomp:", "2"]]
        assert len(workers) >= len(want)
        assert workers == want * (len(workers) // len(want))
        assert "plaintext left in the page cache: not counted" in done.stdout
