//! Parts of volumes in containers: `subPath` and `subPathExpr`.

use std::{
    collections::BTreeMap,
    os::fd::AsFd,
    path::{Path, PathBuf},
};

use k8s_openapi::api::core::v1::VolumeMount;
use linux::{Attributes, BindSource, Host, Unmount, beneath};
use rustix::fs::{FileType, fstat};

use super::{VolumeError, atomic};
use crate::{containers::environment::expand, layout::Layout};

/// The sub-path that a mount asks for; None for the whole volume.
pub(crate) fn wanted(mount: &VolumeMount, variables: &BTreeMap<String, String>) -> Option<PathBuf> {
    let text = match (&mount.sub_path_expr, &mount.sub_path) {
        (Some(expression), _) if !expression.is_empty() => expand(expression, variables),
        (_, Some(path)) if !path.is_empty() => path.clone(),
        _ => return None,
    };
    Some(PathBuf::from(text))
}

/// Binds the sub-path of the volume at `source` to its place below `volume-subpaths`, from where the container gets
/// it. The kernel resolves it beneath the volume, so neither `..` nor a symbolic link leads out. Blocks.
pub(crate) fn bind(
    host: &dyn Host,
    source: &Path,
    sub_path: &Path,
    target: &Path,
    content: bool,
) -> Result<(), VolumeError> {
    let files = |source| VolumeError::Files { action: "resolve the sub-path", source };
    let volume = beneath::open_directory(source)?;
    let part = if content {
        // Names of such a volume are links that we have made; what they lead to is named directly.
        beneath::open(volume.as_fd(), &atomic::resolve(source, sub_path).map_err(files)?)?
    } else {
        beneath::open_sub_path(volume.as_fd(), sub_path)?
    };
    let stat = fstat(&part).map_err(|error| files(error.into()))?;
    // An earlier attempt of the container may have bound another file that had this name.
    while host.mount_table()?.at(target).is_some() {
        host.unmount(target, Unmount::Detach)?;
    }
    if let Some(parent) = target.parent() {
        host.make_directory(parent, 0o750)?;
    }
    if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
        host.remove_file(target).or_else(ignore_directory)?;
        host.make_directory(target, 0o750)?;
    } else {
        host.remove_directory(target).or_else(ignore_file)?;
        host.write_durable(target, b"", 0o640)?;
    }
    host.bind(BindSource::Open(part.as_fd()), target, Attributes::default())?;
    Ok(())
}

/// Unmounts and removes all sub-path mounts of a pod's volume. Blocks.
pub(crate) fn clean(host: &dyn Host, layout: &Layout, uid: &str) -> Result<(), VolumeError> {
    let root = layout.subpaths(uid);
    let table = host.mount_table()?;
    for mount in table.below(&root) {
        host.unmount(&mount.target, Unmount::Plain)?;
    }
    host.remove_tree(&root)?;
    Ok(())
}

fn ignore_directory(error: linux::Error) -> linux::Result<bool> {
    if error.kind() == std::io::ErrorKind::IsADirectory { Ok(false) } else { Err(error) }
}

fn ignore_file(error: linux::Error) -> linux::Result<bool> {
    if error.kind() == std::io::ErrorKind::NotADirectory { Ok(false) } else { Err(error) }
}
