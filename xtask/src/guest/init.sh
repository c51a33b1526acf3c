#!/bin/busybox sh
# The guest's only service: runs the commands that come through the virtio port, a line each, and answers with what
# they print and a last line of their exit status.
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mkdir -p /run/lock /run/lvm /dev/pts /dev/shm /host
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t cgroup2 cgroup2 /sys/fs/cgroup
hostname guest
ip link set lo up
modprobe -a virtio_console 9pnet_virtio 9p nvme loop dm_mod
/lib/systemd/systemd-udevd --daemon
mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro host /host
until [ -c /dev/vport0p1 ] || [ -c /dev/vport1p1 ] || [ -c /dev/vport2p1 ]; do usleep 20000; done
exec 3<>"$(echo /dev/vport?p1)"
printf '\036 0\n' >&3
while read -r command <&3; do
    sh -c "$command" >&3 2>&1 3>&- </dev/null
    printf '\n\036 %d\n' $? >&3
done
