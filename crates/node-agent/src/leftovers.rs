//! What is found in directories of ours that should be empty: drafts of records are removed, all else is set aside
//! with a reason, so that nothing waits for ever for a directory to become empty, and nothing is deleted that is not
//! known.

use std::{
    fmt, io,
    path::{Path, PathBuf},
};

use linux::Host;

use crate::{
    layout::{self, Layout},
    volumes::VolumeError,
};

/// So many are kept for somebody to look at; further ones stay where they are, and are told of there.
const MOST: usize = 1000;
/// Names that a message lists.
const LISTED: usize = 5;
/// Earlier versions wrote a volume's record to this name first.
const EARLIER_DRAFT: &str = "vol_data.new";

/// Something unknown that was moved away.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Leftover {
    pub(crate) from: PathBuf,
    pub(crate) to: PathBuf,
    pub(crate) names: String,
}

impl fmt::Display for Leftover {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (from, to) = (self.from.display(), self.to.display());
        write!(
            f,
            "{from} should have been empty and held {}: moved to {to}, look at it and delete it",
            self.names
        )
    }
}

/// Removes a directory that nothing needs any more. Drafts in it go with it; if something else is there, the directory
/// is set aside. Nothing is moved that is, or holds, a mount. Blocks.
pub(crate) fn remove_directory(
    host: &dyn Host,
    layout: &Layout,
    directory: &Path,
) -> Result<Option<Leftover>, VolumeError> {
    match host.remove_directory(directory) {
        Err(error) if is_filled(error.kind()) => {}
        removed => return Ok(removed.map(|_| None)?),
    }
    if host.list(directory).is_ok() {
        remove_drafts(host, directory)?;
        match host.remove_directory(directory) {
            Err(error) if is_filled(error.kind()) => {}
            removed => return Ok(removed.map(|_| None)?),
        }
    }
    let table = host.mount_table()?;
    if let Some(mount) = table.at(directory).into_iter().chain(table.below(directory)).next() {
        let (what, mount) = (directory.display(), mount.target.display());
        let why =
            format!("{what} can't be removed: something is mounted at {mount} that is not ours, unmount it");
        return Err(VolumeError::Leftover(why));
    }
    set_aside(host, layout, directory).map(Some)
}

fn is_filled(kind: io::ErrorKind) -> bool {
    matches!(kind, io::ErrorKind::DirectoryNotEmpty | io::ErrorKind::NotADirectory)
}

fn remove_drafts(host: &dyn Host, directory: &Path) -> Result<usize, linux::Error> {
    let earlier = host.remove_file(&directory.join(EARLIER_DRAFT))?;
    Ok(host.remove_drafts(directory)? + usize::from(earlier))
}

/// Moves what is at `path` to the node's `leftovers`. Blocks.
pub(crate) fn set_aside(host: &dyn Host, layout: &Layout, path: &Path) -> Result<Leftover, VolumeError> {
    let names = match host.list(path) {
        Ok(names) => list(&names.iter().map(|name| name.to_string_lossy()).collect::<Vec<_>>()),
        Err(_) => "a file".to_owned(),
    };
    let place = layout.leftovers();
    host.make_directory(&place, 0o700)?;
    if host.list(&place)?.len() >= MOST {
        let (what, place) = (path.display(), place.display());
        let why = format!("{what} holds {names}, and {place} is full: look at what is there and delete it");
        return Err(VolumeError::Leftover(why));
    }
    let name: String = path.file_name().unwrap_or_default().to_string_lossy().chars().take(60).collect();
    let time = clock::now().strftime("%Y%m%dT%H%M%S.%9f");
    let to = place.join(format!("{time}-{name}"));
    host.rename(path, &to)?;
    let leftover = Leftover { from: path.to_owned(), to, names };
    tracing::warn!(from = %path.display(), to = %leftover.to.display(), names = leftover.names, "set aside");
    Ok(leftover)
}

fn list(names: &[impl fmt::Display]) -> String {
    let mut text = names.iter().take(LISTED).map(|name| name.to_string()).collect::<Vec<_>>().join(", ");
    if names.len() > LISTED {
        text.push_str(&format!(" and {} more", names.len() - LISTED));
    }
    text
}

/// Removes the drafts of records that an agent before this one left. Blocks.
///
/// # Errors
/// When a directory can't be read, or a draft can't be removed.
pub(crate) fn sweep(host: &dyn Host, layout: &Layout) -> linux::Result<()> {
    let mut directories = Vec::new();
    for uid in host.list(&layout.pods())? {
        let pod = layout.pods().join(uid);
        for plugins in ["volumes", "plugins"] {
            directories.extend(grandchildren(host, &pod.join(plugins)));
        }
        directories.extend(grandchildren(host, &pod.join("containers")));
    }
    directories.extend(grandchildren(host, &layout.stages()));
    directories.extend(grandchildren(host, &layout.devices()).filter(|path| path.ends_with("data")));
    let mut removed = 0;
    for directory in directories.iter().filter(|path| !is_content(path)) {
        removed += remove_drafts(host, directory)?;
    }
    if removed > 0 {
        tracing::info!(removed, "removed drafts of records that were never finished");
    }
    Ok(())
}

/// Volumes of the pod's own data have no record in them: what lies there is the pod's.
fn is_content(directory: &Path) -> bool {
    let plugin = directory.parent().and_then(Path::file_name);
    let of_pod = directory.components().any(|part| part.as_os_str() == "volumes");
    of_pod && plugin.is_some_and(|plugin| plugin != layout::CSI)
}

/// The directories two levels down. What can't be read has no drafts to be removed: it is told of when it is used.
fn grandchildren<'a>(host: &'a dyn Host, directory: &Path) -> impl Iterator<Item = PathBuf> + use<'a> {
    let children = |directory: PathBuf| {
        let names = host.list(&directory).unwrap_or_default();
        names.into_iter().map(move |name| directory.join(name))
    };
    children(directory.to_path_buf()).flat_map(children).filter(|path| path.is_dir() && !path.is_symlink())
}

#[cfg(test)]
mod tests {
    use std::fs;

    use linux::Kernel;

    use super::*;

    #[test]
    fn drafts_go_and_what_is_unknown_is_set_aside() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let directory = root.path().join("stage");
        let with = |names: &[&str]| {
            fs::create_dir(&directory).unwrap();
            names.iter().for_each(|name| fs::write(directory.join(name), "{").unwrap());
            remove_directory(&Kernel, &layout, &directory).unwrap()
        };
        for drafts in [&[][..], &[".vol_data.json.new"], &["vol_data.new", ".a.new"]] {
            assert_eq!(with(drafts), None, "{drafts:?}");
            assert!(!directory.exists());
        }
        let left = with(&[".vol_data.json.new", "photo"]).unwrap();
        assert!(!directory.exists());
        assert_eq!(fs::read_to_string(left.to.join("photo")).unwrap(), "{");
        assert!(left.to_string().contains("held photo: moved to"), "{left}");
        assert_eq!(remove_directory(&Kernel, &layout, &directory).unwrap(), None, "nothing is there");

        let place = layout.leftovers();
        (1..MOST).for_each(|number| fs::write(place.join(number.to_string()), "").unwrap());
        fs::create_dir_all(directory.join("photo")).unwrap();
        let full = remove_directory(&Kernel, &layout, &directory).unwrap_err().to_string();
        assert!(full.contains("is full") && directory.join("photo").exists(), "{full}");
    }

    #[test]
    fn the_start_sweeps_every_place_of_records() {
        let root = tempfile::tempdir().unwrap();
        let layout = Layout::new(root.path());
        let places = [
            layout.volume("u", layout::CSI, "pv"),
            layout.plugin("u", layout::CSI).join("pv"),
            layout.plugin("u", layout::EMPTY_DIR).join("disk"),
            layout.attempt("u", "app", 0),
            layout.stage("d", "h"),
            layout.devices().join("pv/data"),
        ];
        let mine = layout.volume("u", layout::EMPTY_DIR, "disk");
        for place in places.iter().chain([&mine]) {
            fs::create_dir_all(place).unwrap();
            fs::write(place.join(".vol_data.json.new"), "{").unwrap();
        }
        sweep(&Kernel, &layout).unwrap();
        for place in &places {
            assert_eq!(fs::read_dir(place).unwrap().count(), 0, "{}", place.display());
        }
        assert_eq!(fs::read_dir(&mine).unwrap().count(), 1, "the pod's own files stay");
    }
}
