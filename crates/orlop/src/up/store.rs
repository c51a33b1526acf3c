//! The store of a data directory: never an empty one in place of one that was there.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use object_store::{OpenError, Options, Store};

/// Opens the store, which is made if this is the directory's `first` start. Later one that is missing or damaged is
/// refused, or set aside and begun anew if `anew` is asked for; one that can be read is used all the same.
pub(super) fn open(path: &Path, first: bool, anew: bool) -> anyhow::Result<Store> {
    let error = match Store::open(path, Options { create: first, ..Options::default() }) {
        Err(error @ (OpenError::Missing { .. } | OpenError::Corrupt { .. } | OpenError::Endless { .. })) => {
            error
        }
        opened => return Ok(opened?),
    };
    if !anew {
        bail!(
            "{error}. Or start once with --new-store: then all objects (claims, pods, classes) begin anew, while \
             volumes and their data stay on the drives, and `orlop volumes -o yaml` prints PersistentVolumes for them"
        );
    }
    if path.exists() {
        let aside = free_name(path);
        std::fs::rename(path, &aside).with_context(|| format!("setting {} aside", path.display()))?;
        tracing::warn!(error = %error, kept = %aside.display(), "the store begins anew, the old file is kept");
    }
    Ok(Store::open(path, Options::default())?)
}

/// A name beside the file that nothing has.
fn free_name(path: &Path) -> PathBuf {
    let names = (1..).map(|number: u32| path.with_extension(format!("redb.set-aside-{number}")));
    names.into_iter().find(|name| !name.exists()).unwrap_or_else(|| path.with_extension("redb.set-aside"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_empty_store_is_never_begun_by_itself() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("store.redb");
        open(&path, true, false).unwrap().close().await;
        open(&path, false, false).unwrap().close().await;
        for content in [None, Some(""), Some("rubbish")] {
            std::fs::remove_file(&path).unwrap();
            if let Some(content) = content {
                std::fs::write(&path, content).unwrap();
            }
            let refused = open(&path, false, false).unwrap_err().to_string();
            for word in ["--new-store", "orlop volumes", "backup"] {
                assert!(refused.contains(word), "{content:?}: {refused}");
            }
            open(&path, false, true).unwrap().close().await;
            open(&path, false, true).unwrap().close().await;
        }
        let kept = std::fs::read_to_string(dir.path().join("store.redb.set-aside-2")).unwrap();
        assert_eq!(kept, "rubbish");
        assert!(!dir.path().join("store.redb.set-aside-3").exists(), "a store that can be read is used");
    }
}
