//! Devices of the device mapper: loop devices that turn bad when told to, and that note what is written to them.

use std::{
    fs::File,
    path::{Path, PathBuf},
    time::Duration,
};

use drives::Source;
use linux::{Kernel, LoopDevices, Programs};

use super::MIB;

/// Bytes of a drive on such a device.
pub(crate) const SIZE: u64 = 512 * MIB;
/// Where it begins on the device below: nobody looks for signatures there, so that LVM sees it once.
pub(crate) const OFFSET: u64 = MIB;
const MINUTE: Duration = Duration::from_secs(60);

fn dmsetup(words: &[&str]) -> String {
    let words: Vec<_> = words.iter().map(AsRef::as_ref).collect();
    Kernel.run("dmsetup", &words, MINUTE).expect("the device mapper").stdout
}

/// A file of this size on a loop device; both go with the bench.
pub(crate) fn attached(file: &Path, size: u64) -> PathBuf {
    File::create(file).and_then(|open| open.set_len(size)).expect("file");
    Kernel.attach_loop(file).expect("loop device")
}

/// How a device is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Condition {
    Good,
    /// Whatever is asked of it fails.
    Dead,
    /// It can be read, and not be written.
    Unwritable,
    /// It says that it wrote, and did not.
    Forgetful,
}

/// A device of the device mapper, in front of another; it goes away with this, or with its last user.
pub(crate) struct Mapped {
    name: String,
    below: PathBuf,
}

impl Mapped {
    /// In good condition.
    pub(crate) fn new(below: PathBuf) -> Self {
        let name = format!("orlop-test-{}", below.file_name().expect("a device").display());
        let mapped = Self { name, below };
        dmsetup(&["create", &mapped.name, "--table", &mapped.table(Condition::Good)]);
        mapped
    }

    pub(crate) fn source(&self) -> Source {
        Source::Device(Path::new("/dev/mapper").join(&self.name))
    }

    /// What is under way is neither waited for nor held up: to be written it would take a device that works.
    pub(crate) fn turn(&self, condition: Condition) {
        dmsetup(&["suspend", "--noflush", "--nolockfs", &self.name]);
        dmsetup(&["load", &self.name, "--table", &self.table(condition)]);
        dmsetup(&["resume", &self.name]);
    }

    fn table(&self, condition: Condition) -> String {
        let (sectors, below, offset) = (SIZE / 512, self.below.display(), OFFSET / 512);
        let always = "0 3600";
        match condition {
            Condition::Good => format!("0 {sectors} linear {below} {offset}"),
            Condition::Dead => format!("0 {sectors} error"),
            Condition::Unwritable => format!("0 {sectors} flakey {below} {offset} {always} 1 error_writes"),
            Condition::Forgetful => format!("0 {sectors} flakey {below} {offset} {always} 1 drop_writes"),
        }
    }
}

impl Drop for Mapped {
    fn drop(&mut self) {
        remove(&self.name);
    }
}

/// Somebody may look at a device that is new or was just let go, and one that a failed test left mounted stays with it.
fn remove(name: &str) {
    for how in ["--retry", "--deferred"] {
        if Kernel.run("dmsetup", &["remove", how, name].map(AsRef::as_ref), MINUTE).is_ok() {
            return;
        }
    }
}

/// Removes the devices whose names begin like this, unless they are in use, as a restart of the machine does.
pub(crate) fn remove_all(prefix: &str) {
    // Some lie upon others.
    for _ in 0..4 {
        let all = dmsetup(&["ls"]);
        let names = all.lines().filter_map(|line| line.split_whitespace().next());
        for name in names.filter(|name| name.starts_with(prefix)) {
            let _ = Kernel.run("dmsetup", &["remove", name].map(AsRef::as_ref), MINUTE);
        }
    }
}

/// A device that notes, in the order in which it became durable, what is written to the one below.
pub(crate) struct Recorded {
    name: String,
}

impl Recorded {
    pub(crate) fn new(below: &Path, log: &Path) -> Self {
        let name = format!("orlop-test-log-{}", below.file_name().expect("a device").display());
        let sectors = (SIZE + OFFSET) / 512;
        let table = format!("0 {sectors} log-writes {} {}", below.display(), log.display());
        dmsetup(&["create", &name, "--table", &table]);
        Self { name }
    }

    pub(crate) fn device(&self) -> PathBuf {
        Path::new("/dev/mapper").join(&self.name)
    }

    /// Notes a text between what was durable by now and what comes.
    pub(crate) fn mark(&self, text: &str) {
        dmsetup(&["message", &self.name, "0", "mark", &text.replace(' ', "\\ ")]);
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        remove(&self.name);
    }
}
