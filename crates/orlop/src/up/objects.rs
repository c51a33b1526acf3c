//! The objects that are there from the start.

use anyhow::Context;
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::PostParams;
use kube::{Api, Client, CustomResourceExt, Resource, ResourceExt};
use resources::{Drive, VolumeSnapshotClass, group_snapshot, orlop, populator, reference_grant, snapshot};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Creates what is missing. What is there stays as it is: it may have been changed on purpose.
pub(super) async fn ensure(client: &Client, driver: driver::Name) -> anyhow::Result<()> {
    let definitions = [Drive::crd(), reference_grant::definition(), populator::definition()].into_iter();
    for definition in definitions.chain(snapshot::definitions()).chain(group_snapshot::definitions()) {
        create::<CustomResourceDefinition>(client, definition).await?;
    }
    create::<CSIDriver>(client, orlop::csi_driver(driver.as_str())).await?;
    create::<StorageClass>(client, orlop::storage_class(driver.as_str())).await?;
    create::<VolumeSnapshotClass>(client, orlop::snapshot_class()).await
}

async fn create<K>(client: &Client, object: K) -> anyhow::Result<()>
where
    K: Resource<DynamicType = (), Scope = k8s_openapi::ClusterResourceScope>
        + Clone
        + Serialize
        + DeserializeOwned
        + std::fmt::Debug,
{
    match Api::<K>::all(client.clone()).create(&PostParams::default(), &object).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
        Err(error) => Err(error).with_context(|| format!("creating {} {}", K::kind(&()), object.name_any())),
    }
}
