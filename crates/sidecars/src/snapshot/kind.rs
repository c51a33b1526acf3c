//! What single snapshots and groups have in common.

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::future::Future;

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::api::core::v1::SecretReference;
use kube::ResourceExt;
use resources::snapshot::DeletionPolicy;
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::SnapshotError;
use crate::Driver;

/// An object of the API, as informers and writes need it.
pub(super) trait Object:
    kube::Resource<DynamicType = (), Scope = ClusterResourceScope>
    + Clone
    + PartialEq
    + Debug
    + Serialize
    + DeserializeOwned
    + Send
    + Sync
    + 'static
{
}

impl<K> Object for K where
    K: kube::Resource<DynamicType = (), Scope = ClusterResourceScope>
        + Clone
        + PartialEq
        + Debug
        + Serialize
        + DeserializeOwned
        + Send
        + Sync
        + 'static
{
}

/// A call about a content: with what parameters and secrets.
#[derive(Default)]
pub(super) struct Call {
    pub(super) parameters: BTreeMap<String, String>,
    pub(super) secrets: BTreeMap<String, String>,
}

/// An object that stands for what a driver has, or is to make.
pub(super) trait Content: Object + ResourceExt {
    /// The kind of its class.
    type Class: Object;
    /// What the driver says about it.
    type Told: Send;

    const BEING_CREATED: &'static str;
    const BEING_DELETED: &'static str;
    const FINALIZER: &'static str;
    const CREATE_FAILED: &'static str;
    const CHECK_FAILED: &'static str;
    const DELETE_FAILED: &'static str;
    /// What goes before `-secret-name` in the class's parameters for questions.
    const ASKING_SECRET: &'static str;

    /// What it stands for.
    const WHAT: &'static str;

    /// Whether a driver makes such.
    fn is_served_by(driver: &Driver) -> bool;
    fn driver(&self) -> &str;
    fn policy(&self) -> DeletionPolicy;
    fn class_name(&self) -> Option<&str>;
    /// The volumes to take a snapshot of, by their ids; none if it exists.
    fn volumes(&self) -> &[String];
    /// Whether it stands for what was made by other means.
    fn is_given(&self) -> bool;
    /// Whether the object of a user refers to it and it back.
    fn is_taken(&self) -> bool;
    /// Whether it was made as one of a group.
    fn is_member(&self) -> bool;
    /// The id, as given or as the driver said.
    fn handle(&self) -> Option<&str>;
    /// The id, as the driver said.
    fn told_handle(&self) -> Option<&str>;
    fn is_ready(&self) -> bool;
    /// Seconds since it was made; what is not ready yet is asked for less and less often.
    fn age(&self) -> i64;
    fn secret(&self) -> Option<SecretReference>;
    fn failure(&self) -> Option<&str>;
    fn set_failure(&mut self, message: &str);
    fn set_told(&mut self, told: &Self::Told);
    fn parameters(class: &Self::Class) -> &BTreeMap<String, String>;
    /// Names for drivers that want to know them.
    fn metadata_parameters(&self) -> Vec<(&'static str, String)>;

    /// Asks the driver to make it; also to learn whether it is ready.
    fn create(
        &self,
        driver: &Driver,
        call: Call,
    ) -> impl Future<Output = Result<Self::Told, SnapshotError>> + Send;
    /// Asks the driver about it.
    fn check(
        &self,
        driver: &Driver,
        call: Call,
    ) -> impl Future<Output = Result<Self::Told, SnapshotError>> + Send;
    /// Has the driver delete it.
    fn delete(&self, driver: &Driver, call: Call) -> impl Future<Output = Result<(), SnapshotError>> + Send;
}
