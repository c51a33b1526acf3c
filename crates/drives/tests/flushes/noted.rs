//! A file whose writes are noted by QEMU's storage daemon, for kernels without the device mapper.

use std::{
    ffi::OsStr,
    fs::File,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use drives::Source;
use linux::{Kernel, LoopDevices, Mounts, Programs, Unmount};

use super::bench::Bench;

const START: Duration = Duration::from_secs(20);

/// The daemon, the file that it shows and the loop device on that; all go away with this.
pub(crate) struct Noted {
    daemon: Child,
    file: PathBuf,
    device: Option<PathBuf>,
}

impl Noted {
    /// A file of this size; what is written to it is noted in `log`.
    pub(crate) fn new(bench: &Bench, size: u64, log: &Path) -> Self {
        let (data, at) = (bench.path("data.img"), bench.path("noted.img"));
        for (file, size) in [(data.as_path(), size), (log, 0), (at.as_path(), 0)] {
            File::create(file).and_then(|open| open.set_len(size)).expect("file");
        }
        let file = |name: &str, path: &Path| {
            format!("driver=file,discard=unmap,node-name={name},filename={}", path.display())
        };
        let noting = "driver=blklogwrites,node-name=noting,discard=unmap,file=data,log=log";
        let export = format!("type=fuse,id=noted,node-name=noting,writable=on,mountpoint={}", at.display());
        let daemon = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &file("data", &data), "--blockdev", &file("log", log)])
            .args(["--blockdev", noting, "--export", &export])
            .spawn()
            .expect("qemu-storage-daemon, of the package qemu-system-common");
        let mut noted = Self { daemon, file: at, device: None };
        let until = Instant::now() + START;
        while std::fs::metadata(&noted.file).expect("file").len() != size {
            assert!(Instant::now() < until, "the storage daemon shows no file");
            std::thread::sleep(Duration::from_millis(20));
        }
        // Without direct I/O, so that one thing is asked at a time: more at once than that, older daemons mix up.
        let arguments = ["--find", "--show"].map(OsStr::new);
        let arguments = [&arguments[..], &[noted.file.as_os_str()]].concat();
        let attached = Kernel.run("losetup", &arguments, START).expect("loop device").stdout;
        noted.device = Some(attached.trim().into());
        noted
    }

    pub(crate) fn source(&self) -> Source {
        Source::Device(self.device.clone().expect("attached"))
    }
}

impl Drop for Noted {
    fn drop(&mut self) {
        if let Some(device) = &self.device {
            let _ = Kernel.detach_loop(device);
        }
        let _ = Kernel.unmount(&self.file, Unmount::Detach);
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
