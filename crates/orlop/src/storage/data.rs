//! The data directory: its lock, its layout, and which nodes and drives it was last started with.

use std::fs::{DirBuilder, File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use drives::Source;
use linux::Files;
use rustix::fs::FlockOperation;
use serde::{Deserialize, Serialize};
use values::Bytes;

/// Why a data directory can't be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DataError {
    #[error("data directory {}: {source}; name a directory that root can write with --data-dir", path.display())]
    Create { path: PathBuf, source: std::io::Error },
    #[error("data directory {} is in use by another Orlop (process {owner}); stop that one, or name another directory with --data-dir", path.display())]
    InUse { path: PathBuf, owner: String },
    #[error("{}: {source}; restore it, or remove it to start with the drives named on the command line", path.display())]
    Layout { path: PathBuf, source: std::io::Error },
    #[error("removing {}: {source}; unmount what lies below it, then remove it by hand", path.display())]
    Remove { path: PathBuf, source: linux::Error },
    #[error("{} has format {format}, which is newer than this Orlop knows (1); start it with a newer Orlop", path.display())]
    Newer { path: PathBuf, format: u32 },
    #[error(
        "--nodes {asked} is less than the {known} nodes that this data directory has volumes on; start with --nodes {known}"
    )]
    FewerNodes { asked: usize, known: usize },
    #[error(
        "--loop-drive {asked} contradicts this data directory, whose loop drives have {}: drives don't change their size. \
         Leave --loop-drive out to go on as it is; to add a drive, name those first in this order",
        sizes(known)
    )]
    LoopDrive { asked: Bytes, known: Vec<u64> },
}

fn sizes(all: &[u64]) -> String {
    let all: Vec<String> = all.iter().map(|size| Bytes(*size).to_string()).collect();
    all.join(", ")
}

/// How long files may stay open after the process that opened them has ended.
const LAST_FILES: Duration = Duration::from_secs(5);

/// An open data directory; the lock goes with this value.
pub(crate) struct DataDir {
    path: PathBuf,
    lock: File,
}

/// What a start adds to and a restart finds: the nodes, and the drives of each in the order they were named.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Layout {
    format: u32,
    /// One entry a node, named `orlop-0`, `orlop-1`, ….
    pub(crate) nodes: Vec<Vec<Source>>,
    /// What the driver is called.
    #[serde(default)]
    pub(crate) driver: driver::Name,
}

/// A child process that has yet to exec holds the lock's file as well: closing it alone would not free it.
impl Drop for DataDir {
    fn drop(&mut self) {
        let _ = rustix::fs::flock(&self.lock, FlockOperation::Unlock);
    }
}

impl DataDir {
    /// Creates the directory (mode 0700) where it is missing and locks it against a second process.
    pub(crate) fn open(path: &Path) -> Result<DataDir, DataError> {
        let failed = |source| DataError::Create { path: path.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(failed)?;
        std::fs::set_permissions(path, Permissions::from_mode(0o700)).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        let mut options = OpenOptions::new();
        let mut lock = options
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path.join("lock"))
            .map_err(failed)?;
        let since = Instant::now();
        while let Err(error) = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            if error != rustix::io::Errno::WOULDBLOCK {
                return Err(failed(error.into()));
            }
            let mut owner = String::new();
            lock.rewind().and_then(|()| lock.read_to_string(&mut owner)).map_err(failed)?;
            // A program that a killed Orlop was about to start holds its files until the exec.
            if Path::new("/proc").join(&owner).exists() || since.elapsed() > LAST_FILES {
                return Err(DataError::InUse { path, owner });
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        lock.set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| write!(lock, "{}", std::process::id()))
            .map_err(failed)?;
        Ok(DataDir { path, lock })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path.join("store.redb")
    }

    pub(crate) fn credentials(&self) -> PathBuf {
        self.path.join("pki")
    }

    /// What containers must never see: objects with their secrets, keys, drive images.
    pub(crate) fn private(&self) -> Vec<PathBuf> {
        vec![self.path.clone()]
    }

    /// The root of one node: kubelet's directory layout lies below it.
    pub(crate) fn node(&self, node: &str) -> PathBuf {
        self.path.join("nodes").join(node)
    }

    /// Removes the directory and all that is in it; nothing may be mounted below it any more.
    pub(crate) fn remove(self) -> Result<(), DataError> {
        let path = self.path.clone();
        linux::Kernel.remove_tree(&path).map(drop).map_err(|source| DataError::Remove { path, source })
    }

    /// What was last written with [`DataDir::remember`]; no nodes in a new directory.
    pub(crate) fn layout(&self) -> Result<Layout, DataError> {
        let path = self.path.join("layout.json");
        let layout: Layout = match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| DataError::Layout { path: path.clone(), source: error.into() })?,
            Err(error) if error.kind() == ErrorKind::NotFound => {
                Layout { format: 1, nodes: Vec::new(), driver: driver::Name::default() }
            }
            Err(source) => return Err(DataError::Layout { path, source }),
        };
        if layout.format > 1 {
            return Err(DataError::Newer { path, format: layout.format });
        }
        Ok(layout)
    }

    /// Makes a layout durable, once all its drives are open: a device that was refused is not remembered.
    pub(crate) fn remember(&self, layout: &Layout) -> Result<(), DataError> {
        let path = self.path.join("layout.json");
        let write = || -> std::io::Result<()> {
            let new = self.path.join("layout.json.new");
            let mut file = File::create(&new)?;
            file.write_all(&serde_json::to_vec_pretty(layout)?)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)?;
            File::open(&self.path)?.sync_all()
        };
        write().map_err(|source| DataError::Layout { path: path.clone(), source })
    }
}

/// What the command line asks for.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked {
    /// How many nodes; none keeps what there is, or makes one.
    pub(crate) nodes: Option<usize>,
    /// Block devices, by path.
    pub(crate) devices: Vec<PathBuf>,
    /// Sizes of loop drives, in bytes.
    pub(crate) loop_drives: Vec<u64>,
    /// The driver's name; none keeps what it was.
    pub(crate) driver: Option<driver::Name>,
}

/// The drive that a node gets when none is named: a sparse file of this many bytes.
const DEFAULT_LOOP_DRIVE: u64 = 10 << 30;

impl Layout {
    /// The layout after a start with these arguments. Drives are dealt to the nodes in turn. What is known
    /// stays: the same command line again adds nothing, and a restart needs no drive arguments at all.
    pub(crate) fn with(&self, asked: &Asked, data_dir: &Path) -> Result<Layout, DataError> {
        let known = self.nodes.len();
        let nodes = asked.nodes.unwrap_or(known.max(1)).max(1);
        if nodes < known {
            return Err(DataError::FewerNodes { asked: nodes, known });
        }
        let mut layout = self.clone();
        layout.nodes.resize(nodes, Vec::new());
        layout.driver = asked.driver.unwrap_or(self.driver);
        for device in &asked.devices {
            let source = Source::Device(device.clone());
            if !layout.nodes.iter().flatten().any(|known| *known == source) {
                layout.fewest().push(source);
            }
        }
        let known = layout.loop_drives();
        if let Some((asked, _)) = asked.loop_drives.iter().zip(&known).find(|(asked, known)| asked != known) {
            return Err(DataError::LoopDrive { asked: Bytes(*asked), known });
        }
        for &size in asked.loop_drives.iter().skip(known.len()) {
            layout.add_loop_drive(None, size, data_dir);
        }
        for node in 0..nodes {
            if layout.nodes[node].is_empty() {
                layout.add_loop_drive(Some(node), DEFAULT_LOOP_DRIVE, data_dir);
            }
        }
        Ok(layout)
    }

    /// The sizes of the loop drives, in the order in which they were made, which is in their names.
    fn loop_drives(&self) -> Vec<u64> {
        let number = |path: &Path| path.file_stem()?.to_str()?.parse::<u64>().ok();
        let mut drives: Vec<_> = (self.nodes.iter().flatten())
            .filter_map(|source| match source {
                Source::LoopFile { path, size } => Some((number(path), *size)),
                Source::Device(_) => None,
            })
            .collect();
        drives.sort_by_key(|(number, _)| *number);
        drives.into_iter().map(|(_, size)| size).collect()
    }

    fn add_loop_drive(&mut self, node: Option<usize>, size: u64, data_dir: &Path) {
        let number = self.loop_drives().len();
        let path = data_dir.join("loop").join(format!("{number}.img"));
        let drives = match node {
            Some(node) => &mut self.nodes[node],
            None => self.fewest(),
        };
        drives.push(Source::LoopFile { path, size });
    }

    /// The drives of the first node that has the fewest.
    fn fewest(&mut self) -> &mut Vec<Source> {
        let at = (0..self.nodes.len()).min_by_key(|&node| self.nodes[node].len()).unwrap_or(0);
        &mut self.nodes[at]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn empty() -> Layout {
        Layout { format: 1, nodes: Vec::new(), driver: driver::Name::default() }
    }

    fn counts(layout: &Layout) -> Vec<usize> {
        layout.nodes.iter().map(Vec::len).collect()
    }

    #[test]
    fn drives_are_dealt_in_turn_and_a_restart_adds_nothing() {
        let asked = Asked {
            nodes: Some(2),
            devices: vec!["/dev/sdb".into()],
            loop_drives: vec![1 << 30; 3],
            ..Asked::default()
        };
        let layout = empty().with(&asked, Path::new("/d")).unwrap();
        assert_eq!(counts(&layout), [2, 2]);
        assert_eq!(layout.with(&asked, Path::new("/d")).unwrap(), layout, "the same command line again");
        assert_eq!(layout.with(&Asked::default(), Path::new("/d")).unwrap(), layout, "no arguments at all");
        let more = Asked { nodes: Some(3), ..asked };
        assert_eq!(
            counts(&layout.with(&more, Path::new("/d")).unwrap()),
            [2, 2, 1],
            "a new node gets a drive"
        );
    }

    #[test]
    fn a_loop_drive_of_another_size_is_refused() {
        let with = |layout: &Layout, nodes, sizes: &[u64]| {
            let asked = Asked { nodes, loop_drives: sizes.to_vec(), ..Asked::default() };
            layout.with(&asked, Path::new("/d"))
        };
        let layout = with(&empty(), Some(2), &[1 << 30]).unwrap();
        // The second node got one of 10Gi.
        for sizes in [&[][..], &[1 << 30], &[1 << 30, 10 << 30]] {
            assert_eq!(with(&layout, None, sizes).unwrap(), layout, "{sizes:?}");
        }
        for sizes in [&[2 << 30][..], &[1 << 30, 2 << 30], &[10 << 30, 1 << 30]] {
            let refused = with(&layout, None, sizes).unwrap_err().to_string();
            assert!(refused.contains("have 1Gi, 10Gi"), "{refused}");
        }
        let more = with(&layout, None, &[1 << 30, 10 << 30, 2 << 30]).unwrap();
        assert_eq!(more.loop_drives(), [1 << 30, 10 << 30, 2 << 30]);
    }

    /// The file as the first version wrote it.
    #[test]
    fn a_layout_of_format_1_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        std::fs::write(dir.path().join("layout.json"), include_str!("../../tests/formats/layout-1.json"))
            .unwrap();
        let layout = data.layout().unwrap();
        let device = |path: &str| Source::Device(path.into());
        let file = Source::LoopFile { path: "/var/lib/orlop/loop/0.img".into(), size: 1 << 30 };
        let expected = vec![vec![device("/dev/nvme1n1"), file], vec![device("/dev/nvme2n1")]];
        assert_eq!((&layout.nodes, layout.driver), (&expected, driver::Name::default()));
        data.remember(&layout).unwrap();
        assert_eq!(data.layout().unwrap(), layout);
    }

    #[test]
    fn a_node_without_drives_gets_one() {
        assert_eq!(counts(&empty().with(&Asked::default(), Path::new("/d")).unwrap()), [1]);
    }

    #[test]
    fn a_node_is_never_left_out() {
        let two = empty().with(&Asked { nodes: Some(2), ..Asked::default() }, Path::new("/d")).unwrap();
        let one = Asked { nodes: Some(1), ..Asked::default() };
        assert!(matches!(two.with(&one, Path::new("/d")), Err(DataError::FewerNodes { asked: 1, known: 2 })));
    }

    #[test]
    fn files_that_a_killed_owner_leaves_open_for_a_moment_are_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let mut ended = std::process::Command::new("true").spawn().unwrap();
        ended.wait().unwrap();
        std::fs::write(dir.path().join("lock"), ended.id().to_string()).unwrap();
        let left = File::open(dir.path().join("lock")).unwrap();
        rustix::fs::flock(&left, FlockOperation::NonBlockingLockExclusive).unwrap();
        let path = dir.path().to_owned();
        let opening = std::thread::spawn(move || DataDir::open(&path).map(drop));
        std::thread::sleep(Duration::from_millis(50));
        drop(left);
        opening.join().unwrap().unwrap();
    }

    #[test]
    fn one_process_owns_a_data_directory() {
        let dir = tempfile::tempdir().unwrap();
        let owner = DataDir::open(dir.path()).unwrap();
        assert_eq!(owner.path().metadata().unwrap().permissions().mode() & 0o777, 0o700);
        let second = DataDir::open(dir.path()).err().unwrap().to_string();
        assert!(second.contains("in use by another Orlop"), "{second}");
        assert!(second.contains(&std::process::id().to_string()), "{second}");
        // As a child process has it until its exec.
        let _inherited = owner.lock.try_clone().unwrap();
        drop(owner);
        DataDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_newer_layout_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let data = DataDir::open(dir.path()).unwrap();
        data.remember(&Layout { format: 2, ..empty() }).unwrap();
        assert!(matches!(data.layout(), Err(DataError::Newer { format: 2, .. })));
    }
}
