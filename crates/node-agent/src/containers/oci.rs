//! Which OCI runtime this machine has.

use std::{
    env,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
};

/// In the order of preference: crun refuses machines that have both versions of control groups.
pub(crate) const KNOWN: [&str; 3] = ["runc", "crun", "youki"];

/// The wanted runtime, or the first known one that is installed.
pub(crate) fn find(wanted: Option<&Path>) -> Option<PathBuf> {
    if let Some(wanted) = wanted {
        return is_program(wanted).then(|| wanted.to_path_buf());
    }
    let path = env::var_os("PATH")
        .unwrap_or_else(|| "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    let directories: Vec<PathBuf> = env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]).collect();
    KNOWN.iter().find_map(|name| {
        directories.iter().map(|directory| directory.join(name)).find(|path| is_program(path))
    })
}

fn is_program(path: &Path) -> bool {
    path.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}
