//! The guest's disk: Debian's packages and kernel, put together once and kept outside the checkout.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use crate::command::{cache, program};

/// Everything that a test runs inside the guest.
const PACKAGES: &[&str] = &[
    "btrfs-progs",
    "busybox-static",
    "crun",
    "dmsetup",
    "e2fsprogs",
    "iproute2",
    "kmod",
    "lvm2",
    "mount",
    "ndctl",
    "thin-provisioning-tools",
    "udev",
    "util-linux",
    "xfsprogs",
    "xz-utils",
];
/// Where each script lies in the guest.
const SCRIPTS: &[(&str, &str)] = &[
    ("orlop-early", include_str!("early.sh")),
    ("orlop-init", include_str!("init.sh")),
    ("orlop-furnish", include_str!("furnish.sh")),
];
/// Documentation is left out.
const LEFT_OUT: &[&str] = &["/usr/share/man/*", "/usr/share/locale/*", "/usr/share/doc/*"];
/// Room for what tests write; the file is sparse.
const ROOT_SIZE: u64 = 8 << 30;

/// What QEMU starts.
pub(super) struct Image {
    pub(super) kernel: PathBuf,
    pub(super) initrd: PathBuf,
    pub(super) root: PathBuf,
}

impl Image {
    /// The image for this version of the scripts; built if there is none, which takes a few minutes.
    pub(super) fn get() -> anyhow::Result<Image> {
        let suite = suite(&std::fs::read_to_string("/etc/os-release").context("reading /etc/os-release")?)?;
        let mut hasher = DefaultHasher::new();
        (&suite, PACKAGES, SCRIPTS, ROOT_SIZE).hash(&mut hasher);
        let dir = cache()?.join(format!("guest-{suite}-{:016x}", hasher.finish()));
        if !dir.exists() {
            let draft = dir.with_extension(std::process::id().to_string());
            let built = build(&suite, &draft)
                .and_then(|()| std::fs::rename(&draft, &dir).context("keeping the image"));
            if built.is_err() {
                std::fs::remove_dir_all(&draft).ok();
            }
            built?;
        }
        Ok(Image { kernel: dir.join("vmlinux"), initrd: dir.join("initrd"), root: dir.join("root.ext4") })
    }
}

/// Test binaries are built here and run there, with the C library of the guest: so it is the release of this machine.
fn suite(os_release: &str) -> anyhow::Result<String> {
    let value = |key: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    match (value("ID").as_deref(), value("VERSION_CODENAME")) {
        (Some("debian"), Some(suite)) => Ok(suite),
        (id, _) => bail!(
            "the guest runs what is built here, so this machine has to be Debian, not {}",
            id.unwrap_or("unknown")
        ),
    }
}

fn build(suite: &str, dir: &Path) -> anyhow::Result<()> {
    eprintln!("\nbuilding the guest's image in {} (once)", dir.display());
    std::fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    let (root, disk) = (dir.join("root"), dir.join("root.ext4"));
    let mut arguments: Vec<String> =
        ["--mode=root", "--variant=minbase", "--quiet"].map(str::to_owned).into();
    arguments.push(format!("--include={}", PACKAGES.join(",")));
    arguments.push("--aptopt=APT::Install-Recommends \"false\"".to_owned());
    arguments.extend(LEFT_OUT.iter().map(|path| format!("--dpkgopt=path-exclude={path}")));
    for (name, script) in SCRIPTS {
        std::fs::write(dir.join(name), script)?;
        arguments.push(format!("--customize-hook=copy-in {} /etc", dir.join(name).display()));
    }
    arguments.push("--customize-hook=chroot \"$1\" sh /etc/orlop-furnish".to_owned());
    arguments.extend([suite.to_owned(), root.display().to_string()]);
    program("mmdebstrap", &arguments).run()?;
    for file in ["vmlinux", "initrd"] {
        std::fs::rename(root.join("boot").join(file), dir.join(file))
            .with_context(|| format!("the guest's root has no /boot/{file}"))?;
    }
    File::create(&disk)?.set_len(ROOT_SIZE)?;
    let options =
        ["-q", "-t", "ext4", "-O", "^has_journal", "-E", "lazy_itable_init=1,nodiscard", "-m", "0", "-d"];
    program("mke2fs", &options).arguments(&[&root, &disk]).run()?;
    std::fs::remove_dir_all(&root)?;
    ensure!(disk.exists(), "mke2fs left no {}", disk.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::suite;

    #[test]
    fn the_guest_is_of_the_release_of_this_machine() {
        let debian = "PRETTY_NAME=\"Debian\"\nID=debian\nVERSION_CODENAME=bookworm\n";
        assert_eq!(suite(debian).unwrap(), "bookworm");
        let refused = suite("ID=\"fedora\"\n").unwrap_err().to_string();
        assert!(refused.contains("Debian, not fedora"), "{refused}");
    }
}
