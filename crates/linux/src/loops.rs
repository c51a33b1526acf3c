//! Loop devices: files as block devices.

use std::path::{Path, PathBuf};

use crate::{Kernel, Result};

/// Attaching files to loop devices.
pub trait LoopDevices {
    /// Attaches a file with direct I/O where its file system can. A file that is attached already gives the device it
    /// has.
    ///
    /// # Errors
    /// When the file can't be opened or the kernel has no free loop device.
    fn attach_loop(&self, file: &Path) -> Result<PathBuf>;

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
