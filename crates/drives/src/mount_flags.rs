//! Mount options that a storage class may ask for, as attributes of the volume's bind mounts.

use linux::Attributes;

/// Checked mount options. Options of the file system itself can't be had per volume: volumes share their drive's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MountFlags {
    pub(crate) attributes: Attributes,
}

/// An option that a volume can't have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "mount option \"{0}\" can't be had per volume: use ro, rw, nosuid, suid, nodev, dev, noexec, exec, noatime or relatime"
)]
pub struct UnsupportedFlag(pub String);

impl MountFlags {
    /// The same, and read-only.
    pub fn read_only(mut self) -> Self {
        self.attributes.read_only = true;
        self
    }

    /// Checks options such as `nodev`; each may hold several, separated by commas. The last of two opposites holds.
    ///
    /// # Errors
    /// At the first one that is not on the list.
    pub fn parse<T: AsRef<str>>(options: &[T]) -> Result<Self, UnsupportedFlag> {
        let mut attributes = Attributes::default();
        let options =
            options.iter().flat_map(|option| option.as_ref().split(',')).filter(|option| !option.is_empty());
        for option in options {
            match option {
                "ro" => attributes.read_only = true,
                "rw" => attributes.read_only = false,
                "nosuid" => attributes.no_suid = true,
                "suid" => attributes.no_suid = false,
                "nodev" => attributes.no_dev = true,
                "dev" => attributes.no_dev = false,
                "noexec" => attributes.no_exec = true,
                "exec" => attributes.no_exec = false,
                "noatime" => attributes.no_atime = true,
                "relatime" | "atime" => attributes.no_atime = false,
                "defaults" | "bind" => {}
                other => return Err(UnsupportedFlag(other.to_owned())),
            }
        }
        Ok(Self { attributes })
    }
}
