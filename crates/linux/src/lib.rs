//! The only crate with unsafe code: mounts, quotas, loop devices, superblocks, sysfs.
