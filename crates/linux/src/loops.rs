//! Loop devices: files as block devices.

use std::{
    ffi::OsString,
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::MetadataExt,
        },
    },
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::Duration,
};

use linux_raw_sys::loop_device::{
    LO_FLAGS_DIRECT_IO, LO_FLAGS_READ_ONLY, LOOP_CLR_FD, LOOP_CONFIGURE, LOOP_CTL_GET_FREE,
    LOOP_GET_STATUS64, LOOP_SET_CAPACITY, loop_config, loop_info64,
};
use rustix::{
    fs::{CWD, FileType, Mode, OFlags},
    io::Errno,
};

use crate::{Error, Kernel, Result, error::Context, ioctl};

const LOOP_MAJOR: u32 = 7;

/// A loop device that has a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoopDevice {
    /// `/dev/loop3`.
    pub device: PathBuf,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// It was detached, and goes away with its last user: it must not be used again.
    pub leaving: bool,
}

/// Attaching files to loop devices.
pub trait LoopDevices {
    /// Attaches a file with direct I/O where its file system can. A file that is attached already gives the device it
    /// has.
    ///
    /// # Errors
    /// When the file can't be opened or the kernel has no free loop device.
    fn attach_loop(&self, file: &Path) -> Result<PathBuf>;

    /// Attaches a file whose space is set aside, as [`attach_loop`](Self::attach_loop) does, for writing or for reading
    /// alone: the two are devices of their own. Discards are refused: they would give the space back. `file` is a path
    /// without symbolic links.
    ///
    /// # Errors
    /// As [`attach_loop`](Self::attach_loop), and while a device of this file goes away.
    fn attach_fixed_loop(&self, file: &Path, read_only: bool) -> Result<PathBuf>;

    /// The loop devices that this file is attached to, by its path: the file is not looked at, as it may be on a drive
    /// that is dead.
    ///
    /// # Errors
    /// When sysfs can't be read.
    fn loops_of(&self, file: &Path) -> Result<Vec<LoopDevice>>;

    /// Detaches a loop device; `false` when it had no file. A device in use goes away with its last user.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn detach_loop(&self, device: &Path) -> Result<bool>;

    /// The loop device that this file is attached to.
    ///
    /// # Errors
    /// When sysfs can't be read.
    fn loop_of(&self, file: &Path) -> Result<Option<PathBuf>>;

    /// Lets the device take over the present size of its file.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn refresh_loop(&self, device: &Path) -> Result<()>;
}

/// Two processes may be offered the same free device; the loser asks again.
const ATTEMPTS: usize = 64;

/// How often, and how long apart, a device that is going away is looked at again: the kernel tells nobody.
const GOING_ATTEMPTS: usize = 200;
const GOING_PAUSE: Duration = Duration::from_millis(10);

/// Whether the kernel takes the file off the device at its last close. Devices of ours are attached without this.
fn is_going(device: &Path) -> bool {
    let Some(name) = device.file_name() else { return false };
    let flag = Path::new("/sys/block").join(name).join("loop/autoclear");
    std::fs::read(flag).is_ok_and(|flag| flag.trim_ascii() == b"1")
}

/// One at a time: of two that look for a device of one file and find none, the second finds the first's.
static ATTACHING: Mutex<()> = Mutex::new(());

impl LoopDevices for Kernel {
    fn attach_fixed_loop(&self, file: &Path, read_only: bool) -> Result<PathBuf> {
        for _ in 0..GOING_ATTEMPTS {
            {
                let _one_at_a_time = ATTACHING.lock().unwrap_or_else(PoisonError::into_inner);
                let found = self.loops_of(file)?;
                if !found.iter().any(|found| found.leaving) {
                    let same = found.into_iter().find(|found| found.read_only == read_only);
                    let device = same.map_or_else(|| attach(file, read_only), |found| Ok(found.device))?;
                    refuse_discards(&device)?;
                    return Ok(device);
                }
            }
            std::thread::sleep(GOING_PAUSE);
        }
        let why =
            "a loop device of it was detached while somebody held it open; find that user with lsof or fuser";
        Err(Error::because("attach to a loop device", file.display(), why))
    }

    fn loops_of(&self, file: &Path) -> Result<Vec<LoopDevice>> {
        let mut found = Vec::new();
        for (number, sysfs) in attached()? {
            let Ok(text) = std::fs::read(sysfs.join("loop/backing_file")) else { continue };
            if text.trim_ascii_end() != file.as_os_str().as_bytes() {
                continue;
            }
            let device = device_node(number)?;
            let read_only = std::fs::read(sysfs.join("ro")).is_ok_and(|flag| flag.trim_ascii() == b"1");
            found.push(LoopDevice { read_only, leaving: is_going(&device), device });
        }
        Ok(found)
    }

    fn attach_loop(&self, file: &Path) -> Result<PathBuf> {
        let file = std::fs::canonicalize(file).context("find", file.display())?;
        // A device that was detached while somebody held it open goes with its last user: using it again would lose it
        // then, and a second device on the same file beside a mounted one would destroy its file system.
        for attempt in 0.. {
            match &writing(&file)?[..] {
                [] => break,
                devices if attempt < GOING_ATTEMPTS && devices.iter().any(|device| is_going(device)) => {
                    std::thread::sleep(GOING_PAUSE)
                }
                [device] => return Ok(device.clone()),
                [one, other, ..] => {
                    let why = format!(
                        "it has two that write already, {} and {}, which would destroy each other's work: detach the one \
                         that nothing uses (losetup -d)",
                        one.display(),
                        other.display()
                    );
                    return Err(Error::because("attach to a loop device", file.display(), why));
                }
            }
        }
        attach(&file, false)
    }

    fn detach_loop(&self, device: &Path) -> Result<bool> {
        let node = match rustix::fs::open(device, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()) {
            Ok(node) => node,
            Err(Errno::NOENT | Errno::NXIO) => return Ok(false),
            Err(error) => return Err(error).context("open", device.display()),
        };
        // SAFETY: LOOP_CLR_FD takes no argument.
        match unsafe { ioctl::plain::<LOOP_CLR_FD>(node.as_fd()) } {
            Ok(()) => Ok(true),
            Err(Errno::NXIO) => Ok(false),
            Err(error) => Err(error).context("detach", device.display()),
        }
    }

    fn loop_of(&self, file: &Path) -> Result<Option<PathBuf>> {
        Ok(writing(file)?.into_iter().next())
    }

    fn refresh_loop(&self, device: &Path) -> Result<()> {
        let node = rustix::fs::open(device, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
            .context("open", device.display())?;
        // SAFETY: LOOP_SET_CAPACITY takes no argument.
        unsafe { ioctl::plain::<LOOP_SET_CAPACITY>(node.as_fd()) }
            .context("refresh the size of", device.display())
    }
}

/// Attaches a file to a free loop device.
fn attach(file: &Path, read_only: bool) -> Result<PathBuf> {
    // Direct I/O keeps the data from being cached twice; where the file's own file system can't, the kernel takes
    // buffered I/O by itself or refuses the descriptor.
    let access = if read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let open = |extra| rustix::fs::open(file, access | OFlags::CLOEXEC | extra, Mode::empty());
    let backing = open(OFlags::DIRECT).or_else(|_| open(OFlags::empty())).context("open", file.display())?;
    let control = rustix::fs::open("/dev/loop-control", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .context("open", "/dev/loop-control (is the loop module loaded?)")?;
    for _ in 0..ATTEMPTS {
        // SAFETY: LOOP_CTL_GET_FREE takes no argument and returns the number of a free device.
        let number = unsafe { ioctl::number::<LOOP_CTL_GET_FREE>(control.as_fd(), 0) }
            .context("find a free loop device for", file.display())?;
        let device = device_node(number)?;
        let node = match rustix::fs::open(&device, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            Ok(node) => node,
            Err(Errno::BUSY | Errno::NXIO) => continue,
            Err(error) => return Err(error).context("open", device.display()),
        };
        match configure(node.as_fd(), backing.as_fd(), file, read_only) {
            Ok(()) => return Ok(device),
            Err(Errno::BUSY) => {}
            Err(error) => return Err(error).context("attach to a loop device", file.display()),
        }
    }
    Err(Error::because(
        "attach to a loop device",
        file.display(),
        "others took every free one first; try again",
    ))
}

/// The numbers of the loop devices of this machine, and where sysfs has them.
fn attached() -> Result<Vec<(u32, PathBuf)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/sys/block").context("list", "/sys/block")? {
        let entry = entry.context("list", "/sys/block")?;
        let number = entry.file_name().to_str().and_then(|name| name.strip_prefix("loop")?.parse().ok());
        found.extend(number.map(|number| (number, entry.path())));
    }
    Ok(found)
}

/// A discarded block has no space set aside any more, and what is written there later may find none.
fn refuse_discards(device: &Path) -> Result<()> {
    let Some(name) = device.file_name() else { return Ok(()) };
    let limit = Path::new("/sys/block").join(name).join("queue/discard_max_bytes");
    match std::fs::read(&limit).is_ok_and(|bytes| bytes.trim_ascii() == b"0") {
        true => Ok(()),
        false => std::fs::write(&limit, "0").context("refuse discards of", device.display()),
    }
}

/// The loop devices that write this file, by whatever name it was attached.
fn writing(file: &Path) -> Result<Vec<PathBuf>> {
    let wanted = match std::fs::metadata(file) {
        Ok(metadata) => (metadata.dev(), metadata.ino()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error).context("look at", file.display()),
    };
    let mut found = Vec::new();
    for (number, sysfs) in attached()? {
        let Ok(text) = std::fs::read(sysfs.join("loop/backing_file")) else { continue };
        let backing = PathBuf::from(OsString::from_vec(text.trim_ascii_end().to_vec()));
        let device = device_node(number)?;
        let Some((serves, inode)) = served(&device) else { continue };
        // The path is only a name: the file it was attached by may have been replaced since, or be seen in another mount
        // namespace only. Device numbers alone are no help: btrfs gives the loop driver another than `stat`.
        let named = || std::fs::metadata(&backing).is_ok_and(|named| (named.dev(), named.ino()) == wanted);
        let is_it = inode == wanted.1 && (serves == wanted.0 || named());
        let is_reader = std::fs::read(sysfs.join("ro")).is_ok_and(|flag| flag.trim_ascii() == b"1");
        if is_it && !is_reader {
            found.push(device);
        }
    }
    Ok(found)
}

/// The device and inode number of the file that a loop device serves, as the loop driver knows them.
fn served(device: &Path) -> Option<(u64, u64)> {
    let node = rustix::fs::open(device, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).ok()?;
    let mut status = blank_status();
    // SAFETY: LOOP_GET_STATUS64 fills a loop_info64; any bytes make a valid one.
    let known = unsafe { ioctl::with::<LOOP_GET_STATUS64, _>(node.as_fd(), &mut status) };
    known.is_ok().then_some((status.lo_device, status.lo_inode))
}

fn configure(
    node: BorrowedFd<'_>,
    backing: BorrowedFd<'_>,
    file: &Path,
    read_only: bool,
) -> rustix::io::Result<()> {
    let mut info = blank_status();
    let access = if read_only { LO_FLAGS_READ_ONLY as u32 } else { 0 };
    info.lo_flags = LO_FLAGS_DIRECT_IO as u32 | access;
    // For people who look with losetup; the last byte stays 0.
    let name = file.as_os_str().as_bytes();
    let length = name.len().min(info.lo_file_name.len() - 1);
    info.lo_file_name[..length].copy_from_slice(&name[..length]);
    let mut config = loop_config { fd: backing.as_raw_fd() as u32, block_size: 0, info, __reserved: [0; 8] };
    // SAFETY: LOOP_CONFIGURE reads a loop_config; the descriptor in it is open.
    let direct = unsafe { ioctl::with::<LOOP_CONFIGURE, _>(node, &mut config) };
    match direct {
        Err(Errno::INVAL) => {
            config.info.lo_flags = access;
            // SAFETY: as above.
            unsafe { ioctl::with::<LOOP_CONFIGURE, _>(node, &mut config) }
        }
        other => other,
    }
}

fn blank_status() -> loop_info64 {
    loop_info64 {
        lo_device: 0,
        lo_inode: 0,
        lo_rdevice: 0,
        lo_offset: 0,
        lo_sizelimit: 0,
        lo_number: 0,
        lo_encrypt_type: 0,
        lo_encrypt_key_size: 0,
        lo_flags: 0,
        lo_file_name: [0; 64],
        lo_crypt_name: [0; 64],
        lo_encrypt_key: [0; 32],
        lo_init: [0; 2],
    }
}

/// `/dev/loopN`, made if missing: in a container or a small system nobody else makes it.
fn device_node(number: u32) -> Result<PathBuf> {
    let device = PathBuf::from(format!("/dev/loop{number}"));
    let made = rustix::fs::mknodat(
        CWD,
        &device,
        FileType::BlockDevice,
        Mode::RUSR | Mode::WUSR,
        rustix::fs::makedev(LOOP_MAJOR, number),
    );
    match made {
        Ok(()) | Err(Errno::EXIST) => Ok(device),
        Err(error) => Err(error).context("make", device.display()),
    }
}
