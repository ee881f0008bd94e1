#!/usr/bin/env bash
# Boot the systemd of this host as PID 1 of namespaces of its own, on a throw-away overlay of this host's root.
# Arguments: WORK (a directory), SHARED (one above it, that both sides share), NAME (of a control group), then directories to bind.
# WORK/prepare.sh runs before the boot.
set -euo pipefail
work=$1 shared=$2 group=$3
shift 3
if [ "${INNER:-}" != yes ]; then
  mkdir -p "$work/cgroup" "$work/root"
  mount --make-rprivate /
  mount -t cgroup2 none "$work/cgroup"
  mkdir "$work/cgroup/$group"
  echo $$ >"$work/cgroup/$group/cgroup.procs"
  umount "$work/cgroup"
  INNER=yes exec unshare --mount --pid --fork --kill-child --uts --ipc --cgroup "$0" "$work" "$shared" "$group" "$@"
fi
read -r pid _ </proc/self/stat # as the host counts: /proc is still the host's
mount -t tmpfs tmpfs "$work/root"
cd "$work/root"
mkdir upper work root
mount -t overlay overlay -o "lowerdir=/,upperdir=$work/root/upper,workdir=$work/root/work" root
cd root
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount -t tmpfs tmpfs dev
for node in "null 1 3" "zero 1 5" "full 1 7" "random 1 8" "urandom 1 9" "tty 5 0" "fuse 10 229"; do
  read -r name major minor <<<"$node"
  mknod -m 666 "dev/$name" c "$major" "$minor"
done
mkdir dev/shm dev/pts
mount -t tmpfs tmpfs dev/shm
mount -t devpts devpts dev/pts
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys # some of it is not in any namespace
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mkdir -p ".$shared"
mount --bind "$shared" ".$shared" # not recursive: the new root is in it
for path in "$@"; do
  mkdir -p ".$path"
  mount --rbind "$path" ".$path"
  while [ "$path" != / ]; do # so that a user of the machine can run what is there
    path=$(dirname "$path")
    [ "$(stat -f -c %T ".$path")" != overlayfs ] || chmod a+rx ".$path"
  done
done
# Nothing of this host's own services: only what the test asks for.
rm -rf etc/fstab etc/systemd/system/* etc/modelfs etc/credstore var/lib/modelfs* usr/local/lib/{systemd,tmpfiles.d,sysusers.d}
mount -t tmpfs tmpfs usr/lib/tmpfiles.d # else it would clean /tmp
for directory in usr/lib/systemd/system/*.wants; do
  mount -t tmpfs tmpfs "$directory"
done
ln -s ../systemd-journald.service ../systemd-tmpfiles-setup.service usr/lib/systemd/system/sysinit.target.wants
"$work/prepare.sh" "$PWD"
mkdir old
pivot_root . old
umount -l old
rmdir old
mount --make-rshared / # else systemd cannot hand credentials to units
echo "$pid" >"$work/pid"
exec env -i container=modelfs-test PATH=/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin /lib/systemd/systemd --system --unit=multi-user.target --log-target=journal --show-status=no
