//! Which places may show a volume: a caller names them, and much that a caller can name is somebody else's.

use std::{
    io::ErrorKind,
    path::{Component, Path, PathBuf},
};

use linux::{Host, Target};

use crate::MountError;

/// Where volumes may be shown.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Confines {
    /// Only beneath these directories. When none is named, everywhere but in the system's own directories.
    pub below: Vec<PathBuf>,
    /// Never in these directories. The drives' own root is always one of them.
    pub never: Vec<PathBuf>,
}

/// Where nothing is ever shown, unless a directory of `below` lies there.
const SYSTEM: [&str; 11] =
    ["/bin", "/boot", "/dev", "/etc", "/lib", "/lib32", "/lib64", "/proc", "/sbin", "/sys", "/usr"];

/// The place of something that is to be shown.
pub(crate) fn to_show(host: &dyn Host, confines: &Confines, path: &Path) -> Result<Target, MountError> {
    let at = future(host, path)?;
    let below = confines.below.iter().map(|root| real(host, root)).collect::<Result<Vec<_>, _>>()?;
    let never = confines.never.iter().map(|root| real(host, root)).collect::<Result<Vec<_>, _>>()?;
    allowed(&at, &below, &never)
        .map(|root| Target { root: root.to_owned(), at: at.clone() })
        .map_err(|why| MountError::Place { at, why })
}

/// The place of something that is to be taken away, wherever it is. `None` when its parent is missing.
pub(crate) fn to_hide(host: &dyn Host, path: &Path) -> Result<Option<Target>, MountError> {
    Ok(plain(host, path)?.map(|at| Target { root: PathBuf::from("/"), at }))
}

/// The directory that a place may lie in; an error says why there is none. All paths are real ones.
fn allowed<'a>(at: &Path, below: &'a [PathBuf], never: &[PathBuf]) -> Result<&'a Path, String> {
    if let Some(own) = never.iter().find(|own| at.starts_with(own)) {
        return Err(format!("{} belongs to the driver", own.display()));
    }
    if below.is_empty() {
        return match SYSTEM.iter().find(|system| at.starts_with(system)) {
            Some(system) => Err(format!("{system} belongs to the system")),
            None => Ok(Path::new("/")),
        };
    }
    let root = below.iter().find(|root| at.starts_with(root) && at != root.as_path());
    root.map(PathBuf::as_path).ok_or_else(|| {
        let below: Vec<String> = below.iter().map(|root| root.display().to_string()).collect();
        format!("this driver shows volumes below {} only", below.join(" and "))
    })
}

/// A path that can be compared with the mount table. `None` when its parent is missing.
pub(crate) fn plain(host: &dyn Host, path: &Path) -> Result<Option<PathBuf>, MountError> {
    let fine = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !fine || path.file_name().is_none() {
        return Err(MountError::Path {
            path: path.to_owned(),
            why: "it is not an absolute plain path".into(),
        });
    }
    match host.real_path(path) {
        Ok(path) => Ok(Some(path)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unusable(path, error)),
    }
}

/// As [`plain`], with what is missing of the path as it will be.
fn future(host: &dyn Host, path: &Path) -> Result<PathBuf, MountError> {
    for there in path.ancestors() {
        // Only the first can be refused for its form: the rest are parts of it, and `/` is always there.
        if there != path && there.file_name().is_none() {
            break;
        }
        if let Some(real) = plain(host, there)? {
            let missing = path.strip_prefix(there).unwrap_or(Path::new(""));
            return Ok(if missing.as_os_str().is_empty() { real } else { real.join(missing) });
        }
    }
    Ok(path.to_owned())
}

/// A directory's path with all links followed, its own too.
fn real(host: &dyn Host, directory: &Path) -> Result<PathBuf, MountError> {
    let inside = future(host, &directory.join("inside"))?;
    Ok(inside.parent().unwrap_or(directory).to_owned())
}

/// What the kernel says of a path that no call can use is the caller's fault, not ours.
pub(crate) fn unusable(path: &Path, error: linux::Error) -> MountError {
    match error.unusable_path() {
        Some(why) => MountError::Path { path: path.to_owned(), why: why.to_owned() },
        None => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_shown_where_it_is_allowed() {
        let kubelet = ["/var/lib/kubelet", "/srv/k"].map(PathBuf::from);
        let own = [PathBuf::from("/srv/k/drives"), PathBuf::from("/var/lib/orlop")];
        for (at, told, anywhere) in [
            ("/var/lib/kubelet/pods/u/volumes/x/mount", true, true),
            ("/srv/k/plugins/staging", true, true),
            ("/srv/k", false, true),
            ("/srv/k/drives/0a1b/volumes/pvc-1", false, false),
            ("/var/lib/kubelet2/pods", false, true),
            ("/mnt/x", false, true),
            ("/var/lib/orlop/new", false, false),
            ("/etc", false, false),
            ("/etc/new", false, false),
            ("/proc/1", false, false),
            ("/etcetera", false, true),
        ] {
            assert_eq!(allowed(Path::new(at), &kubelet, &own).is_ok(), told, "{at}");
            assert_eq!(allowed(Path::new(at), &[], &own).is_ok(), anywhere, "{at}");
        }
        let why = allowed(Path::new("/mnt/x"), &kubelet, &own).expect_err("outside");
        assert!(why.contains("/var/lib/kubelet and /srv/k"), "{why}");
    }
}
