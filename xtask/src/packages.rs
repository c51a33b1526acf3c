//! The Debian packages that Orlop and its tests use: installed when missing, saying which.

use std::path::Path;

use anyhow::{Context, bail};

use crate::command::program;

/// A program, where it lies when installed, and the package that brings it.
const NEEDED: &[(&str, &str)] = &[
    ("runc", "runc"),
    ("mkfs.btrfs", "btrfs-progs"),
    ("mkfs.xfs", "xfsprogs"),
    ("findmnt", "util-linux"),
    ("losetup", "mount"),
    ("cc", "gcc"),
];

/// What builds and runs the emulated machine.
const NEEDED_FOR_GUEST: &[(&str, &str)] = &[
    ("mmdebstrap", "mmdebstrap"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("mke2fs", "e2fsprogs"),
    ("setpriv", "util-linux"),
];

/// Installs what is missing; nothing is asked of apt when all is there.
pub(crate) fn install() -> anyhow::Result<()> {
    install_missing(NEEDED)
}

/// As [`install`], for the guest.
pub(crate) fn install_for_guest() -> anyhow::Result<()> {
    install_missing(NEEDED_FOR_GUEST)
}

fn install_missing(needed: &[(&str, &str)]) -> anyhow::Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("Orlop mounts drives, which needs root; run this task as root");
    }
    let missing: Vec<&str> =
        needed.iter().filter(|(tool, _)| !on_path(tool)).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    eprintln!("installing missing Debian packages: {}", missing.join(" "));
    let apt = |arguments: &[&str]| program("apt-get", arguments).env("DEBIAN_FRONTEND", "noninteractive");
    apt(&["update", "-q"])
        .run()
        .context("apt-get is needed to install missing packages; install them by hand")?;
    let install = ["install", "-q", "-y", "--no-install-recommends"];
    apt(&[&install[..], &missing[..]].concat()).run()
}

/// Whether a program lies on `$PATH` or where Debian puts administrators' programs.
pub(crate) fn on_path(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let admin = ["/usr/sbin", "/sbin"].map(Path::new);
    std::env::split_paths(&path).any(|dir| dir.join(tool).is_file())
        || admin.iter().any(|dir| dir.join(tool).is_file())
}
