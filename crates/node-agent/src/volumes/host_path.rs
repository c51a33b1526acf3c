//! hostPath volumes: a file or directory of the host, checked and perhaps made.

use std::{
    fs::{self, OpenOptions},
    io,
    os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt},
    path::Path,
};

/// Checks that `path` is what `kind` (the volume's `type`) says, making it for the `…OrCreate` types. The error is a
/// sentence.
pub(crate) fn check(path: &Path, kind: &str) -> Result<(), String> {
    if !path.is_absolute() || path.components().any(|part| part == std::path::Component::ParentDir) {
        return Err(format!("hostPath {} must be absolute and without \"..\"", path.display()));
    }
    let failed = |error: io::Error| format!("hostPath {}: {}", path.display(), linux::in_words(&error));
    let found = match fs::metadata(path) {
        Ok(metadata) => Some(metadata.file_type()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        Err(error) => return Err(failed(error)),
    };
    let (what, right) = match kind {
        // As the container runtimes do.
        "" if found.is_some() => return Ok(()),
        "" | "DirectoryOrCreate" if found.is_none() => {
            return fs::DirBuilder::new().recursive(true).mode(0o755).create(path).map_err(failed);
        }
        "FileOrCreate" if found.is_none() => {
            let made = OpenOptions::new().create(true).append(true).mode(0o644).open(path);
            return made.map(drop).map_err(failed);
        }
        "DirectoryOrCreate" | "Directory" => ("directory", found.is_some_and(|kind| kind.is_dir())),
        "FileOrCreate" | "File" => ("file", found.is_some_and(|kind| kind.is_file())),
        "Socket" => ("socket file", found.is_some_and(|kind| kind.is_socket())),
        "CharDevice" => ("character device", found.is_some_and(|kind| kind.is_char_device())),
        "BlockDevice" => ("block device", found.is_some_and(|kind| kind.is_block_device())),
        other => {
            return Err(format!(
                "hostPath type \"{other}\" is unknown: leave it empty or use Directory, File, …"
            ));
        }
    };
    if right {
        Ok(())
    } else {
        Err(format!("hostPath type check failed: {} is not a {what}", path.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_checked_and_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        fs::write(at("file"), "").unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        for (name, kind, good) in [
            ("file", "File", true),
            ("file", "Directory", false),
            ("file", "FileOrCreate", true),
            ("file", "DirectoryOrCreate", false),
            ("socket", "Socket", true),
            ("socket", "BlockDevice", false),
            ("absent/untyped", "", true),
            ("absent", "File", false),
            ("absent/untyped", "Directory", true),
            ("file/below", "", false),
            ("made/deep", "DirectoryOrCreate", true),
            ("made/deep", "Directory", true),
            ("made/file", "FileOrCreate", true),
            ("nowhere/file", "FileOrCreate", false),
            ("file", "Sofa", false),
        ] {
            assert_eq!(check(&at(name), kind).is_ok(), good, "{name} as {kind}");
        }
        assert!(check(Path::new("/a/../b"), "").is_err());
        assert!(Path::new("/dev/null").exists() && check(Path::new("/dev/null"), "CharDevice").is_ok());
    }
}
