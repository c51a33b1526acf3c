//! Claims with a pod each, made and looked at through the API; and what lies on the drives.

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use k8s_openapi::NamespaceResourceScope;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

/// A claim of 8 MiB on the default class.
pub fn claim(name: &str) -> PersistentVolumeClaim {
    object(json!({
        "apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": name},
        "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "8Mi"}}},
    }))
}

/// A pod that writes its name into its claim and then sleeps.
pub fn pod(name: &str, claim: &str) -> Pod {
    let script = "trap 'exit 0' TERM; hostname > /data/name; sleep infinity & wait";
    object(json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name},
        "spec": {
            "terminationGracePeriodSeconds": 2,
            "containers": [{
                "name": "main", "image": "host", "command": ["sh", "-c", script],
                "volumeMounts": [{"name": "data", "mountPath": "/data"}],
            }],
            "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": claim}}],
        },
    }))
}

fn object<K: DeserializeOwned>(value: serde_json::Value) -> K {
    serde_json::from_value(value).expect("a valid object")
}

pub fn pods(client: &Client) -> Api<Pod> {
    Api::default_namespaced(client.clone())
}

pub fn claims(client: &Client) -> Api<PersistentVolumeClaim> {
    Api::default_namespaced(client.clone())
}

pub fn volumes(client: &Client) -> Api<PersistentVolume> {
    Api::all(client.clone())
}

/// Creates a claim and its pod.
pub async fn create(client: &Client, name: &str) -> Result<(), kube::Error> {
    claims(client).create(&PostParams::default(), &claim(name)).await?;
    pods(client).create(&PostParams::default(), &pod(name, name)).await?;
    Ok(())
}

/// Deletes a pod and its claim.
pub async fn delete(client: &Client, name: &str) -> Result<(), kube::Error> {
    pods(client).delete(name, &DeleteParams::default()).await?;
    claims(client).delete(name, &DeleteParams::default()).await?;
    Ok(())
}

pub fn is_running(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_none()
        && pod.status.as_ref().and_then(|status| status.phase.as_deref()) == Some("Running")
}

/// Waits, on a watch, until `holds` for the list of all objects.
pub async fn wait_for<K>(api: &Api<K>, what: &str, patience: Duration, holds: impl Fn(&[K]) -> bool)
where
    K: Clone + Debug + DeserializeOwned + Resource<DynamicType = ()>,
{
    let outcome = tokio::time::timeout(patience, async {
        loop {
            let list = api.list(&ListParams::default()).await.expect("listing");
            if holds(&list.items) {
                return;
            }
            let version = list.metadata.resource_version.expect("a version");
            let mut events = api.watch(&WatchParams::default(), &version).await.expect("watching").boxed();
            match events.next().await {
                Some(Ok(WatchEvent::Error(_)) | Err(_)) | None => {}
                Some(Ok(_)) => {}
            }
        }
    })
    .await;
    if outcome.is_err() {
        let items = api.list(&ListParams::default()).await.map(|list| list.items).unwrap_or_default();
        let wrong: Vec<_> = items.iter().take(3).collect();
        panic!("not within {} s: {what}; {} objects, the first: {wrong:#?}", patience.as_secs(), items.len());
    }
}

/// Creates an object of a namespaced kind.
pub async fn make<K>(client: &Client, object: &K) -> Result<K, kube::Error>
where
    K: Clone
        + Debug
        + Serialize
        + DeserializeOwned
        + Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    Api::default_namespaced(client.clone()).create(&PostParams::default(), object).await
}

/// The roots of the nodes of a data directory.
pub fn nodes(data: &Path) -> Vec<PathBuf> {
    children(&data.join("nodes"))
}

/// Where the drives are mounted.
pub fn drives(data: &Path) -> Vec<PathBuf> {
    let entries = nodes(data).into_iter().flat_map(|node| children(&node.join("drives")));
    entries.filter(|entry| entry.join(".orlop").exists()).collect()
}

/// Names of the volumes that lie on the drives, by their records.
pub fn volumes_on_drives(data: &Path) -> BTreeSet<String> {
    let records = drives(data).into_iter().flat_map(|drive| children(&drive.join(".orlop/volumes")));
    records.map(|record| record.file_stem().expect("a name").to_string_lossy().into_owned()).collect()
}

/// Whatever pods left below the node roots: their directories, and stages of volumes.
pub fn pod_leftovers(data: &Path) -> Vec<PathBuf> {
    let below = |node: PathBuf| {
        let mut left = children(&node.join("pods"));
        left.extend(children(&node.join("plugins/kubernetes.io/csi/orlop.dev")));
        left
    };
    nodes(data).into_iter().flat_map(below).collect()
}

/// Mount points below the data directory that are not the drives themselves.
pub fn volume_mounts(data: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
    let targets = table.lines().filter_map(|line| line.split(' ').nth(4));
    let ours = targets.filter(|target| Path::new(target).starts_with(data));
    ours.filter(|target| Path::new(target).parent().is_none_or(|parent| !parent.ends_with("drives")))
        .map(str::to_owned)
        .collect()
}

pub fn names<K: Resource>(objects: &[K]) -> BTreeSet<String> {
    objects.iter().map(ResourceExt::name_any).collect()
}

pub fn children(dir: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}
