//! A machine in memory that can fail at any call, crash, and lose power. What was not made durable is lost with the
//! power, as pessimistically as a file system may.

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use linux::{
    Attributes, BindSource, BlockDevice, BlockDevices, Btrfs, DeviceNumber, Error, Files, FilesystemMount,
    LoopDevices, Mount, MountTable, Mounts, Output, Programs, ProjectId, ProjectQuota, ProjectUsage, Result,
    Space, SubvolumeId, SubvolumeQuota, Unmount,
};
use parking_lot::Mutex;

#[derive(Clone, Debug, PartialEq)]
enum Node {
    Directory { subvolume: Option<u64>, project: u32 },
    File(Vec<u8>),
}

const PLAIN: Node = Node::Directory { subvolume: None, project: 0 };

/// A file system as someone sees it.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct View {
    nodes: BTreeMap<PathBuf, Node>,
    limits: BTreeMap<u64, Option<u64>>,
    cleaning: BTreeSet<u64>,
}

#[derive(Clone, Debug, Default)]
struct FileSystem {
    kind: String,
    uuid: String,
    label: String,
    now: View,
    durable: View,
    next: u64,
}

impl FileSystem {
    fn new(kind: &str, uuid: &str, label: &str) -> Self {
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

    /// Does it now and for good; what the durable view never saw it can't change.
    fn both(&mut self, change: impl Fn(&mut View) -> io::Result<()>) -> io::Result<()> {
        change(&mut self.now)?;
        let _ = change(&mut self.durable);
        Ok(())
    }
}

#[derive(Clone)]
struct Mounted {
    target: PathBuf,
    disk: PathBuf,
    root: PathBuf,
    options: Vec<String>,
}

#[derive(Default)]
struct Machine {
    /// By the image file or device; the machine's own root is `/`.
    disks: BTreeMap<PathBuf, FileSystem>,
    mounts: Vec<Mounted>,
    loops: BTreeMap<PathBuf, PathBuf>,
    calls: usize,
    fault: Option<Fault>,
}

/// What goes wrong, at which call that changes something.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Fault {
    /// This call fails, once.
    Fail(usize),
    /// From this call on nothing works: the process is gone.
    Crash(usize),
}

#[derive(Default)]
pub(crate) struct FakeHost {
    machine: Mutex<Machine>,
}

const SIZE: u64 = 1 << 30;

impl FakeHost {
    pub(crate) fn new() -> Self {
        let host = Self::default();
        {
            let mut machine = host.machine.lock();
            machine.disks.insert("/".into(), FileSystem::new("root", "", ""));
            machine.mounts.push(Mounted {
                target: "/".into(),
                disk: "/".into(),
                root: PathBuf::new(),
                options: Vec::new(),
            });
        }
        host
    }

    /// Counts changing calls from 0 again, and lets the fault happen.
    pub(crate) fn arm(&self, fault: Option<Fault>) {
        let mut machine = self.machine.lock();
        machine.calls = 0;
        machine.fault = fault;
    }

    /// Changing calls since armed.
    pub(crate) fn calls(&self) -> usize {
        self.machine.lock().calls
    }

    /// Mounts and loop devices are gone, and so is what was not durable.
    pub(crate) fn lose_power(&self) {
        let mut machine = self.machine.lock();
        for disk in machine.disks.values_mut() {
            disk.now = disk.durable.clone();
            // The kernel goes on cleaning up what was deleted.
            disk.now.cleaning.clear();
        }
        machine.mounts.truncate(1);
        machine.loops.clear();
        machine.fault = None;
    }

    /// What is on a disk now.
    pub(crate) fn disk(&self, path: &Path) -> View {
        self.machine.lock().disks[path].now.clone()
    }

    pub(crate) fn mounts(&self) -> usize {
        self.machine.lock().mounts.len() - 1
    }

    /// Counts a call that changes something.
    fn change<T>(
        &self,
        what: &'static str,
        object: &Path,
        change: impl FnOnce(&mut Machine) -> io::Result<T>,
    ) -> Result<T> {
        let mut machine = self.machine.lock();
        let call = machine.calls;
        machine.calls += 1;
        let failed = || Err(Error::new(what, object.display(), io::Error::from_raw_os_error(5)));
        match machine.fault {
            Some(Fault::Fail(at)) if call == at => failed(),
            Some(Fault::Crash(at)) if call >= at => failed(),
            _ => change(&mut machine).map_err(|error| Error::new(what, object.display(), error)),
        }
    }

    fn ask<T>(
        &self,
        what: &'static str,
        object: &Path,
        ask: impl FnOnce(&Machine) -> io::Result<T>,
    ) -> Result<T> {
        let machine = self.machine.lock();
        if matches!(machine.fault, Some(Fault::Crash(at)) if machine.calls > at) {
            return Err(Error::new(what, object.display(), io::Error::from_raw_os_error(5)));
        }
        ask(&machine).map_err(|error| Error::new(what, object.display(), error))
    }
}

fn no(kind: io::ErrorKind) -> io::Error {
    kind.into()
}

impl Machine {
    /// The disk and the path on it.
    fn locate(&self, path: &Path) -> (PathBuf, PathBuf) {
        let mount = self
            .mounts
            .iter()
            .rev()
            .filter(|mount| path.starts_with(&mount.target))
            .max_by_key(|mount| mount.target.components().count())
            .expect("the root is always mounted");
        let rest = path.strip_prefix(&mount.target).expect("it starts with it");
        (mount.disk.clone(), mount.root.join(rest))
    }

    fn on(&mut self, path: &Path) -> (&mut FileSystem, PathBuf) {
        let (disk, inside) = self.locate(path);
        (self.disks.get_mut(&disk).expect("mounted disks exist"), inside)
    }

    fn node(&self, path: &Path) -> Option<&Node> {
        let (disk, inside) = self.locate(path);
        self.disks[&disk].now.nodes.get(&inside)
    }

    fn disk_of(&self, device: &Path) -> PathBuf {
        self.loops.get(device).cloned().unwrap_or_else(|| device.to_owned())
    }

    fn mounted(&self, path: &Path) -> bool {
        self.mounts.iter().any(|mount| mount.target == path)
    }
}

impl View {
    fn children(&self, directory: &Path) -> Vec<PathBuf> {
        self.nodes.keys().filter(|path| path.parent() == Some(directory)).cloned().collect()
    }

    fn remove_below(&mut self, directory: &Path) {
        self.nodes.retain(|path, _| !path.starts_with(directory));
    }

    /// The subvolume that holds a path, and what it holds altogether.
    fn held_by(&self, path: &Path) -> Option<(u64, u64)> {
        let (root, id) = path.ancestors().find_map(|path| match self.nodes.get(path) {
            Some(Node::Directory { subvolume: Some(id), .. }) => Some((path, *id)),
            Some(Node::Directory { project, .. }) if *project != 0 => Some((path, u64::from(*project))),
            _ => None,
        })?;
        let used = self.nodes.iter().filter(|(path, _)| path.starts_with(root)).map(|(_, node)| match node {
            Node::File(content) => content.len() as u64,
            Node::Directory { .. } => 0,
        });
        Some((id, used.sum()))
    }

    /// Keys of the volumes' directories and of their limits.
    pub(crate) fn volumes(&self) -> (Vec<PathBuf>, Vec<Option<u64>>) {
        (self.children(Path::new("volumes")), self.limits.values().copied().collect())
    }

    /// Nothing but the drive's own record.
    pub(crate) fn is_empty_drive(&self) -> bool {
        let files = self.nodes.iter().filter(|(_, node)| matches!(node, Node::File(_)));
        files.map(|(path, _)| path.as_path()).eq([Path::new(".orlop/drive.json")])
            && self.volumes() == (Vec::new(), Vec::new())
            && self.children(Path::new(".orlop/trash")).is_empty()
            && self.cleaning.is_empty()
    }
}

impl Files for FakeHost {
    fn read(&self, file: &Path) -> Result<Option<Vec<u8>>> {
        self.ask("read", file, |machine| match machine.node(file) {
            Some(Node::File(content)) => Ok(Some(content.clone())),
            Some(_) => Err(no(io::ErrorKind::IsADirectory)),
            None => Ok(None),
        })
    }

    fn list(&self, directory: &Path) -> Result<Vec<OsString>> {
        self.ask("list", directory, |machine| {
            let (disk, inside) = machine.locate(directory);
            let children = machine.disks[&disk].now.children(&inside);
            Ok(children.iter().filter_map(|path| path.file_name().map(OsStr::to_owned)).collect())
        })
    }

    fn exists(&self, path: &Path) -> Result<bool> {
        self.ask("look at", path, |machine| Ok(machine.node(path).is_some()))
    }

    fn real_path(&self, path: &Path) -> Result<PathBuf> {
        self.ask("find", path, |machine| match path.parent() {
            Some(parent) if machine.node(parent).is_none() => Err(no(io::ErrorKind::NotFound)),
            _ => Ok(path.to_owned()),
        })
    }

    fn make_directory(&self, directory: &Path, _: u32) -> Result<()> {
        self.change("make", directory, |machine| {
            let (disk, inside) = machine.on(directory);
            disk.both(|view| {
                let missing: Vec<PathBuf> = inside.ancestors().map(Path::to_owned).collect();
                for path in missing {
                    view.nodes.entry(path).or_insert(PLAIN);
                }
                Ok(())
            })
        })
    }

    fn write_durable(&self, file: &Path, content: &[u8], _: u32) -> Result<()> {
        self.change("write", file, |machine| {
            let (disk, inside) = machine.on(file);
            if !disk.now.nodes.contains_key(inside.parent().unwrap_or(Path::new(""))) {
                return Err(no(io::ErrorKind::NotFound));
            }
            if let Some((id, used)) = disk.now.held_by(&inside)
                && let Some(Some(limit)) = disk.now.limits.get(&id)
                && used + content.len() as u64 > *limit
            {
                return Err(io::Error::from_raw_os_error(122));
            }
            disk.both(|view| {
                view.nodes.insert(inside.clone(), Node::File(content.to_owned()));
                Ok(())
            })
        })
    }

    fn rename_durable(&self, from: &Path, to: &Path) -> Result<()> {
        self.change("rename", from, |machine| {
            let target = machine.locate(to).1;
            let (disk, source) = machine.on(from);
            disk.both(|view| {
                if !view.nodes.contains_key(&source) {
                    return Err(no(io::ErrorKind::NotFound));
                }
                if view.nodes.contains_key(&target) {
                    return Err(no(io::ErrorKind::AlreadyExists));
                }
                let moved: Vec<PathBuf> =
                    view.nodes.keys().filter(|path| path.starts_with(&source)).cloned().collect();
                for path in moved {
                    let node = view.nodes.remove(&path).expect("just listed");
                    let rest = path.strip_prefix(&source).expect("it starts with it");
                    let path = if rest.as_os_str().is_empty() { target.clone() } else { target.join(rest) };
                    view.nodes.insert(path, node);
                }
                Ok(())
            })
        })
    }

    fn remove_file(&self, file: &Path) -> Result<bool> {
        self.change("remove", file, |machine| {
            let (disk, inside) = machine.on(file);
            let there = disk.now.nodes.contains_key(&inside);
            disk.both(|view| {
                view.nodes.remove(&inside);
                Ok(())
            })?;
            Ok(there)
        })
    }

    fn remove_directory(&self, directory: &Path) -> Result<bool> {
        self.change("remove", directory, |machine| {
            if machine.mounted(directory) {
                return Err(io::Error::from_raw_os_error(16));
            }
            let (disk, inside) = machine.on(directory);
            if !disk.now.children(&inside).is_empty() {
                return Err(no(io::ErrorKind::DirectoryNotEmpty));
            }
            Ok(disk.now.nodes.remove(&inside).is_some())
        })
    }

    fn remove_tree(&self, directory: &Path) -> Result<bool> {
        self.change("remove", directory, |machine| {
            let (disk, inside) = machine.on(directory);
            let there = disk.now.nodes.contains_key(&inside);
            disk.now.remove_below(&inside);
            Ok(there)
        })
    }

    fn make_image(&self, file: &Path, _: u64) -> Result<()> {
        self.write_durable(file, b"", 0o600)
    }

    fn space(&self, _: &Path) -> Result<Space> {
        Ok(Space { size: SIZE, available: SIZE, inodes: 0, inodes_free: 1 << 20 })
    }
}

impl Mounts for FakeHost {
    fn mount_table(&self) -> Result<MountTable> {
        self.ask("read", Path::new("mounts"), |machine| {
            let mount = |(id, mounted): (usize, &Mounted)| Mount {
                id: id as u64,
                parent: 0,
                device: number(machine.disks.keys().position(|disk| *disk == mounted.disk)),
                root: Path::new("/").join(&mounted.root),
                target: mounted.target.clone(),
                options: mounted.options.clone(),
                filesystem: machine.disks[&mounted.disk].kind.clone(),
                source: machine
                    .loops
                    .iter()
                    .find(|(_, file)| **file == mounted.disk)
                    .map_or_else(|| mounted.disk.clone(), |(device, _)| device.clone()),
                super_options: Vec::new(),
            };
            Ok(MountTable::new(machine.mounts.iter().enumerate().map(mount).collect()))
        })
    }

    fn bind(&self, source: BindSource<'_>, target: &Path, attributes: Attributes) -> Result<()> {
        let BindSource::Path(source) = source else { return Err(Error::because("bind", "fd", "not faked")) };
        self.change("bind", target, |machine| {
            let (disk, root) = machine.locate(source);
            if machine.node(source).is_none() || machine.node(target).is_none() {
                return Err(no(io::ErrorKind::NotFound));
            }
            let options = attributes.read_only.then(|| "ro".to_owned()).into_iter().collect();
            machine.mounts.push(Mounted { target: target.to_owned(), disk, root, options });
            Ok(())
        })
    }

    fn mount(&self, what: &FilesystemMount<'_>, target: &Path) -> Result<()> {
        self.change("mount", target, |machine| {
            let disk = machine.disk_of(Path::new(what.source));
            if machine.disks.get(&disk).is_none_or(|disk| disk.kind != what.filesystem) {
                return Err(no(io::ErrorKind::InvalidInput));
            }
            let root = PathBuf::new();
            machine.mounts.push(Mounted { target: target.to_owned(), disk, root, options: Vec::new() });
            Ok(())
        })
    }

    fn unmount(&self, target: &Path, _: Unmount) -> Result<bool> {
        self.change("unmount", target, |machine| {
            let at = machine.mounts.iter().rposition(|mount| mount.target == target);
            Ok(at.map(|at| machine.mounts.remove(at)).is_some())
        })
    }
}

fn number(position: Option<usize>) -> DeviceNumber {
    DeviceNumber { major: 7, minor: position.map_or(u32::MAX, |position| position as u32) }
}

impl BlockDevices for FakeHost {
    fn block_device(&self, path: &Path) -> Result<BlockDevice> {
        self.ask("look at", path, |machine| {
            let disk = machine.disk_of(path);
            if !machine.loops.contains_key(path) {
                return Err(no(io::ErrorKind::NotFound));
            }
            Ok(BlockDevice {
                path: path.to_owned(),
                size: SIZE,
                mounted_at: machine
                    .mounts
                    .iter()
                    .filter(|mount| mount.disk == disk)
                    .map(|mount| mount.target.clone())
                    .collect(),
                backing_file: Some(disk),
                ..BlockDevice::default()
            })
        })
    }

    fn read_edges(&self, device: &Path) -> Result<(Vec<u8>, Vec<u8>)> {
        self.ask("read", device, |machine| {
            let mut first = vec![0; 0x10400];
            if let Some(disk) = machine.disks.get(&machine.disk_of(device)) {
                let uuid = uuid::Uuid::parse_str(&disk.uuid).expect("mkfs got a UUID");
                let (magic, magic_at, uuid_at, label_at) = match disk.kind.as_str() {
                    "btrfs" => (&b"_BHRfS_M"[..], 0x10040, 0x10020, 0x1012b),
                    _ => (&b"XFSB"[..], 0, 32, 108),
                };
                first[magic_at..magic_at + magic.len()].copy_from_slice(magic);
                first[uuid_at..uuid_at + 16].copy_from_slice(uuid.as_bytes());
                first[label_at..label_at + disk.label.len()].copy_from_slice(disk.label.as_bytes());
            }
            Ok((first, Vec::new()))
        })
    }

    fn check_exclusive(&self, device: &Path) -> Result<()> {
        self.ask("take", device, |_| Ok(()))
    }
}

impl LoopDevices for FakeHost {
    fn attach_loop(&self, file: &Path) -> Result<PathBuf> {
        self.change("attach", file, |machine| {
            if machine.node(file).is_none() {
                return Err(no(io::ErrorKind::NotFound));
            }
            if let Some((device, _)) = machine.loops.iter().find(|(_, attached)| *attached == file) {
                return Ok(device.clone());
            }
            let free = (0..).map(|number| PathBuf::from(format!("/dev/loop{number}")));
            let device =
                free.into_iter().find(|device| !machine.loops.contains_key(device)).expect("endless");
            machine.loops.insert(device.clone(), file.to_owned());
            Ok(device)
        })
    }

    fn detach_loop(&self, device: &Path) -> Result<bool> {
        self.change("detach", device, |machine| Ok(machine.loops.remove(device).is_some()))
    }

    fn loop_of(&self, file: &Path) -> Result<Option<PathBuf>> {
        self.ask("find", file, |machine| {
            Ok(machine.loops.iter().find(|(_, attached)| *attached == file).map(|(device, _)| device.clone()))
        })
    }

    fn refresh_loop(&self, _: &Path) -> Result<()> {
        Ok(())
    }
}

impl Programs for FakeHost {
    fn run(&self, program: &str, arguments: &[&OsStr], _: Duration) -> Result<Output> {
        let after = |flag: &str| {
            let at = arguments.iter().position(|argument| *argument == flag);
            at.and_then(|at| arguments.get(at + 1)).map(|value| value.to_string_lossy().into_owned())
        };
        let device = Path::new(arguments.last().copied().unwrap_or_default());
        self.change("run", device, |machine| {
            let (kind, uuid) = match program {
                "mkfs.btrfs" => ("btrfs", after("-U")),
                "mkfs.xfs" => ("xfs", after("-m").map(|value| value.replace("uuid=", ""))),
                _ => return Err(no(io::ErrorKind::NotFound)),
            };
            let label = after("-L").unwrap_or_default();
            let disk = machine.disk_of(device);
            machine.disks.insert(disk, FileSystem::new(kind, &uuid.unwrap_or_default(), &label));
            Ok(Output::default())
        })
    }
}

impl Btrfs for FakeHost {
    fn create_subvolume(&self, path: &Path, _: u32) -> Result<SubvolumeId> {
        self.change("create subvolume", path, |machine| {
            let (disk, inside) = machine.on(path);
            if disk.now.nodes.contains_key(&inside) {
                return Err(no(io::ErrorKind::AlreadyExists));
            }
            disk.next += 1;
            disk.now.nodes.insert(inside, Node::Directory { subvolume: Some(disk.next), project: 0 });
            Ok(SubvolumeId(disk.next))
        })
    }

    fn delete_subvolume(&self, path: &Path) -> Result<Option<SubvolumeId>> {
        self.change("delete subvolume", path, |machine| {
            let (disk, inside) = machine.on(path);
            match disk.now.nodes.get(&inside) {
                None => Ok(None),
                Some(Node::Directory { subvolume: Some(id), .. }) => {
                    let id = *id;
                    disk.now.remove_below(&inside);
                    disk.now.cleaning.insert(id);
                    Ok(Some(SubvolumeId(id)))
                }
                Some(_) => Err(no(io::ErrorKind::InvalidInput)),
            }
        })
    }

    fn subvolume_id(&self, path: &Path) -> Result<SubvolumeId> {
        self.ask("identify", path, |machine| match machine.node(path) {
            Some(Node::Directory { subvolume: Some(id), .. }) => Ok(SubvolumeId(*id)),
            _ => Err(no(io::ErrorKind::NotFound)),
        })
    }

    fn wait_for_cleaning(&self, mount: &Path, id: SubvolumeId) -> Result<()> {
        self.change("wait", mount, |machine| {
            let (disk, _) = machine.on(mount);
            // Waiting commits.
            disk.now.cleaning.remove(&id.0);
            disk.durable = disk.now.clone();
            Ok(())
        })
    }

    fn enable_simple_quota(&self, mount: &Path) -> Result<()> {
        self.change("enable quota", mount, |_| Ok(()))
    }

    fn limit_subvolume(&self, mount: &Path, id: SubvolumeId, limit: Option<u64>) -> Result<()> {
        self.change("limit", mount, |machine| {
            machine.on(mount).0.now.limits.insert(id.0, limit);
            Ok(())
        })
    }

    fn subvolume_quota(&self, mount: &Path, id: SubvolumeId) -> Result<Option<SubvolumeQuota>> {
        self.ask("ask", mount, |machine| {
            let (disk, _) = machine.locate(mount);
            let limit = machine.disks[&disk].now.limits.get(&id.0);
            Ok(limit.map(|limit| SubvolumeQuota { used: 0, limit: *limit }))
        })
    }

    fn remove_subvolume_quota(&self, mount: &Path, id: SubvolumeId) -> Result<()> {
        self.change("remove quota", mount, |machine| {
            let (disk, _) = machine.on(mount);
            if disk.now.cleaning.contains(&id.0) {
                return Err(io::Error::from_raw_os_error(16));
            }
            disk.now.limits.remove(&id.0);
            Ok(())
        })
    }

    fn grow_btrfs(&self, _: &Path) -> Result<()> {
        Ok(())
    }

    fn sync_filesystem(&self, mount: &Path) -> Result<()> {
        self.change("sync", mount, |machine| {
            let (disk, _) = machine.on(mount);
            disk.durable = disk.now.clone();
            Ok(())
        })
    }
}

impl ProjectQuota for FakeHost {
    fn set_project(&self, directory: &Path, wanted: ProjectId) -> Result<()> {
        self.change("set project", directory, |machine| {
            let (disk, inside) = machine.on(directory);
            match disk.now.nodes.get_mut(&inside) {
                Some(Node::Directory { project, .. }) => *project = wanted.0,
                _ => return Err(no(io::ErrorKind::NotFound)),
            }
            Ok(())
        })
    }

    fn project(&self, directory: &Path) -> Result<ProjectId> {
        self.ask("project", directory, |machine| match machine.node(directory) {
            Some(Node::Directory { project, .. }) => Ok(ProjectId(*project)),
            _ => Err(no(io::ErrorKind::NotFound)),
        })
    }

    fn limit_project(&self, mount: &Path, project: ProjectId, limit: Option<u64>) -> Result<()> {
        self.change("limit", mount, |machine| {
            let (disk, _) = machine.on(mount);
            match limit {
                Some(_) => disk.now.limits.insert(project.0.into(), limit),
                None => disk.now.limits.remove(&project.0.into()),
            };
            Ok(())
        })
    }

    fn project_usage(&self, mount: &Path, project: ProjectId) -> Result<ProjectUsage> {
        self.ask("ask", mount, |machine| {
            let (disk, _) = machine.locate(mount);
            let limit = machine.disks[&disk].now.limits.get(&u64::from(project.0)).copied().flatten();
            Ok(ProjectUsage { used: 0, limit, inodes: 1 })
        })
    }
}
