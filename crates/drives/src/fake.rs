//! A machine in memory that can fail at any call, crash, and lose power. What was not made durable is lost with the
//! power, as pessimistically as a file system may.

mod devices;
mod view;

use std::{
    collections::{BTreeMap, BTreeSet},
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use linux::{
    Attributes, BindSource, DeviceNumber, Error, Files, FilesystemMount, Mount, MountTable, Mounts, Obstacle,
    Result, Space, Target, TargetKind, Targets, Unmount,
};
use parking_lot::{Condvar, Mutex};

pub(crate) use view::View;
use view::{FileSystem, Node, PLAIN};

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
    /// Loop devices that can't write.
    readers: BTreeSet<PathBuf>,
    /// By the place where a volume is or was shown.
    marks: BTreeMap<PathBuf, String>,
    /// Disks that answer with errors.
    broken: BTreeSet<PathBuf>,
    stalled: Option<PathBuf>,
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
    /// From this call on the disk that it is about does not work.
    Break(usize),
    /// From this call on nothing ends on the disk that it is about, until that is released.
    Stall(usize),
    /// At this call a fault of ours shows.
    Panic(usize),
    /// What is unmounted next is in use for a moment.
    Hold,
}

/// A drive that is not in the machine.
pub(crate) struct Pulled(FileSystem);

/// Who has what for itself, by disk and path on it.
type Claimants = Arc<Mutex<BTreeMap<(PathBuf, PathBuf), Arc<()>>>>;

#[derive(Default)]
pub(crate) struct FakeHost {
    machine: Mutex<Machine>,
    released: Condvar,
    claims: Claimants,
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

    /// A drive as DirectPV leaves it, with these directories: name, project and that project's limit.
    pub(crate) fn furnish(
        &self,
        image: &Path,
        label: &str,
        uuid: &str,
        volumes: &[(&str, u32, Option<u64>)],
    ) {
        let mut disk = FileSystem::new("xfs", uuid, label);
        let view = &mut disk.now;
        view.nodes.insert(format!(".FSUUID.{uuid}").into(), Node::File(b".".into()));
        if label == "DIRECTPV" {
            let meta = format!("APP_NAME=directpv\nAPP_VERSION=v1beta1\nFSUUID={uuid}\n");
            view.nodes.insert(".directpv".into(), PLAIN);
            view.nodes.insert(".directpv/meta.info".into(), Node::File(meta.into()));
        }
        for (name, project, limit) in volumes {
            view.nodes.insert(name.into(), Node::Directory { subvolume: None, project: *project });
            view.nodes.insert(Path::new(name).join("data"), Node::File(name.as_bytes().into()));
            if limit.is_some() {
                view.limits.insert(u64::from(*project), *limit);
            }
        }
        disk.durable = disk.now.clone();
        let mut machine = self.machine.lock();
        let (root, inside) = machine.on(image);
        let directory = inside.parent().unwrap_or(Path::new("")).to_owned();
        for view in [&mut root.now, &mut root.durable] {
            view.nodes.insert(directory.clone(), PLAIN);
            view.nodes.insert(inside.clone(), Node::Image(SIZE, Vec::new()));
        }
        machine.disks.insert(image.to_owned(), disk);
    }

    /// The process is gone, and with it what it had for itself.
    pub(crate) fn kill(&self) {
        self.claims.lock().clear();
    }

    /// Counts changing calls from 0 again, and lets the fault happen.
    pub(crate) fn arm(&self, fault: Option<Fault>) {
        let mut machine = self.machine.lock();
        machine.calls = 0;
        machine.fault = fault;
    }

    /// The disk on which nothing ends now.
    pub(crate) fn stalled(&self) -> Option<PathBuf> {
        self.machine.lock().stalled.clone()
    }

    /// What is stalled goes on.
    pub(crate) fn release(&self) {
        let mut machine = self.machine.lock();
        machine.fault = None;
        machine.stalled = None;
        self.released.notify_all();
    }

    /// Changing calls since armed.
    pub(crate) fn calls(&self) -> usize {
        self.machine.lock().calls
    }

    /// Mounts and loop devices are gone, and so is what was not durable. A disk that was broken works again.
    pub(crate) fn lose_power(&self) {
        self.kill();
        let mut machine = self.machine.lock();
        for disk in machine.disks.values_mut() {
            disk.now = disk.durable.clone();
            // The kernel goes on cleaning up what was deleted.
            disk.now.cleaning.clear();
        }
        machine.mounts.truncate(1);
        machine.loops.clear();
        machine.readers.clear();
        machine.broken.clear();
        machine.fault = None;
    }

    /// Disks that were broken work again.
    pub(crate) fn mend(&self) {
        let mut machine = self.machine.lock();
        machine.broken.clear();
        machine.fault = None;
    }

    /// What is on a disk now.
    pub(crate) fn disk(&self, path: &Path) -> View {
        self.machine.lock().disks[path].now.clone()
    }

    pub(crate) fn loops(&self) -> usize {
        self.machine.lock().loops.len()
    }

    /// Someone pulls the drive out, with nothing mounted: the file is another one now.
    pub(crate) fn disk_taken_away(&self, path: &Path) -> Pulled {
        let mut machine = self.machine.lock();
        machine.mounts.truncate(1);
        Pulled(machine.disks.remove(path).expect("it was there"))
    }

    pub(crate) fn disk_given_back(&self, path: &Path, disk: Pulled) {
        let mut machine = self.machine.lock();
        machine.mounts.truncate(1);
        machine.disks.insert(path.to_owned(), disk.0);
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
        if machine.fault == Some(Fault::Stall(call)) {
            machine.stalled = Some(machine.locate(object).0);
        }
        while machine.stalled.is_some() && machine.stalled == Some(machine.locate(object).0) {
            self.released.wait(&mut machine);
        }
        assert!(machine.fault != Some(Fault::Panic(call)), "on purpose");
        if machine.fault == Some(Fault::Break(call)) {
            let disk = machine.locate(object).0;
            machine.broken.insert(disk);
        }
        let failed = || Err(Error::new(what, object.display(), io::Error::from_raw_os_error(5)));
        match machine.fault {
            Some(Fault::Fail(at)) if call == at => failed(),
            Some(Fault::Crash(at)) if call >= at => failed(),
            _ if machine.is_broken(object) => failed(),
            _ => change(&mut machine).map_err(|error| Error::new(what, object.display(), error)),
        }
    }

    /// Makes all on the disk of `place` durable.
    fn commit(&self, place: &Path) -> Result<()> {
        self.change("commit", place, |machine| {
            let (disk, _) = machine.on(place);
            disk.durable = disk.now.clone();
            Ok(())
        })
    }

    fn ask<T>(
        &self,
        what: &'static str,
        object: &Path,
        ask: impl FnOnce(&Machine) -> io::Result<T>,
    ) -> Result<T> {
        let machine = self.machine.lock();
        let crashed = matches!(machine.fault, Some(Fault::Crash(at)) if machine.calls > at);
        if crashed || machine.is_broken(object) {
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

    /// As `on`, where a file of this content can be made.
    fn writable(&mut self, file: &Path, content: &[u8]) -> io::Result<(&mut FileSystem, PathBuf)> {
        let (disk, inside) = self.on(file);
        if !disk.now.nodes.contains_key(inside.parent().unwrap_or(Path::new(""))) {
            return Err(no(io::ErrorKind::NotFound));
        }
        if let Some((id, used)) = disk.now.held_by(&inside)
            && let Some(Some(limit)) = disk.now.limits.get(&id)
            && used + content.len() as u64 > *limit
        {
            return Err(io::Error::from_raw_os_error(122));
        }
        Ok((disk, inside))
    }

    fn node(&self, path: &Path) -> Option<&Node> {
        let (disk, inside) = self.locate(path);
        self.disks[&disk].now.nodes.get(&inside)
    }

    /// Whether an object lies on a disk that does not work.
    fn is_broken(&self, object: &Path) -> bool {
        !self.broken.is_empty() && self.broken.contains(&self.locate(object).0)
    }

    fn disk_of(&self, device: &Path) -> PathBuf {
        self.loops.get(device).cloned().unwrap_or_else(|| device.to_owned())
    }

    fn mounted(&self, path: &Path) -> bool {
        self.mounts.iter().any(|mount| mount.target == path)
    }
}

impl Files for FakeHost {
    fn read(&self, file: &Path) -> Result<Option<Vec<u8>>> {
        self.ask("read", file, |machine| match machine.node(file) {
            Some(Node::File(content)) => Ok(Some(content.clone())),
            Some(Node::Image(_, content)) => Ok(Some(content.clone())),
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
            let (disk, inside) = machine.writable(file, content)?;
            disk.both(|view| {
                view.nodes.insert(inside.clone(), Node::File(content.to_owned()));
                Ok(())
            })
        })
    }

    fn write_ordered(&self, file: &Path, content: &[u8], _: u32) -> Result<()> {
        self.change("write", file, |machine| {
            let (disk, inside) = machine.writable(file, content)?;
            disk.now.nodes.insert(inside, Node::File(content.to_owned()));
            Ok(())
        })
    }

    fn remove_ordered(&self, file: &Path) -> Result<bool> {
        self.change("remove", file, |machine| {
            let (disk, inside) = machine.on(file);
            Ok(disk.now.nodes.remove(&inside).is_some())
        })
    }

    fn make_directory_ordered(&self, directory: &Path, _: u32) -> Result<()> {
        self.change("make", directory, |machine| {
            let (disk, inside) = machine.on(directory);
            disk.now.nodes.entry(inside).or_insert(PLAIN);
            Ok(())
        })
    }

    fn force_journal(&self, directory: &Path) -> Result<()> {
        self.commit(directory)
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.change("rename", from, |machine| {
            let target = machine.locate(to).1;
            let (disk, source) = machine.on(from);
            let nodes = &mut disk.now.nodes;
            if !nodes.contains_key(&source) {
                return Err(no(io::ErrorKind::NotFound));
            }
            if nodes.contains_key(&target) {
                return Err(no(io::ErrorKind::AlreadyExists));
            }
            let moved: Vec<PathBuf> =
                nodes.keys().filter(|path| path.starts_with(&source)).cloned().collect();
            for path in moved {
                let node = nodes.remove(&path).expect("just listed");
                let rest = path.strip_prefix(&source).expect("it starts with it");
                let path = if rest.as_os_str().is_empty() { target.clone() } else { target.join(rest) };
                nodes.insert(path, node);
            }
            Ok(())
        })
    }

    fn sync_filesystem(&self, mount: &Path) -> Result<()> {
        self.change("sync", mount, |machine| {
            let (disk, _) = machine.on(mount);
            disk.durable = disk.now.clone();
            Ok(())
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
            if matches!(disk.now.nodes.get(&inside), Some(Node::File(_) | Node::Image(..))) {
                return Err(no(io::ErrorKind::NotADirectory));
            }
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

    fn copy_tree(&self, from: &Path, to: &Path) -> Result<()> {
        self.change("copy", from, |machine| {
            let target = machine.locate(to).1;
            let (disk, source) = machine.on(from);
            disk.now.copy_below(&source, &target)
        })
    }

    fn clone_tree(&self, from: &Path, to: &Path) -> Result<()> {
        self.copy_tree(from, to)
    }

    fn make_image(&self, file: &Path, size: u64) -> Result<()> {
        self.change("write", file, |machine| {
            let (disk, inside) = machine.writable(file, b"")?;
            disk.both(|view| {
                view.nodes.insert(inside.clone(), Node::Image(size, Vec::new()));
                Ok(())
            })
        })
    }

    fn allocate(&self, file: &Path, size: u64) -> Result<()> {
        self.change("allocate", file, |machine| {
            let (disk, inside) = machine.on(file);
            if let Some((id, _)) = disk.now.held_by(&inside)
                && let Some(Some(limit)) = disk.now.limits.get(&id)
                && size > *limit
            {
                return Err(io::Error::from_raw_os_error(122));
            }
            match disk.now.nodes.entry(inside).or_insert(Node::Image(0, Vec::new())) {
                Node::Image(length, _) => *length = size.max(*length),
                _ => return Err(no(io::ErrorKind::InvalidInput)),
            }
            Ok(())
        })
    }

    fn cut(&self, file: &Path, size: u64) -> Result<()> {
        self.change("cut", file, |machine| {
            let (disk, inside) = machine.on(file);
            disk.both(|view| {
                if let Some(Node::Image(length, _)) = view.nodes.get_mut(&inside) {
                    *length = size.min(*length);
                }
                Ok(())
            })
        })
    }

    fn length(&self, file: &Path) -> Result<Option<u64>> {
        self.ask("look at", file, |machine| match machine.node(file) {
            Some(Node::Image(length, _)) => Ok(Some(*length)),
            Some(Node::File(content)) => Ok(Some(content.len() as u64)),
            Some(Node::Directory { .. }) => Err(no(io::ErrorKind::IsADirectory)),
            None => Ok(None),
        })
    }

    fn space(&self, _: &Path) -> Result<Space> {
        Ok(Space { size: SIZE, available: SIZE, inodes: 0, inodes_free: 1 << 20 })
    }
}

impl Mounts for FakeHost {
    fn mount_table(&self) -> Result<MountTable> {
        self.ask("read", Path::new("/mounts"), |machine| {
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

    fn unmount(&self, target: &Path, how: Unmount) -> Result<bool> {
        let claimed = self.claims.lock().keys().cloned().collect::<Vec<_>>();
        self.change("unmount", target, |machine| {
            if how == Unmount::Plain && claimed.contains(&machine.locate(target)) {
                return Err(no(io::ErrorKind::ResourceBusy));
            }
            if machine.fault.take_if(|fault| *fault == Fault::Hold).is_some() {
                return Err(no(io::ErrorKind::ResourceBusy));
            }
            let at = machine.mounts.iter().rposition(|mount| mount.target == target);
            Ok(at.map(|at| machine.mounts.remove(at)).is_some())
        })
    }
}

impl Targets for FakeHost {
    fn show_at(
        &self,
        source: BindSource<'_>,
        target: &Target,
        kind: TargetKind,
        mark: &str,
        attributes: Attributes,
    ) -> Result<Option<Obstacle>> {
        let at = &target.at;
        let parent = at.parent().unwrap_or(at);
        if !self.exists(parent)? {
            self.make_directory(parent, 0o750)?;
        }
        let obstacle = self.ask("look at", at, |machine| {
            Ok(match (machine.node(at), kind) {
                (None, _) => None,
                (Some(Node::Directory { .. }), TargetKind::Directory) => {
                    let (disk, inside) = machine.locate(at);
                    let children = machine.disks[&disk].now.children(&inside);
                    (!children.is_empty()).then_some(Obstacle::FullDirectory)
                }
                (Some(Node::Directory { .. }), TargetKind::File) => Some(Obstacle::Directory),
                (Some(_), TargetKind::Directory) => Some(Obstacle::File),
                (Some(Node::File(content)), TargetKind::File) if content.is_empty() => None,
                (Some(_), TargetKind::File) => Some(Obstacle::FullFile),
            })
        })?;
        if obstacle.is_some() {
            return Ok(obstacle);
        }
        if !self.exists(at)? {
            match kind {
                TargetKind::Directory => self.make_directory(at, 0o750)?,
                TargetKind::File => self.write_durable(at, b"", 0o600)?,
            }
        }
        self.change("mark", at, |machine| {
            machine.marks.insert(at.clone(), mark.to_owned());
            Ok(())
        })?;
        self.bind(source, at, attributes).map(|()| None)
    }

    fn unmount_at(&self, target: &Target) -> Result<bool> {
        self.unmount(&target.at, Unmount::Plain)
    }

    fn mark_at(&self, target: &Target) -> Result<Option<String>> {
        self.ask("look at", &target.at, |machine| {
            Ok(machine.node(&target.at).and_then(|_| machine.marks.get(&target.at)).cloned())
        })
    }

    fn remove_at(&self, target: &Target) -> Result<bool> {
        let removed = match self.remove_directory(&target.at) {
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => self.remove_file(&target.at)?,
            removed => removed?,
        };
        self.machine.lock().marks.remove(&target.at);
        Ok(removed)
    }
}

fn number(position: Option<usize>) -> DeviceNumber {
    DeviceNumber { major: 7, minor: position.map_or(u32::MAX, |position| position as u32) }
}
