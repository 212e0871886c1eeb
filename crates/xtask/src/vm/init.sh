#!/bin/sh
# The first process of the virtual machine that `cargo xtask test-vm` makes. What is to be run is appended.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TMPDIR=/tmp LANG=C.UTF-8
export RUST_BACKTRACE=1
# Of what is repeated to find leftovers, fewer: each takes ten times as long here.
export PROFFER_LAUNCHES=60
mount -t proc -o nosuid,nodev,noexec proc /proc
mount -t sysfs -o nosuid,nodev,noexec sys /sys
grep -q ' /dev devtmpfs ' /proc/self/mounts || mount -t devtmpfs dev /dev
exec </dev/null >/dev/ttyS0 2>&1
stty -F /dev/ttyS0 raw -echo
# As udev does.
ln -s /proc/self/fd /dev/fd
for name in stdin:0 stdout:1 stderr:2; do
    ln -s "/proc/self/fd/${name#*:}" "/dev/${name%:*}"
done
mkdir -p /dev/pts /dev/shm /dev/hugepages
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs -o nosuid,nodev shm /dev/shm
mount -t tmpfs -o nosuid,nodev,mode=755 run /run
mount -t hugetlbfs none /dev/hugepages
mount -t cgroup2 -o nosuid,nodev,noexec none /sys/fs/cgroup
for controller in $(cat /sys/fs/cgroup/cgroup.controllers); do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
# An image made by somebody who is not root.
[ "$(stat -c %u /etc/passwd)" = 0 ] || chown -hR 0:0 /etc /usr /init
ip link set lo up
hostname proffer-vm 2>/dev/null || echo proffer-vm >/proc/sys/kernel/hostname
dmesg -n 1

# one INDEX SECONDS DIRECTORY PROGRAM ARGUMENT…
one() {
    index=$1 limit=$2 dir=$3
    shift 3
    cd "$dir" || return
    echo "@@vm begin $index"
    start=$(date +%s%3N)
    CARGO_MANIFEST_DIR=$dir timeout -k 10 "$limit" "$@"
    echo "@@vm end $index $? $(($(date +%s%3N) - start))"
}

finish() {
    echo "@@vm done"
    # The line must be empty before the power goes.
    stty -F /dev/ttyS0 -raw
    sync
    echo b >/proc/sysrq-trigger
    sleep 60
}

echo "@@vm up"
