//! Writes a volume's files so that a reader sees all of the old or all of the new ones.
//!
//! Files lie in a directory `..<time>`; `..data` links to it, and each top-level name links into `..data`. Replacing
//! `..data` by rename switches all files at once. That is what Kubernetes does, and programs watch for it.

use std::{
    collections::BTreeSet,
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink},
    path::{Path, PathBuf},
};

use super::content::Payload;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Makes `directory` show exactly these files; tells whether anything had to be written.
pub(crate) fn write(directory: &Path, files: &Payload, group: Option<u32>) -> io::Result<bool> {
    let old = fs::read_link(directory.join(DATA)).ok();
    if old.as_ref().is_some_and(|old| same(&directory.join(old), files)) {
        link_names(directory, files)?;
        return Ok(false);
    }
    let version = format!("..{}", clock::now().strftime("%Y_%m_%d_%H_%M_%S.%9f"));
    let new = directory.join(&version);
    make_directory(&new, group)?;
    for (path, file) in files {
        let target = new.join(path);
        if let Some(parent) = Path::new(path).parent() {
            let mut directory = new.clone();
            for part in parent.components() {
                directory.push(part);
                if !directory.exists() {
                    make_directory(&directory, group)?;
                }
            }
        }
        let mode = if group.is_some() { file.mode | 0o440 } else { file.mode };
        let mut out = OpenOptions::new().create_new(true).write(true).mode(0o600).open(&target)?;
        out.write_all(&file.content)?;
        if group.is_some() {
            std::os::unix::fs::fchown(&out, None, group)?;
        }
        out.set_permissions(fs::Permissions::from_mode(mode))?;
    }
    let link = directory.join(NEW_DATA);
    remove_if_there(&link)?;
    symlink(&version, &link)?;
    fs::rename(&link, directory.join(DATA))?;
    link_names(directory, files)?;
    remove_other_versions(directory, &version)?;
    Ok(true)
}

/// Where a path of such a volume really lies, for a bind mount of one file: a later update is not seen through it.
pub(crate) fn resolve(directory: &Path, path: &Path) -> io::Result<PathBuf> {
    Ok(fs::read_link(directory.join(DATA))?.join(path))
}

fn same(directory: &Path, files: &Payload) -> bool {
    let Ok(found) = listing(directory, Path::new("")) else { return false };
    found.len() == files.len()
        && files.iter().all(|(path, file)| {
            found.contains(Path::new(path))
                && fs::read(directory.join(path)).is_ok_and(|bytes| bytes == file.content)
        })
}

fn listing(root: &Path, below: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(root.join(below))? {
        let entry = entry?;
        let path = below.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            found.extend(listing(root, &path)?);
        } else {
            found.insert(path);
        }
    }
    Ok(found)
}

fn link_names(directory: &Path, files: &Payload) -> io::Result<()> {
    let names: BTreeSet<&str> = files.keys().filter_map(|path| path.split('/').next()).collect();
    for name in &names {
        let link = directory.join(name);
        let target = Path::new(DATA).join(name);
        if fs::read_link(&link).ok().as_deref() != Some(&target) {
            remove_if_there(&link)?;
            symlink(&target, &link)?;
        }
    }
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let ours = name.to_str().is_some_and(|name| name.starts_with("..") || names.contains(name));
        if !ours && entry.file_type()?.is_symlink() {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

fn remove_other_versions(directory: &Path, version: &str) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let old = name.to_str().is_some_and(|name| name.starts_with("..") && name != version);
        if old && entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        }
    }
    Ok(())
}

fn make_directory(path: &Path, group: Option<u32>) -> io::Result<()> {
    fs::create_dir(path)?;
    let mode = if group.is_some() { 0o2775 } else { 0o755 };
    if group.is_some() {
        std::os::unix::fs::chown(path, None, group)?;
    }
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::content::ContentFile, *};

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |text: &str| ContentFile { content: text.as_bytes().to_vec(), mode: 0o640 };
        files.iter().map(|(path, text)| ((*path).to_owned(), file(text))).collect()
    }

    #[test]
    fn files_are_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let read = |path: &str| fs::read_to_string(dir.path().join(path)).ok();
        assert!(write(dir.path(), &payload(&[("a", "1"), ("x/y", "2")]), None).unwrap());
        assert_eq!((read("a"), read("x/y")), (Some("1".into()), Some("2".into())));
        assert_eq!(fs::metadata(dir.path().join("a")).unwrap().permissions().mode() & 0o777, 0o640);

        let before = fs::read_link(dir.path().join(DATA)).unwrap();
        assert!(!write(dir.path(), &payload(&[("a", "1"), ("x/y", "2")]), None).unwrap());
        assert_eq!(fs::read_link(dir.path().join(DATA)).unwrap(), before);

        assert!(write(dir.path(), &payload(&[("a", "3")]), None).unwrap());
        assert_eq!((read("a"), read("x/y")), (Some("3".into()), None));
        let names: Vec<String> = fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .filter(|name| !name.starts_with("..2"))
            .collect();
        assert_eq!(names.len(), 2, "{names:?}");
        assert!(dir.path().join(resolve(dir.path(), Path::new("a")).unwrap()).exists());
    }
}
