//! What a command line says of storage, for every role that holds drives: where state is kept, and which drives.

mod data;
mod opening;

use std::path::PathBuf;

use clap::Args;

pub(crate) use data::{Asked, DataDir, Layout};
pub(crate) use opening::{check_backend, give_back, open};

/// The arguments.
#[derive(Args)]
pub(crate) struct Storage {
    /// Everything that must survive a restart; created with access for root alone.
    #[arg(long, value_name = "DIR", default_value = "/var/lib/orlop")]
    pub(crate) data_dir: PathBuf,
    /// A block device to use as a drive; formatted only if it carries nothing. Dealt to the nodes in turn.
    #[arg(long = "drive", value_name = "DEVICE")]
    drives: Vec<PathBuf>,
    /// A block device to use as a drive even if it carries a file system, WHICH IS LOST. Never one in use.
    #[arg(long = "overwrite-drive", value_name = "DEVICE")]
    overwrite: Vec<PathBuf>,
    /// What holds volumes to their sizes on drives that are made now; those that are there keep theirs [default: xfs where the kernel has its quotas, else
    /// btrfs].
    #[arg(long, value_name = "xfs|btrfs|lvm|lvm-thin")]
    backend: Option<drives::BackendKind>,
    /// A drive in a sparse file of this size below the data directory, for trials. Dealt to the nodes in turn.
    #[arg(long = "loop-drive", value_name = "SIZE", value_parser = size)]
    loop_drives: Vec<u64>,
    /// What the driver is called: directpv-min-io (or direct-csi-min-io) serves the PersistentVolumes that DirectPV made
    /// from their drives as they are [default: as last time, or orlop.dev].
    #[arg(long, value_name = "NAME")]
    driver_name: Option<driver::Name>,
    /// The most volumes that pods of a node may use at once, as orchestrators are told [default: as many as fit].
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) max_volumes: Option<u32>,
}

/// How drives are made of devices that are none yet.
#[derive(Clone, Copy, Default)]
pub(crate) struct Making<'a> {
    /// Devices whose file systems may be lost.
    pub(crate) overwrite: &'a [PathBuf],
    /// The first that the kernel can serve, if none is named.
    pub(crate) backend: Option<drives::BackendKind>,
}

impl Storage {
    /// How drives are made.
    pub(crate) fn making(&self) -> Making<'_> {
        Making { overwrite: &self.overwrite, backend: self.backend }
    }

    /// What is asked for, with so many nodes.
    pub(crate) fn asked(&self, nodes: Option<usize>) -> Asked {
        Asked {
            nodes,
            devices: self.drives.iter().chain(&self.overwrite).cloned().collect(),
            loop_drives: self.loop_drives.clone(),
            driver: self.driver_name,
        }
    }
}

/// Where the kernel ends to count places in a file, and quantities end, too.
const LARGEST_FILE: u64 = i64::MAX as u64;

/// Parses a size the way Kubernetes writes quantities.
fn size(text: &str) -> Result<u64, String> {
    let quantity: values::Quantity =
        text.parse().map_err(|error| format!("{error}; write for example 10Gi"))?;
    match quantity.ceil_bytes() {
        Some(bytes) if bytes >= LARGEST_FILE => {
            Err("no file can be that large; write for example 10Gi".to_owned())
        }
        Some(bytes) if bytes > 0 => Ok(bytes),
        Some(_) => Err("a size is more than 0 bytes, for example 10Gi".to_owned()),
        None if text.starts_with('-') => Err("a size is more than 0 bytes, for example 10Gi".to_owned()),
        None => Err("no file can be that large; write for example 10Gi".to_owned()),
    }
}

/// The name of a node by its place in the layout.
pub(crate) fn node_name(at: usize) -> String {
    format!("orlop-{at}")
}
