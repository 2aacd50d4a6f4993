"""What stands around the containers of a view: shell for `sh`, and the program that runs in them."""

import subprocess
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Once for each view: what cases bind, join and write to.
PROLOGUE = r"""
set -u
mkdir -p /run/src /run/done
for kind in plain flagged; do
	mkdir /run/src/$kind
	mount -t tmpfs -o mode=755 source-$kind /run/src/$kind
	mkdir /run/src/$kind/nested /run/src/$kind/owned
	chown 5:6 /run/src/$kind/owned
	mount -t tmpfs -o mode=755 nested-$kind /run/src/$kind/nested
	mkdir /run/src/$kind/nested/owned
done
mount -o remount,bind,nosuid,nodev,noexec,noatime,nodiratime /run/src/flagged/nested
mount -o remount,bind,nosuid,nodev,noexec,noatime,nodiratime /run/src/flagged
mount --make-shared /run/src/plain
mount --make-shared /run/src/flagged
echo "from outside" >/run/src/file
"""

HOLD = r"""
/work/probe hold /run/held >/run/holder &
until grep -qs ready /run/holder; do sleep 0.01; kill -0 $! || exit 97; done
"""

V1_VIEW = r"""
umount /sys/fs/cgroup
mount -t tmpfs -o mode=755 cgroups /sys/fs/cgroup
for controller in $(busybox awk '/^[a-z]/ && $4 == 1 && $2 != 0 { print $1 }' /proc/cgroups); do
	mkdir /sys/fs/cgroup/$controller
	mount -t cgroup -o nosuid,nodev,noexec,$controller cgroup /sys/fs/cgroup/$controller
done
mkdir /sys/fs/cgroup/systemd /sys/fs/cgroup/unified
mount -t cgroup -o nosuid,nodev,noexec,none,name=systemd cgroup /sys/fs/cgroup/systemd || rmdir /sys/fs/cgroup/systemd
mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup/unified
"""

# On a machine with systemd and v2 controllers (the lab), instead of integration/oracles/enter: a cgroup of
# its own as the root of the view. $1: what is bound at /work; $2: the script that goes on.
ON_THE_MACHINE = r"""
set -u
cgroup=/sys/fs/cgroup/isorun-generated-$$
mkdir -p "$cgroup/self" /work
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
	echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done 2>/dev/null
echo $$ >"$cgroup/cgroup.procs"
exec unshare --mount --cgroup --propagation private sh -c '
	echo 0 >"$3/self/cgroup.procs"
	umount /sys/fs/cgroup
	mount -t cgroup2 -o nosuid,nodev,noexec cgroup2 /sys/fs/cgroup
	mount --bind "$1" /work
	mount -t tmpfs -o mode=755,nosuid,nodev tmpfs /run
	cd /work
	exec sh "$2"' sh "$1" "$2" "$cgroup"
"""


def build_probe(work):
    subprocess.run(["gcc", "-static", "-O1", "-Wall", "-Wextra", "-Werror", "-o", work / "probe",
                    HERE / "probe.c", HERE / "beside.c"], check=True)
