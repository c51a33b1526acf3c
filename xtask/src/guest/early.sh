#!/bin/busybox sh
# The first process of the guest: finds the root and goes there.
busybox() { /bin/busybox "$@"; }
busybox mount -t devtmpfs dev /dev
while read -r module; do busybox insmod "/$module"; done </modules
until [ -b /dev/vda ]; do busybox usleep 20000; done
busybox mount -t ext4 -o noatime /dev/vda /root
busybox mount --move /dev /root/dev
exec /bin/busybox switch_root /root /etc/orlop-init
