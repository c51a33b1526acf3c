#!/bin/sh
# Runs once in the fresh root of the guest: fetches the kernel, keeps the drivers that storage needs, and leaves
# /boot/vmlinux and /boot/initrd.
set -eu

# The kernel, without the packages that would make it bootable on real hardware.
cd /var/tmp
package=$(apt-cache depends linux-image-amd64 | sed -n 's/.*Depends: \(linux-image-[0-9].*\)/\1/p' | head -1)
apt-get -o APT::Sandbox::User=root -q download "$package"
dpkg-deb -x "$package"_*.deb kernel
mv kernel/lib/modules /usr/lib/
mv kernel/boot/vmlinuz-* /boot/
rm -r kernel "$package"_*.deb
release=$(basename /lib/modules/*)
modules=/lib/modules/$release
for unused in arch/x86/kvm drivers/gpu drivers/media drivers/infiniband drivers/staging drivers/iio drivers/usb \
    drivers/bluetooth drivers/isdn drivers/hwmon drivers/input drivers/i2c drivers/mtd drivers/thunderbolt \
    drivers/net/ethernet drivers/net/wireless drivers/net/usb drivers/comedi sound net/bluetooth net/mac80211 \
    net/wireless net/can net/batman-adv net/sctp net/tipc fs/ocfs2 fs/gfs2 fs/ceph fs/smb fs/afs; do
    rm -rf "$modules/kernel/$unused"
done
depmod "$release"

# Uncompressed, because an emulated processor unpacks slowly.
offset=$(LC_ALL=C grep -aobUP '\xfd7zXZ\x00' "/boot/vmlinuz-$release" | head -1 | cut -d: -f1)
tail -c +$((offset + 1)) "/boot/vmlinuz-$release" | xz -dc --single-stream 2>/dev/null >/boot/vmlinux || true
head -c4 /boot/vmlinux | grep -q ELF || { echo "$package has no kernel that could be unpacked" >&2; exit 1; }

# What finds the root, and nothing else.
mkdir -p /boot/early/bin /boot/early/root /boot/early/dev /boot/early/proc /boot/early/sys
cp /bin/busybox /boot/early/bin/busybox
for module in virtio_pci virtio_blk ext4; do
    modprobe -S "$release" --show-depends "$module" | sed -n 's/^insmod \(\S*\).*/\1/p'
done | awk '!seen[$0]++' | while read -r file; do
    cp "$file" /boot/early/
    basename "$file"
done >/boot/early/modules
mv /etc/orlop-early /boot/early/init
chmod 755 /boot/early/init /etc/orlop-init
(cd /boot/early && find . | busybox cpio -o -H newc) >/boot/initrd 2>/dev/null
rm -r /boot/early "/boot/vmlinuz-$release"

# Devices come and go by the kernel's own hand and by udev; nothing polls.
cat >/etc/lvm/lvmlocal.conf <<'END'
activation { monitoring = 0 }
END
: >/etc/fstab
