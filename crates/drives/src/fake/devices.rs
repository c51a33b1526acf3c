//! The devices of the machine in memory, and what its file systems count.

use std::{
    collections::btree_map::Entry,
    ffi::OsStr,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use linux::{
    BlockDevice, BlockDevices, Btrfs, Claim, Claimed, Claims, Error, LogicalVolume, LogicalVolumes,
    LoopDevice, LoopDevices, Making, Output, Programs, ProjectId, ProjectQuota, ProjectUsage, Result,
    SubvolumeId, SubvolumeQuota, VolumeGroup,
};

use super::{FakeHost, FileSystem, Machine, Node, SIZE, no};

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

impl Claims for FakeHost {
    fn claim(&self, path: &Path) -> Result<Claimed> {
        let at = self.ask("claim", path, |machine| match machine.node(path) {
            Some(_) => Ok(machine.locate(path)),
            None => Err(no(io::ErrorKind::NotFound)),
        })?;
        let (claims, token) = (self.claims.clone(), Arc::new(()));
        match claims.lock().entry(at.clone()) {
            Entry::Occupied(_) => return Ok(Claimed::Theirs { holder: Some("somebody".to_owned()) }),
            Entry::Vacant(free) => free.insert(token.clone()),
        };
        Ok(Claimed::Ours(Claim::new(Held { claims, at, token })))
    }

    fn sign(&self, path: &Path, _: &str) -> Result<()> {
        self.ask("sign", path, |_| Ok(()))
    }
}

/// Gives a claim up, unless it ended with its process.
struct Held {
    claims: super::Claimants,
    at: (PathBuf, PathBuf),
    token: Arc<()>,
}

impl Drop for Held {
    fn drop(&mut self) {
        let mut claims = self.claims.lock();
        if claims.get(&self.at).is_some_and(|token| Arc::ptr_eq(token, &self.token)) {
            claims.remove(&self.at);
        }
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
            let device = machine.free_loop();
            machine.loops.insert(device.clone(), file.to_owned());
            Ok(device)
        })
    }

    fn attach_fixed_loop(&self, file: &Path, read_only: bool) -> Result<PathBuf> {
        self.change("attach", file, |machine| {
            if machine.node(file).is_none() {
                return Err(no(io::ErrorKind::NotFound));
            }
            let readers = machine.readers.clone();
            let same = |(device, attached): &(&PathBuf, &PathBuf)| {
                *attached == file && readers.contains(*device) == read_only
            };
            if let Some((device, _)) = machine.loops.iter().find(same) {
                return Ok(device.clone());
            }
            let device = machine.free_loop();
            machine.loops.insert(device.clone(), file.to_owned());
            if read_only {
                machine.readers.insert(device.clone());
            }
            Ok(device)
        })
    }

    fn loops_of(&self, file: &Path) -> Result<Vec<LoopDevice>> {
        self.ask("find", file, |machine| {
            let attached = machine.loops.iter().filter(|(_, attached)| *attached == file);
            let shown = |(device, _): (&PathBuf, &PathBuf)| LoopDevice {
                device: device.clone(),
                read_only: machine.readers.contains(device),
                leaving: false,
            };
            Ok(attached.map(shown).collect())
        })
    }

    fn detach_loop(&self, device: &Path) -> Result<bool> {
        self.change("detach", device, |machine| {
            machine.readers.remove(device);
            Ok(machine.loops.remove(device).is_some())
        })
    }

    fn loop_of(&self, file: &Path) -> Result<Option<PathBuf>> {
        self.ask("find", file, |machine| {
            Ok(machine.loops.iter().find(|(_, attached)| *attached == file).map(|(device, _)| device.clone()))
        })
    }

    fn refresh_loop(&self, device: &Path) -> Result<()> {
        self.change("refresh", device, |_| Ok(()))
    }
}

impl Machine {
    /// The first free device; its node stays, as the kernel's does.
    fn free_loop(&mut self) -> PathBuf {
        let mut all = (0..).map(|number| PathBuf::from(format!("/dev/loop{number}")));
        let device = all.find(|device| !self.loops.contains_key(device)).expect("endless");
        let (root, inside) = self.on(&device);
        root.now.nodes.insert(inside.clone(), Node::File(Vec::new()));
        root.durable.nodes.insert(inside, Node::File(Vec::new()));
        device
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

    fn freeze_subvolume(&self, source: &Path, to: &Path) -> Result<SubvolumeId> {
        self.change("freeze subvolume", to, |machine| {
            let target = machine.locate(to).1;
            let (disk, inside) = machine.on(source);
            if disk.now.nodes.contains_key(&target) {
                return Err(no(io::ErrorKind::AlreadyExists));
            }
            disk.next += 1;
            disk.now.copy_below(&inside, &target)?;
            disk.now.nodes.insert(target, Node::Directory { subvolume: Some(disk.next), project: 0 });
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
            disk.now.cleaning.remove(&id.0);
            Ok(())
        })
    }

    fn commit_transaction(&self, mount: &Path) -> Result<()> {
        self.commit(mount)
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
            let view = &machine.disks[&disk].now;
            let limit = view.limits.get(&u64::from(project.0)).copied().flatten();
            let counted =
                |node: &&Node| matches!(node, Node::Directory { project: it, .. } if *it == project.0);
            let inodes = view.nodes.values().filter(counted).count() as u64;
            Ok(ProjectUsage { used: 0, limit, inodes })
        })
    }
}

/// The machine in memory has no device mapper: what LVM does is tried on a real one.
impl LogicalVolumes for FakeHost {
    fn group_on(&self, _: &Path) -> Result<Option<VolumeGroup>> {
        Ok(None)
    }

    fn make_group(&self, device: &Path, _: &str, _: &[&str]) -> Result<()> {
        Err(Error::because("make a volume group on", device.display(), "there is no device mapper"))
    }

    fn activate_group(&self, _: &str, _: bool) -> Result<()> {
        self.has_device_mapper("linear")
    }

    fn logical_volumes(&self, _: &str) -> Result<Vec<LogicalVolume>> {
        Ok(Vec::new())
    }

    fn make_logical_volume(&self, _: &str, _: &str, _: Making<'_>, _: &str) -> Result<()> {
        self.has_device_mapper("linear")
    }

    fn grow_logical_volume(&self, _: &str, _: &str, _: u64, _: bool) -> Result<()> {
        self.has_device_mapper("linear")
    }

    fn remove_logical_volume(&self, _: &str, _: &str) -> Result<bool> {
        Ok(false)
    }

    fn has_device_mapper(&self, target: &str) -> Result<()> {
        Err(Error::because("use", target, "there is no device mapper"))
    }
}
