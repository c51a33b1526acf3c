//! Parts of volumes in containers: `subPath` and `subPathExpr`.

use std::{
    collections::BTreeMap,
    io,
    os::fd::AsFd,
    path::{Component, Path, PathBuf},
};

use k8s_openapi::api::core::v1::VolumeMount;
use linux::{Attributes, BindSource, Host, Unmount, beneath};
use rustix::{
    fs::{FileType, fstat},
    io::Errno,
};

use super::{VolumeError, atomic};
use crate::{
    containers::environment::{EnvironmentError, expand_path},
    layout::Layout,
};

/// The sub-path that a mount asks for; None for the whole volume.
pub(crate) fn wanted(
    mount: &VolumeMount,
    variables: &BTreeMap<String, String>,
) -> Result<Option<PathBuf>, EnvironmentError> {
    let text = match (&mount.sub_path_expr, &mount.sub_path) {
        (Some(expression), _) if !expression.is_empty() => expand_path(expression, variables)?,
        (_, Some(path)) if !path.is_empty() => path.clone(),
        _ => return Ok(None),
    };
    let refused = |why| Err(EnvironmentError::SubPath { path: text.clone(), why });
    let path = PathBuf::from(&text);
    if path.is_absolute() {
        return refused("must be a path below the volume, not an absolute one");
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return refused("must not contain '..'");
    }
    Ok(Some(path))
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
        match beneath::open(volume.as_fd(), &atomic::resolve(source, sub_path).map_err(files)?) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            part => Some(part.map_err(|error| refusal(sub_path, error))?),
        }
    } else {
        Some(beneath::open_sub_path(volume.as_fd(), sub_path).map_err(|error| refusal(sub_path, error))?)
    };
    // An earlier attempt of the container may have bound another file that had this name.
    while host.mount_table()?.at(target).is_some() {
        host.unmount(target, Unmount::Detach)?;
    }
    if let Some(parent) = target.parent() {
        host.make_directory(parent, 0o750)?;
    }
    let Some(part) = part else {
        // What the objects behind the volume don't have is an empty directory, as kubelet makes it; the volume itself
        // stays as it is.
        host.remove_file(target).or_else(ignore_directory)?;
        return Ok(host.make_directory(target, 0o755)?);
    };
    let stat = fstat(&part).map_err(|error| files(error.into()))?;
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

/// Why a sub-path can't be had, in words.
fn refusal(sub_path: &Path, error: linux::Error) -> VolumeError {
    let why = match error.errno().map(Errno::from_raw_os_error) {
        Some(Errno::XDEV) => {
            "a symbolic link in it leads out of the volume, or something is mounted there".into()
        }
        Some(Errno::LOOP) => "symbolic links in it lead in a circle".into(),
        Some(Errno::NOTDIR) => "a part of it is a file, not a directory".into(),
        Some(Errno::NAMETOOLONG) => "a part of it is longer than a name may be".into(),
        Some(Errno::NOSPC | Errno::DQUOT) => "the volume is full, no directory can be made in it".into(),
        Some(Errno::ROFS) => "it is not there, and the volume is read-only".into(),
        _ => error.to_string(),
    };
    VolumeError::SubPath { path: sub_path.display().to_string(), why }
}

fn ignore_directory(error: linux::Error) -> linux::Result<bool> {
    if error.kind() == io::ErrorKind::IsADirectory { Ok(false) } else { Err(error) }
}

fn ignore_file(error: linux::Error) -> linux::Result<bool> {
    if error.kind() == io::ErrorKind::NotADirectory { Ok(false) } else { Err(error) }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use linux::Kernel;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_sub_path_is_below_its_volume() {
        let variables =
            BTreeMap::from([("ABS".to_owned(), "/etc".to_owned()), ("UP".to_owned(), "../..".to_owned())]);
        for (mount, expected) in [
            (json!({}), Ok(None)),
            (json!({"subPath": "a/b"}), Ok(Some("a/b"))),
            (json!({"subPathExpr": "x$(ABS)"}), Ok(Some("x/etc"))),
            (
                json!({"subPathExpr": "$(ABS)"}),
                Err("subPath \"/etc\" must be a path below the volume, not an absolute one"),
            ),
            (json!({"subPathExpr": "$(UP)/etc"}), Err("subPath \"../../etc\" must not contain '..'")),
            (json!({"subPathExpr": "$(NOPE)"}), Err("missing value for NOPE")),
        ] {
            let mut whole = json!({"name": "v", "mountPath": "/v"});
            whole.as_object_mut().unwrap().extend(mount.as_object().unwrap().clone());
            let wanted = wanted(&serde_json::from_value(whole).unwrap(), &variables);
            let wanted = wanted.map_err(|error| error.to_string());
            assert_eq!(
                wanted,
                expected.map(|path| path.map(PathBuf::from)).map_err(str::to_owned),
                "{mount}"
            );
        }
    }

    #[test]
    fn refusals_are_words() {
        let place = tempfile::tempdir().unwrap();
        let (volume, target) = (place.path().join("volume"), place.path().join("target"));
        fs::create_dir(&volume).unwrap();
        fs::write(volume.join("file"), "").unwrap();
        for (link, to) in [("out", "/etc"), ("up", "../.."), ("circle", "circle")] {
            std::os::unix::fs::symlink(to, volume.join(link)).unwrap();
        }
        for (path, why) in [
            ("out", "leads out of the volume"),
            ("out/passwd", "leads out of the volume"),
            ("up", "leads out of the volume"),
            ("circle", "in a circle"),
            ("file/below", "is a file, not a directory"),
            (&*"n".repeat(300), "longer than a name may be"),
        ] {
            let said = bind(&Kernel, &volume, Path::new(path), &target, false).unwrap_err().to_string();
            assert!(said.contains(why) && !said.contains("os error"), "{path}: {said}");
        }
        assert!(!target.exists());
    }

    #[test]
    fn what_an_object_does_not_have_is_an_empty_directory() {
        let place = tempfile::tempdir().unwrap();
        let (volume, target) = (place.path().join("volume"), place.path().join("parts/0"));
        fs::create_dir(&volume).unwrap();
        atomic::write(&volume, &Default::default(), None).unwrap();
        bind(&Kernel, &volume, Path::new("nope"), &target, true).unwrap();
        assert_eq!(fs::read_dir(&target).unwrap().count(), 0);
        assert!(!volume.join("nope").exists());
    }
}
