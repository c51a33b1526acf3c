//! The objects that are there from the start.

use anyhow::Context;
use api_server::ApiServer;
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::PostParams;
use kube::{Api, Client, CustomResourceExt, Resource, ResourceExt};
use object_store::Key;
use resources::{Drive, VolumeSnapshotClass, group_snapshot, orlop, populator, reference_grant, snapshot};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// Kinds of which every object is written by this machine's own parts, from what they know: nodes, their drives, and
/// what is told of both.
const WRITTEN_HERE: [&str; 5] = [
    "csinodes.storage.k8s.io",
    "csistoragecapacities.storage.k8s.io",
    "drives.orlop.dev",
    "leases.coordination.k8s.io",
    "nodes",
];

/// Makes what must be there from the start. What is there stays as it is: it may have been changed on purpose. What can't
/// be read of these, and of what the parts of this machine write, is dropped and made anew.
pub(super) async fn ensure(api: &ApiServer, client: &Client, driver: driver::Name) -> anyhow::Result<()> {
    let definitions = [Drive::crd(), reference_grant::definition(), populator::definition()].into_iter();
    let definitions: Vec<_> =
        definitions.chain(snapshot::definitions()).chain(group_snapshot::definitions()).collect();
    let csi_driver = orlop::csi_driver(driver.as_str());
    let class = orlop::storage_class(driver.as_str());
    let snapshot_class = orlop::snapshot_class();
    let drop_unreadable = api.drop_unreadable(|key| {
        is(key, &csi_driver)
            || is(key, &class)
            || definitions.iter().any(|definition| is(key, definition))
            || WRITTEN_HERE.contains(&&*key.resource)
    });
    drop_unreadable.await?;
    for definition in definitions {
        create::<CustomResourceDefinition>(client, definition).await?;
    }
    // The objects of a definition that was made anew can be looked at only now.
    let drop_unreadable =
        api.drop_unreadable(|key| is(key, &snapshot_class) || WRITTEN_HERE.contains(&&*key.resource));
    drop_unreadable.await?;
    create::<CSIDriver>(client, csi_driver).await?;
    create::<StorageClass>(client, class).await?;
    create::<VolumeSnapshotClass>(client, snapshot_class).await
}

/// Whether the key is that of a cluster-wide object.
fn is<K: Resource<DynamicType = ()>>(key: &Key, object: &K) -> bool {
    let (plural, group) = (K::plural(&()), K::group(&()));
    let resource = if group.is_empty() { plural.into_owned() } else { format!("{plural}.{group}") };
    *key.resource == resource && *key.name == object.name_any()
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
