//! The running kernel does what the traits promise. Needs root for most.

use std::{
    collections::BTreeSet,
    fs,
    io::ErrorKind,
    os::{
        fd::AsFd,
        unix::fs::{MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use linux::{
    Attributes, BindSource, BlockDevices, Files, FilesystemMount, Kernel, LoopDevices, Mounts, Programs,
    Unmount, beneath, probe_superblock,
};

/// A directory whose mounts and loop devices go away with it.
struct Place(tempfile::TempDir);

impl Place {
    /// A place that things can be mounted in; `None` without root.
    fn new() -> Option<Self> {
        if fs::metadata("/proc/self").expect("proc").uid() != 0 {
            eprintln!("SKIPPED: mounting needs root");
            assert!(std::env::var_os("CI").is_none(), "CI has to run this as root");
            return None;
        }
        Some(Self(tempfile::tempdir().expect("temporary directory")))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn directory(&self, name: &str) -> PathBuf {
        fs::create_dir_all(self.path(name)).expect("directory");
        self.path(name)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for mount in Kernel.mount_table().expect("mount table").below(self.0.path()) {
            let _ = Kernel.unmount(&mount.target, Unmount::Detach);
        }
        for entry in fs::read_dir(self.0.path()).into_iter().flatten().flatten() {
            if let Ok(Some(device)) = Kernel.loop_of(&entry.path()) {
                let _ = Kernel.detach_loop(&device);
            }
        }
    }
}

const MINUTE: Duration = Duration::from_secs(60);
const READ_ONLY: Option<i32> = Some(30);

fn tmpfs() -> FilesystemMount<'static> {
    FilesystemMount {
        filesystem: "tmpfs",
        source: "tmpfs",
        options: vec![("size", Some("1m")), ("mode", Some("0700"))],
        attributes: Attributes { no_dev: true, no_suid: true, no_exec: true, ..Attributes::default() },
    }
}

#[test]
fn a_bind_mount_has_what_was_asked_from_the_start() {
    let Some(place) = Place::new() else { return };
    let (source, inner, target) =
        (place.directory("source"), place.directory("source/inner"), place.directory("t t"));
    fs::write(source.join("file"), "x").expect("write");
    Kernel.mount(&tmpfs(), &inner).expect("tmpfs");
    let read_only = Attributes { read_only: true, no_exec: true, no_atime: true, ..Attributes::default() };
    Kernel.bind(BindSource::Path(&source), &target, read_only).expect("bind");
    let table = Kernel.mount_table().expect("table");
    let mount = table.at(&target).expect("mounted");
    assert!(mount.read_only() && mount.has_option("noexec") && mount.has_option("noatime"), "{mount:?}");
    assert_eq!(fs::write(target.join("file"), "y").expect_err("read-only").raw_os_error(), READ_ONLY);
    assert_eq!(table.below(&target).len(), 1, "not recursive");
    assert!(Kernel.unmount(&target, Unmount::Plain).expect("unmount"));
    assert!(!Kernel.unmount(&target, Unmount::Plain).expect("nothing there is fine"));
    assert!(!Kernel.unmount(&place.path("missing"), Unmount::Plain).expect("nothing there is fine"));

    let recursive = Attributes { recursive: true, ..read_only };
    Kernel.bind(BindSource::Path(&source), &target, recursive).expect("bind");
    assert_eq!(fs::write(target.join("inner/new"), "y").expect_err("read-only").raw_os_error(), READ_ONLY);
    fs::write(inner.join("new"), "y").expect("the source is as it was");
}

#[test]
fn an_open_descriptor_is_bound_whatever_its_name_becomes() {
    let Some(place) = Place::new() else { return };
    let (source, target) = (place.directory("source"), place.directory("target"));
    let open = beneath::open_directory(&source).expect("open");
    fs::rename(&source, place.path("renamed")).expect("rename");
    symlink("/etc", &source).expect("swap a link in");
    Kernel.bind(BindSource::Open(open.as_fd()), &target, Attributes::default()).expect("bind");
    fs::write(target.join("here"), "x").expect("write");
    assert!(place.path("renamed/here").exists());
}

#[test]
fn mounts_are_refused_with_the_kernels_words() {
    let Some(place) = Place::new() else { return };
    let target = place.directory("target");
    let bad = FilesystemMount { options: vec![("size", Some("lots"))], ..tmpfs() };
    let message = Kernel.mount(&bad, &target).expect_err("no such size").to_string();
    assert!(message.contains("size"), "{message}");
    symlink(&target, place.path("link")).expect("link");
    let outcome = Kernel.bind(BindSource::Path(&target), &place.path("link"), Attributes::default());
    assert!(outcome.is_err(), "a link is no target");
    assert!(Kernel.mount_table().expect("table").at(&target).is_none());
}

#[test]
fn an_overlay_keeps_its_lower_directory_as_it_was() {
    let Some(place) = Place::new() else { return };
    let scratch = place.directory("scratch");
    Kernel.mount(&tmpfs(), &scratch).expect("tmpfs");
    let (lower, upper) = (place.directory("scratch/lower"), place.directory("scratch/upper"));
    let (work, target) = (place.directory("scratch/work"), place.directory("target"));
    let overlay = FilesystemMount {
        filesystem: "overlay",
        source: "overlay",
        options: vec![("lowerdir", lower.to_str()), ("upperdir", upper.to_str()), ("workdir", work.to_str())],
        attributes: Attributes::default(),
    };
    Kernel.mount(&overlay, &target).expect("overlay");
    fs::write(target.join("new"), "x").expect("write");
    assert!(upper.join("new").exists() && !lower.join("new").exists());
}

#[test]
fn a_loop_device_follows_its_file() {
    let Some(place) = Place::new() else { return };
    let file = place.path("a.img");
    Kernel.make_image(&file, 8 << 20).expect("image");
    assert_eq!(Kernel.make_image(&file, 8 << 20).expect_err("there").kind(), ErrorKind::AlreadyExists);
    assert_eq!(fs::metadata(&file).expect("image").permissions().mode() & 0o777, 0o600);
    let device = Kernel.attach_loop(&file).expect("attach");
    assert_eq!(Kernel.attach_loop(&file).expect("again"), device);
    let facts = Kernel.block_device(&device).expect("facts");
    assert_eq!((facts.size, facts.read_only, facts.swap), (8 << 20, false, false));
    assert_eq!(facts.backing_file.as_deref(), Some(file.as_path()));
    fs::File::options().write(true).open(&file).expect("open").set_len(16 << 20).expect("grow");
    Kernel.refresh_loop(&device).expect("refresh");
    assert_eq!(Kernel.block_device(&device).expect("facts").size, 16 << 20);

    // A file of the same name is another file.
    fs::remove_file(&file).expect("remove");
    Kernel.make_image(&file, 8 << 20).expect("image");
    assert_eq!(Kernel.loop_of(&file).expect("look"), None);
    assert!(Kernel.detach_loop(&device).expect("detach"));
    Kernel.detach_loop(&device).expect("detached is fine");
}

#[test]
fn a_loop_device_that_is_going_away_is_not_used_again() {
    let Some(place) = Place::new() else { return };
    let file = place.path("a.img");
    Kernel.make_image(&file, 8 << 20).expect("image");
    let going = Kernel.attach_loop(&file).expect("attach");
    let holder = fs::File::open(&going).expect("open");
    assert!(Kernel.detach_loop(&going).expect("detach"));
    assert_eq!(Kernel.loop_of(&file).expect("look"), Some(going), "its last user keeps it");
    let device = thread::scope(|scope| {
        let (tell, told) = std::sync::mpsc::channel();
        let file = &file;
        scope.spawn(move || tell.send(Kernel.attach_loop(file).expect("attach")).expect("told"));
        let early = told.recv_timeout(std::time::Duration::from_millis(100));
        assert!(early.is_err(), "it was used again while it was going");
        drop(holder);
        told.recv().expect("attached")
    });
    assert_eq!(Kernel.loop_of(&file).expect("look"), Some(device.clone()), "it stays");
    assert!(Kernel.detach_loop(&device).expect("detach"));
}

#[test]
fn many_files_at_once_get_a_loop_device_each() {
    let Some(place) = Place::new() else { return };
    let devices: BTreeSet<PathBuf> = thread::scope(|scope| {
        let attach = |number: usize| {
            let file = place.path(&format!("{number}.img"));
            move || {
                Kernel.make_image(&file, 1 << 20).expect("image");
                Kernel.attach_loop(&file).expect("attach")
            }
        };
        let threads: Vec<_> = (0..12).map(|number| scope.spawn(attach(number))).collect();
        threads.into_iter().map(|thread| thread.join().expect("no panic")).collect()
    });
    assert_eq!(devices.len(), 12);
}

#[test]
fn a_mounted_file_system_is_recognised_and_not_ours_to_take() {
    let Some(place) = Place::new() else { return };
    let (file, target) = (place.path("a.img"), place.directory("target"));
    Kernel.make_image(&file, 64 << 20).expect("image");
    let device = Kernel.attach_loop(&file).expect("attach");
    Kernel.check_exclusive(&device).expect("free");
    let arguments = ["-q".as_ref(), "-L".as_ref(), "there".as_ref(), device.as_os_str()];
    Kernel.run("mkfs.ext4", &arguments, MINUTE).expect("mkfs");
    let (first, last) = Kernel.read_edges(&device).expect("edges");
    let signature = probe_superblock(&first, &last).expect("ext4");
    assert_eq!((signature.kind, signature.label.as_deref()), ("ext4", Some("there")));
    let name = device.to_string_lossy();
    let ext4 = FilesystemMount { filesystem: "ext4", source: &name, ..FilesystemMount::default() };
    Kernel.mount(&ext4, &target).expect("mount");
    assert_eq!(Kernel.block_device(&device).expect("facts").mounted_at, [target]);
    assert_eq!(Kernel.check_exclusive(&device).expect_err("mounted").errno(), Some(16));
}

#[test]
fn programs_are_bounded_in_time_and_words() {
    let shell = |script: &str| Kernel.run("sh", &["-c".as_ref(), script.as_ref()], MINUTE);
    let said = shell("echo out; echo err >&2").expect("run");
    assert_eq!((said.stdout.as_str(), said.stderr.as_str()), ("out\n", "err\n"));
    let failed = shell("echo because >&2; exit 3").expect_err("fails");
    assert!(failed.to_string().contains("because"), "{failed}");
    assert_eq!(shell("head -c 300000 /dev/zero").expect("run").stdout.len(), 64 << 10);
    assert_eq!(Kernel.run("no-such-program", &[], MINUTE).expect_err("missing").kind(), ErrorKind::NotFound);
    let begun = Instant::now();
    let late = Kernel.run("sleep", &["60".as_ref()], Duration::from_millis(50)).expect_err("late");
    assert_eq!(late.kind(), ErrorKind::TimedOut);
    assert!(begun.elapsed() < Duration::from_secs(20));
}

#[test]
fn removing_a_deep_tree_does_not_meet_what_an_earlier_try_left() {
    let place = tempfile::tempdir().expect("temporary directory");
    let tree = place.path().join("tree");
    // In whatever order they are found, one of the deep ones comes before what was left.
    for name in ["deep", ".removing-1", "deeper"] {
        let mut directory = tree.join(name);
        for _ in 0..100 {
            directory.push("d");
        }
        std::fs::create_dir_all(&directory).expect("a deep tree");
    }
    assert!(Kernel.remove_tree(&tree).expect("removed"));
    assert!(!tree.exists());
}

#[test]
fn durable_files_are_whole_and_private() {
    let place = tempfile::tempdir().expect("temporary directory");
    let (file, moved) = (place.path().join("deep/er/file"), place.path().join("deep/moved"));
    let parent = file.parent().expect("parent");
    Kernel.make_directory(parent, 0o700).expect("directory");
    Kernel.write_durable(&file, b"one", 0o600).expect("write");
    Kernel.write_ordered(&file, b"two", 0o600).expect("write");
    assert_eq!(Kernel.read(&file).expect("read").as_deref(), Some(&b"two"[..]));
    assert_eq!(fs::metadata(&file).expect("file").permissions().mode() & 0o777, 0o600);
    assert_eq!(Kernel.list(parent).expect("list"), ["file"]);
    Kernel.rename(&file, &moved).expect("rename");
    Kernel.write_durable(&file, b"three", 0o600).expect("write");
    assert_eq!(Kernel.rename(&file, &moved).expect_err("taken").kind(), ErrorKind::AlreadyExists);
    assert!(Kernel.remove_file(&moved).expect("remove") && !Kernel.remove_file(&moved).expect("again"));
    assert_eq!(Kernel.rename(&moved, &file).expect_err("missing").kind(), ErrorKind::NotFound);
    assert_eq!(Kernel.read(&moved).expect("missing is fine"), None);
    assert!(Kernel.make_directory(&file, 0o700).is_err(), "a file is there");
}

#[test]
fn a_draft_that_a_crash_left_goes_with_its_file() {
    let place = tempfile::tempdir().expect("temporary directory");
    let at = |name: &str| place.path().join(name);
    for name in ["record", ".record.new", ".other.new", ".new", "kept.new"] {
        fs::write(at(name), "{").expect("write");
    }
    assert!(Kernel.remove_file(&at("record")).expect("remove"));
    assert_eq!(Kernel.list(place.path()).expect("list"), [".new", ".other.new", "kept.new"]);
    assert!(!Kernel.remove_file(&at("other")).expect("a draft alone is no file"));
    fs::write(at(".again.new"), "{").expect("write");
    assert_eq!(Kernel.remove_drafts(place.path()).expect("remove"), 1);
    assert_eq!(Kernel.list(place.path()).expect("list"), [".new", "kept.new"]);
    assert!(!Kernel.remove_file(&at(&"n".repeat(255))).expect("its draft's name would be too long"));
}

#[test]
fn a_sub_path_stays_inside_its_volume() {
    let place = tempfile::tempdir().expect("temporary directory");
    let (volume, outside) = (place.path().join("volume"), place.path().join("outside"));
    fs::create_dir_all(volume.join("data/inner")).expect("directories");
    fs::create_dir(&outside).expect("directory");
    fs::set_permissions(&volume, PermissionsExt::from_mode(0o2770)).expect("mode");
    fs::write(volume.join("file"), "inside").expect("file");
    symlink(&outside, volume.join("absolute")).expect("link");
    symlink("../outside", volume.join("up")).expect("link");
    symlink("data", volume.join("within")).expect("link");
    let root = beneath::open_directory(&volume).expect("open");
    let open = |path: &str| beneath::open_sub_path(root.as_fd(), Path::new(path));
    for refused in ["..", "data/../..", "/etc", "absolute", "absolute/new", "up", "up/new", "file/below"] {
        assert!(open(refused).is_err(), "{refused}");
    }
    for fine in ["", ".", "file", "data", "within/inner", "new/one/two", "within/made"] {
        open(fine).unwrap_or_else(|error| panic!("{fine}: {error}"));
    }
    assert!(volume.join("data/made").is_dir());
    assert_eq!(fs::metadata(volume.join("new/one")).expect("made").mode() & 0o7777, 0o2770);
    assert_eq!(fs::read_dir(&outside).expect("list").count(), 0);
    assert!(
        beneath::open(root.as_fd(), Path::new("within")).is_err(),
        "the strict way follows no link at all"
    );
}

#[test]
fn removing_a_tree_follows_no_link_and_has_no_depth_limit() {
    let place = tempfile::tempdir().expect("temporary directory");
    let (tree, kept) = (place.path().join("tree"), place.path().join("kept"));
    fs::create_dir_all(&kept).expect("directory");
    fs::write(kept.join("file"), "stays").expect("file");
    fs::create_dir(&tree).expect("directory");
    symlink(&kept, tree.join("link")).expect("link");
    let mut deep = beneath::open_directory(&tree).expect("open");
    for _ in 0..1000 {
        for name in ["a-directory", "beside"] {
            rustix::fs::mkdirat(&deep, name, rustix::fs::Mode::RWXU).expect("mkdir");
        }
        deep = beneath::open(deep.as_fd(), Path::new("a-directory")).expect("open");
    }
    assert!(Kernel.remove_tree(&tree).expect("remove"));
    assert!(!Kernel.remove_tree(&tree).expect("again"));
    symlink(&kept, &tree).expect("link");
    assert!(Kernel.remove_tree(&tree).expect("only the link"));
    assert_eq!(fs::read_to_string(kept.join("file")).expect("kept"), "stays");
}

#[test]
fn removing_a_tree_stops_at_a_mount() {
    let Some(place) = Place::new() else { return };
    let mounted = place.directory("tree/a/mounted");
    Kernel.mount(&tmpfs(), &mounted).expect("tmpfs");
    fs::write(mounted.join("file"), "stays").expect("file");
    let refused = Kernel.remove_tree(&place.path("tree")).expect_err("something is mounted");
    assert!(matches!(refused.errno(), Some(16 | 18)), "{refused}");
    assert!(mounted.join("file").exists());
}

#[test]
fn a_copied_tree_is_the_same_and_shares_nothing() {
    let place = tempfile::tempdir().expect("temporary directory");
    let (from, to) = (place.path().join("from"), place.path().join("to"));
    for directory in [&from, &to] {
        fs::create_dir(directory).expect("directory");
    }
    fs::set_permissions(&from, fs::Permissions::from_mode(0o2770)).expect("mode");
    let sparse = fs::File::create(from.join("sparse")).expect("file");
    sparse.set_len(1 << 30).expect("length");
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"in the middle", 512 << 20).expect("write");
    fs::write(from.join("script"), "run").expect("file");
    fs::set_permissions(from.join("script"), fs::Permissions::from_mode(0o4755)).expect("mode");
    std::os::unix::fs::chown(from.join("script"), Some(1234), Some(5678)).ok();
    fs::set_permissions(from.join("script"), fs::Permissions::from_mode(0o4755)).expect("mode");
    fs::hard_link(from.join("script"), from.join("zlink")).expect("link");
    symlink("nowhere", from.join("link")).expect("link");
    let pipe = rustix::fs::Mode::from_raw_mode(0o622);
    rustix::fs::mknodat(rustix::fs::CWD, from.join("pipe"), rustix::fs::FileType::Fifo, pipe, 0)
        .expect("pipe");
    let attributes = rustix::fs::XattrFlags::empty();
    let extended = rustix::fs::setxattr(from.join("script"), "user.orlop", b"value", attributes).is_ok();
    let mut deep = beneath::open_directory(&from).expect("open");
    for _ in 0..1500 {
        rustix::fs::mkdirat(&deep, "deeper", rustix::fs::Mode::RWXU).expect("mkdir");
        deep = beneath::open(deep.as_fd(), Path::new("deeper")).expect("open");
    }

    for _ in 0..2 {
        Kernel.copy_tree(&from, &to).expect("copied, also over an earlier attempt");
    }
    assert_eq!(fs::metadata(&to).expect("there").mode() & 0o7777, 0o2770);
    for name in ["sparse", "script", "zlink", "link", "pipe"] {
        let [old, new] = [&from, &to].map(|tree| fs::symlink_metadata(tree.join(name)).expect("there"));
        let facts = |it: &fs::Metadata| {
            (it.mode(), it.uid(), it.gid(), it.len(), it.nlink(), it.mtime(), it.mtime_nsec(), it.rdev())
        };
        assert_eq!(facts(&old), facts(&new), "{name}");
        assert_ne!(old.ino(), new.ino());
    }
    assert!(fs::metadata(to.join("sparse")).expect("there").blocks() < 1 << 11, "holes stay holes");
    let mut middle = [0; 13];
    let copy = fs::File::open(to.join("sparse")).expect("open");
    std::os::unix::fs::FileExt::read_exact_at(&copy, &mut middle, 512 << 20).expect("read");
    assert_eq!(&middle, b"in the middle");
    assert_eq!(fs::read_link(to.join("link")).expect("link"), Path::new("nowhere"));
    let mut value = [0; 16];
    let found = rustix::fs::getxattr(to.join("script"), "user.orlop", &mut value[..]);
    assert!(!extended || found == Ok(5), "{found:?}");
    for tree in [&from, &to] {
        assert!(Kernel.remove_tree(tree).expect("remove"));
    }
}
