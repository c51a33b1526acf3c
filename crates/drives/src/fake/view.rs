//! A file system in memory: what is seen of it now, and what is left of it when the power goes.

use std::{
    collections::{BTreeMap, BTreeSet},
    io,
    path::{Path, PathBuf},
};

use super::no;

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Node {
    Directory {
        subvolume: Option<u64>,
        project: u32,
    },
    File(Vec<u8>),
    /// A file of so many bytes, the first of which are these.
    Image(u64, Vec<u8>),
}

pub(super) const PLAIN: Node = Node::Directory { subvolume: None, project: 0 };

/// A file system as someone sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct View {
    pub(super) nodes: BTreeMap<PathBuf, Node>,
    pub(super) limits: BTreeMap<u64, Option<u64>>,
    pub(super) cleaning: BTreeSet<u64>,
}

#[derive(Clone, Debug, Default)]
pub(super) struct FileSystem {
    pub(super) kind: String,
    pub(super) uuid: String,
    pub(super) label: String,
    pub(super) now: View,
    pub(super) durable: View,
    pub(super) next: u64,
}

impl FileSystem {
    pub(super) fn new(kind: &str, uuid: &str, label: &str) -> Self {
        let view = View { nodes: [(PathBuf::new(), PLAIN)].into(), ..View::default() };
        Self {
            kind: kind.to_owned(),
            uuid: uuid.to_owned(),
            label: label.to_owned(),
            now: view.clone(),
            durable: view,
            next: 256,
        }
    }

    /// Does it now and for good. On btrfs it goes ahead of what was done before, unless it can't be without that; a journal
    /// is written in order.
    pub(super) fn both(&mut self, change: impl Fn(&mut View) -> io::Result<()>) -> io::Result<()> {
        change(&mut self.now)?;
        if self.kind != "btrfs" || change(&mut self.durable).is_err() {
            self.durable = self.now.clone();
        }
        Ok(())
    }
}

impl View {
    pub(super) fn children(&self, directory: &Path) -> Vec<PathBuf> {
        self.nodes.keys().filter(|path| path.parent() == Some(directory)).cloned().collect()
    }

    pub(super) fn remove_below(&mut self, directory: &Path) {
        self.nodes.retain(|path, _| !path.starts_with(directory));
    }

    /// Copies what lies below a directory, without the directory itself.
    pub(super) fn copy_below(&mut self, from: &Path, to: &Path) -> io::Result<()> {
        if !self.nodes.contains_key(from) {
            return Err(no(io::ErrorKind::NotFound));
        }
        let copies: Vec<(PathBuf, Node)> = self
            .nodes
            .iter()
            .filter_map(|(path, node)| Some((path.strip_prefix(from).ok()?, node)))
            .filter(|(inside, _)| !inside.as_os_str().is_empty())
            .map(|(inside, node)| (to.join(inside), node.clone()))
            .collect();
        self.nodes.extend(copies);
        Ok(())
    }

    /// The subvolume that holds a path, and what it holds altogether.
    pub(super) fn held_by(&self, path: &Path) -> Option<(u64, u64)> {
        let (root, id) = path.ancestors().find_map(|path| match self.nodes.get(path) {
            Some(Node::Directory { subvolume: Some(id), .. }) => Some((path, *id)),
            Some(Node::Directory { project, .. }) if *project != 0 => Some((path, u64::from(*project))),
            _ => None,
        })?;
        let used = self.nodes.iter().filter(|(path, _)| path.starts_with(root)).map(|(_, node)| match node {
            Node::File(content) => content.len() as u64,
            Node::Directory { .. } | Node::Image(..) => 0,
        });
        Some((id, used.sum()))
    }

    /// Whether something is at a path.
    pub(crate) fn has(&self, path: &Path) -> bool {
        self.nodes.contains_key(path)
    }

    /// Directories in the root, and all limits by project.
    pub(crate) fn adopted(&self) -> (Vec<String>, BTreeMap<u64, Option<u64>>) {
        let name = |path: PathBuf| path.to_string_lossy().into_owned();
        let children = self.children(Path::new("")).into_iter().map(name);
        (children.filter(|name| !name.starts_with('.') && !name.is_empty()).collect(), self.limits.clone())
    }

    /// Keys of the volumes' directories and of their limits.
    pub(crate) fn volumes(&self) -> (Vec<PathBuf>, Vec<Option<u64>>) {
        (self.children(Path::new("volumes")), self.limits.values().copied().collect())
    }

    /// The bytes of all block volumes, by key.
    pub(crate) fn images(&self) -> Vec<u64> {
        let images = self.nodes.iter().filter(|(path, _)| path.starts_with("volumes"));
        let bytes = images.filter_map(|(_, node)| match node {
            Node::Image(length, _) => Some(*length),
            _ => None,
        });
        bytes.collect()
    }

    /// Nothing but the drive's own record.
    pub(crate) fn is_empty_drive(&self) -> bool {
        let files = self.nodes.iter().filter(|(_, node)| matches!(node, Node::File(_)));
        let own = [".orlop/drive.copy.json", ".orlop/drive.json"].map(Path::new);
        files.map(|(path, _)| path.as_path()).eq(own)
            && self.volumes() == (Vec::new(), Vec::new())
            && self.nothing_half_done()
            && self.cleaning.is_empty()
    }

    /// Nothing put aside or frozen. (What the kernel still cleans up it finishes by itself.)
    pub(crate) fn nothing_half_done(&self) -> bool {
        self.children(Path::new(".orlop/trash")).is_empty()
            && self.children(Path::new(".orlop/frozen")).is_empty()
    }
}
