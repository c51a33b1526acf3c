//! The Node object and its lease: the node exists, what it has, and that it lives.

use std::{collections::BTreeMap, fs, sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::{
    api::{
        coordination::v1::{Lease, LeaseSpec},
        core::v1::{Namespace, Node, NodeAddress, NodeCondition, NodeStatus, NodeSystemInfo},
    },
    apimachinery::pkg::{
        api::resource::Quantity,
        apis::meta::v1::{MicroTime, ObjectMeta, OwnerReference, Time},
    },
};
use kube::{
    Api, Client, ResourceExt,
    api::{Patch, PatchParams, PostParams},
};
use resources::{annotations, labels};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{Options, in_use::InUse};

const LEASE_NAMESPACE: &str = "kube-node-lease";
/// kubelet's values: the lease holds for 40 s and is renewed every quarter of that.
const LEASE_SECONDS: i32 = 40;
const RENEWAL: Duration = Duration::from_secs(10);
/// How many pods a node takes. kubelet's 110 is the default of a network that is not here.
const MAX_PODS: u32 = 1000;

/// Keeps one Node object and its lease.
pub(crate) struct Registration {
    client: Client,
    name: String,
    address: String,
    labels: BTreeMap<String, String>,
    in_use: Arc<InUse>,
    /// Bytes of the file system under the node's root, on which pods keep what is not on volumes.
    storage: u64,
}

impl Registration {
    pub(crate) fn new(client: &Client, options: &Options, in_use: Arc<InUse>, storage: u64) -> Registration {
        let mut labels = BTreeMap::from([
            (labels::HOSTNAME.to_owned(), options.node_name.clone()),
            ("kubernetes.io/os".to_owned(), "linux".to_owned()),
            ("kubernetes.io/arch".to_owned(), architecture().to_owned()),
        ]);
        labels.extend(options.labels.clone());
        Registration {
            client: client.clone(),
            name: options.node_name.clone(),
            address: options.address.clone(),
            labels,
            in_use,
            storage,
        }
    }

    /// Makes the Node object, or brings it up to date, and takes the lease.
    pub(crate) async fn register(&self) -> Result<(), kube::Error> {
        let nodes = Api::<Node>::all(self.client.clone());
        let annotations =
            BTreeMap::from([(annotations::CONTROLLER_MANAGED_ATTACH.to_owned(), "true".to_owned())]);
        let node = match nodes.get_opt(&self.name).await? {
            Some(node) => node,
            None => {
                let metadata = ObjectMeta {
                    name: Some(self.name.clone()),
                    labels: Some(self.labels.clone()),
                    annotations: Some(annotations.clone()),
                    ..ObjectMeta::default()
                };
                let made = nodes.create(&PostParams::default(), &Node { metadata, ..Node::default() }).await;
                self.in_use.again();
                match made {
                    // An agent before this one had asked for it when it was killed.
                    Err(kube::Error::Api(status)) if status.is_already_exists() => {
                        nodes.get(&self.name).await?
                    }
                    made => made?,
                }
            }
        };
        let has = |have: &BTreeMap<String, String>, want: &BTreeMap<String, String>| {
            want.iter().all(|(key, value)| have.get(key) == Some(value))
        };
        let node = if has(node.labels(), &self.labels) && has(node.annotations(), &annotations) {
            node
        } else {
            let patch = json!({"metadata": {"labels": self.labels, "annotations": annotations}});
            nodes.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await?
        };
        let old = node.status.clone().unwrap_or_default();
        let status = self.status(&old, clock::now());
        if !same_but_for_heartbeat(&status, &old) {
            let patch = json!({"status": status});
            nodes.patch_status(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await?;
        }
        let namespaces = Api::<Namespace>::all(self.client.clone());
        if namespaces.get_opt(LEASE_NAMESPACE).await?.is_none() {
            let metadata = ObjectMeta { name: Some(LEASE_NAMESPACE.into()), ..ObjectMeta::default() };
            match namespaces
                .create(&PostParams::default(), &Namespace { metadata, ..Namespace::default() })
                .await
            {
                Err(kube::Error::Api(status)) if status.is_already_exists() => {}
                other => drop(other?),
            }
        }
        self.renew(node.uid()).await
    }

    /// Renews the lease until shutdown. A failure is logged once, and made good by the next renewal; a Node object
    /// that someone has deleted is made again.
    pub(crate) async fn keep(&self, shutdown: &CancellationToken) {
        let mut failing = false;
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = tokio::time::sleep(RENEWAL) => {}
            }
            let result = self.renew(None).await;
            if let (Err(error), false) = (&result, failing) {
                tracing::warn!(
                    node = self.name,
                    error = runtime::explain(error),
                    "cannot renew the node's lease"
                );
            }
            failing = result.is_err();
        }
    }

    async fn renew(&self, owner: Option<String>) -> Result<(), kube::Error> {
        let leases = Api::<Lease>::namespaced(self.client.clone(), LEASE_NAMESPACE);
        let now = clock::now();
        let patch = json!({"spec": {"holderIdentity": self.name, "leaseDurationSeconds": LEASE_SECONDS,
                                    "renewTime": MicroTime(now)}});
        match leases.patch(&self.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Err(kube::Error::Api(status)) if status.is_not_found() => {}
            other => return other.map(drop),
        }
        let uid = match owner {
            Some(uid) => Some(uid),
            None => {
                Api::<Node>::all(self.client.clone()).get_opt(&self.name).await?.and_then(|node| node.uid())
            }
        };
        let Some(uid) = uid else { return Box::pin(self.register()).await };
        let owner = OwnerReference {
            api_version: "v1".into(),
            kind: "Node".into(),
            name: self.name.clone(),
            uid,
            ..OwnerReference::default()
        };
        let lease = Lease {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                owner_references: Some(vec![owner]),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.name.clone()),
                lease_duration_seconds: Some(LEASE_SECONDS),
                renew_time: Some(MicroTime(now)),
                ..LeaseSpec::default()
            }),
        };
        match leases.create(&PostParams::default(), &lease).await {
            // As with the node; the next renewal finds it.
            Err(kube::Error::Api(status)) if status.is_already_exists() => Ok(()),
            made => made.map(drop),
        }
    }

    fn status(&self, old: &NodeStatus, now: Timestamp) -> NodeStatus {
        let quantity = |text: String| Quantity(text);
        let resources = BTreeMap::from([
            ("cpu".to_owned(), quantity(processors().to_string())),
            ("memory".to_owned(), quantity(format!("{}Ki", memory_kib()))),
            ("ephemeral-storage".to_owned(), quantity(format!("{}Ki", self.storage >> 10))),
            ("pods".to_owned(), quantity(MAX_PODS.to_string())),
        ]);
        let address = |kind: &str, address: &str| NodeAddress { type_: kind.into(), address: address.into() };
        NodeStatus {
            capacity: Some(resources.clone()),
            allocatable: Some(resources),
            addresses: Some(vec![address("InternalIP", &self.address), address("Hostname", &self.name)]),
            conditions: Some(conditions(old, now)),
            node_info: Some(node_info()),
            ..NodeStatus::default()
        }
    }
}

fn conditions(old: &NodeStatus, now: Timestamp) -> Vec<NodeCondition> {
    [
        ("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        ("Ready", "True", "KubeletReady", "the node agent mounts volumes and runs containers of image host"),
    ]
    .into_iter()
    .map(|(kind, status, reason, message)| {
        let before = old.conditions.iter().flatten().find(|old| old.type_ == kind && old.status == status);
        let now = Time(Timestamp::from_second(now.as_second()).unwrap_or(now));
        NodeCondition {
            type_: kind.into(),
            status: status.into(),
            reason: Some(reason.into()),
            message: Some(message.into()),
            last_transition_time: before
                .and_then(|old| old.last_transition_time.clone())
                .or(Some(now.clone())),
            last_heartbeat_time: Some(now),
        }
    })
    .collect()
}

fn same_but_for_heartbeat(new: &NodeStatus, old: &NodeStatus) -> bool {
    let without = |status: &NodeStatus| {
        let mut status = status.clone();
        for condition in status.conditions.iter_mut().flatten() {
            condition.last_heartbeat_time = None;
        }
        status
    };
    let (new, old) = (without(new), without(old));
    new.capacity == old.capacity
        && new.allocatable == old.allocatable
        && new.addresses == old.addresses
        && new.node_info == old.node_info
        && new.conditions == old.conditions
}

fn node_info() -> NodeSystemInfo {
    let line = |path: &str| fs::read_to_string(path).map(|text| text.trim().to_owned()).unwrap_or_default();
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let os_image = release.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux");
    NodeSystemInfo {
        architecture: architecture().into(),
        boot_id: line("/proc/sys/kernel/random/boot_id"),
        container_runtime_version: concat!("orlop://", env!("CARGO_PKG_VERSION")).into(),
        kernel_version: line("/proc/sys/kernel/osrelease"),
        kube_proxy_version: String::new(),
        kubelet_version: concat!("v1.36.0-orlop-", env!("CARGO_PKG_VERSION")).into(),
        machine_id: line("/etc/machine-id"),
        operating_system: "linux".into(),
        os_image: os_image.trim_matches('"').into(),
        system_uuid: line("/sys/class/dmi/id/product_uuid"),
        ..NodeSystemInfo::default()
    }
}

fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

pub(crate) fn processors() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

pub(crate) fn memory_kib() -> u64 {
    fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
            line.trim().strip_suffix("kB")?.trim().parse().ok()
        })
        .unwrap_or(0)
}
