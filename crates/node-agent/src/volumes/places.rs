//! Where the things of a CSI volume are: kubelet keeps block volumes apart from mounted ones.

use std::path::PathBuf;

use linux::Host;

use super::VolumeError;
use crate::{
    layout::{self, Layout},
    leftovers::{self, Leftover},
};

/// The places of mounted volumes, or of block volumes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Places<'a> {
    pub(crate) layout: &'a Layout,
    pub(crate) block: bool,
}

impl Places<'_> {
    /// The directory of a pod that is there while the pod has the volume. For a block volume it holds the record alone.
    pub(crate) fn directory(self, uid: &str, name: &str) -> PathBuf {
        match self.block {
            true => self.layout.plugin(uid, layout::CSI).join(name),
            false => self.layout.volume(uid, layout::CSI, name),
        }
    }

    /// The record of a pod's volume, durable before the driver is called.
    pub(crate) fn record(self, uid: &str, name: &str) -> PathBuf {
        self.directory(uid, name).join("vol_data.json")
    }

    /// Where the driver publishes it: a directory, or for a block volume a file.
    pub(crate) fn target(self, uid: &str, name: &str) -> PathBuf {
        match self.block {
            true => self.layout.devices().join("publish").join(name).join(uid),
            false => self.layout.csi_target(uid, name),
        }
    }

    /// Where the driver stages it.
    pub(crate) fn staging(self, driver: &str, handle: &str, name: &str) -> PathBuf {
        match self.block {
            true => self.layout.devices().join("staging").join(name),
            false => self.layout.stage(driver, handle).join("globalmount"),
        }
    }

    /// The directory of the stage's own record.
    fn stage(self, driver: &str, handle: &str, name: &str) -> PathBuf {
        match self.block {
            true => self.layout.devices().join(name).join("data"),
            false => self.layout.stage(driver, handle),
        }
    }

    /// The stage's own record.
    pub(crate) fn stage_record(self, driver: &str, handle: &str, name: &str) -> PathBuf {
        self.stage(driver, handle, name).join("vol_data.json")
    }

    /// Removes what is left of a stage; what is unknown there is set aside. Blocks.
    pub(crate) fn remove_stage(
        self,
        host: &dyn Host,
        driver: &str,
        handle: &str,
        name: &str,
    ) -> Result<Vec<Leftover>, VolumeError> {
        let mut left = Vec::new();
        left.extend(leftovers::remove_directory(host, self.layout, &self.staging(driver, handle, name))?);
        host.remove_file(&self.stage_record(driver, handle, name))?;
        left.extend(leftovers::remove_directory(host, self.layout, &self.stage(driver, handle, name))?);
        if self.block {
            let directory = self.layout.devices().join(name);
            left.extend(leftovers::remove_directory(host, self.layout, &directory)?);
        }
        Ok(left)
    }

    /// The link by which people and tools find a pod's device.
    pub(crate) fn link(self, uid: &str, name: &str) -> PathBuf {
        self.layout.pod_devices(uid).join(layout::CSI).join(name)
    }
}
