//! In-tree volume plugins: what is left of them since CSI.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;

/// How the names of in-tree provisioners begin.
pub(super) const IN_TREE_PREFIX: &str = "kubernetes.io/";

/// In-tree provisioners whose volumes a CSI driver serves today, and the driver.
pub const MIGRATED: [(&str, &str); 7] = [
    ("kubernetes.io/aws-ebs", "ebs.csi.aws.com"),
    ("kubernetes.io/azure-disk", "disk.csi.azure.com"),
    ("kubernetes.io/azure-file", "file.csi.azure.com"),
    ("kubernetes.io/cinder", "cinder.csi.openstack.org"),
    ("kubernetes.io/gce-pd", "pd.csi.storage.gke.io"),
    ("kubernetes.io/portworx-volume", "pxd.portworx.com"),
    ("kubernetes.io/vsphere-volume", "csi.vsphere.vmware.com"),
];

/// What went wrong in a plugin.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The volume is still in use; the next try may do better.
    #[error("{0}")]
    InUse(String),
    /// Anything else, in the plugin's words.
    #[error("{0}")]
    Failed(String),
}

/// A volume plugin that works inside this process.
pub trait Plugin: Send + Sync {
    /// Its provisioner name, `kubernetes.io/…`.
    fn name(&self) -> &str;
    /// Whether a volume's source is this plugin's.
    fn supports(&self, volume: &PersistentVolume) -> bool;
    /// Whether its volumes take mount options.
    fn takes_mount_options(&self) -> bool;
    /// Makes a volume; the result carries its source, capacity and access modes.
    fn provision<'a>(
        &'a self,
        claim: &'a PersistentVolumeClaim,
        class: &'a StorageClass,
    ) -> BoxFuture<'a, Result<PersistentVolume, PluginError>>;
    /// Deletes what is behind a volume.
    fn delete<'a>(&'a self, volume: &'a PersistentVolume) -> BoxFuture<'a, Result<(), PluginError>>;
    /// Empties a volume for its next claim.
    fn recycle<'a>(&'a self, volume: &'a PersistentVolume) -> BoxFuture<'a, Result<(), PluginError>>;
}

/// The plugins known: those compiled in, and those that CSI drivers took over.
#[derive(Clone)]
pub struct Plugins {
    built_in: Vec<Arc<dyn Plugin>>,
    migrated: BTreeMap<String, String>,
}

impl Default for Plugins {
    fn default() -> Self {
        Self::new(Vec::new(), MIGRATED.map(|(plugin, driver)| (plugin.to_owned(), driver.to_owned())))
    }
}

impl Plugins {
    /// These plugins, and these provisioner names served by CSI drivers.
    pub fn new(built_in: Vec<Arc<dyn Plugin>>, migrated: impl IntoIterator<Item = (String, String)>) -> Self {
        Self { built_in, migrated: migrated.into_iter().collect() }
    }

    /// The CSI driver that serves an in-tree provisioner's volumes.
    pub fn migrated_to(&self, provisioner: &str) -> Option<&str> {
        self.migrated.get(provisioner).map(String::as_str)
    }

    /// The built-in plugin of that provisioner name.
    pub fn named(&self, provisioner: &str) -> Option<&Arc<dyn Plugin>> {
        self.built_in.iter().find(|plugin| plugin.name() == provisioner)
    }

    /// The built-in plugin for a volume's source.
    pub fn of_source(&self, volume: &PersistentVolume) -> Option<&Arc<dyn Plugin>> {
        self.built_in.iter().find(|plugin| plugin.supports(volume))
    }
}
