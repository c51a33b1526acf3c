//! Input that leads nowhere: it ends in an event that says so, and then there is quiet. Two hours are counted.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::time::Duration;

use controllers::Controller;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::StorageClass;
use resources::claim;
use resources::snapshot::VolumeSnapshot;
use serde_json::{Value, json};
use simulator::{Quiet, Role, World};

/// An input, and what comes of it.
struct Case {
    name: &'static str,
    claims: Vec<Value>,
    volumes: Vec<Value>,
    pods: Vec<Value>,
    snapshots: Vec<Value>,
    /// Processes besides the controllers.
    with: &'static [Role],
    /// Deleted once everything has been looked at.
    then_delete_class: Option<&'static str>,
    /// About which object, with which reason, saying what.
    event: (&'static str, &'static str, &'static str),
    /// Events that may be written in two hours after that: repeats, seldom.
    repeats: usize,
}

impl Case {
    fn new(name: &'static str, event: (&'static str, &'static str, &'static str)) -> Case {
        let (claims, volumes, pods, snapshots) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        Case { name, claims, volumes, pods, snapshots, with: &[], then_delete_class: None, event, repeats: 0 }
    }

    fn claim(mut self, name: &str, class: &str, change: impl FnOnce(&mut Value)) -> Case {
        let mut claim = json!({
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class,
                "resources": {"requests": {"storage": "1Gi"}}},
        });
        change(&mut claim);
        self.claims.push(claim);
        self
    }

    fn volume(mut self, name: &str, class: &str, change: impl FnOnce(&mut Value)) -> Case {
        let mut volume = json!({
            "metadata": {"name": name, "labels": {"tier": "tin"}},
            "spec": {"accessModes": ["ReadWriteOnce"], "storageClassName": class, "capacity": {"storage": "1Gi"},
                "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/nowhere"}},
        });
        change(&mut volume);
        self.volumes.push(volume);
        self
    }

    fn pod(mut self, name: &str, volume: Value) -> Case {
        self.pods.push(json!({
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"containers": [{"name": "main", "image": "host"}], "volumes": [volume]},
        }));
        self
    }

    fn snapshot(mut self, name: &str, class: &str, claim: &str) -> Case {
        self.snapshots.push(json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
            "metadata": {"name": name, "namespace": "default"},
            "spec": {"volumeSnapshotClassName": class, "source": {"persistentVolumeClaimName": claim}},
        }));
        self
    }

    fn with(mut self, roles: &'static [Role]) -> Case {
        self.with = roles;
        self
    }

    async fn play(self) {
        let mut world = World::new(0).await.with(CONTROLLERS);
        if !self.with.is_empty() {
            world.define_snapshots().await;
        }
        for role in [Role::Controllers].iter().chain(self.with) {
            world.start(*role);
        }
        for volume in &self.volumes {
            world.create::<PersistentVolume>(volume.clone()).await.unwrap();
        }
        for claim in &self.claims {
            world.create::<PersistentVolumeClaim>(claim.clone()).await.unwrap();
        }
        tokio::time::sleep(Duration::from_secs(5)).await;
        for snapshot in &self.snapshots {
            world.create::<VolumeSnapshot>(snapshot.clone()).await.unwrap();
        }
        for pod in &self.pods {
            world.create::<Pod>(pod.clone()).await.unwrap();
        }
        if let Some(class) = self.then_delete_class {
            tokio::time::sleep(Duration::from_secs(5)).await;
            world.delete::<StorageClass>(class).await;
        }
        let (about, reason, text) = self.event;
        let said = async || {
            let events = world.events_of(about).await;
            events.iter().any(|(why, message)| why == reason && message.contains(text))
        };
        for _ in 0..60 {
            if said().await {
                break;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        assert!(said().await, "{}: {:?}", self.name, world.events_of(about).await);
        tokio::time::sleep(Duration::from_secs(600)).await;
        let made = world.network.writes();
        assert!(made < 25, "{}: {made} writes until it was settled", self.name);
        let quiet = Quiet::over(&world, Duration::from_secs(2 * 3600)).await;
        assert_eq!(quiet.writes, 0, "{}: in two hours", self.name);
        assert!(quiet.events <= self.repeats, "{}: {} events in two hours", self.name, quiet.events);
        assert!(quiet.reads <= 10 + self.repeats * 20, "{}: {} reads in two hours", self.name, quiet.reads);
        for claim in world.list::<PersistentVolumeClaim>().await {
            assert!(["Pending", "Bound"].contains(&claim::phase(&claim)), "{}: {claim:?}", self.name);
        }
        assert_eq!(
            world.network.ledger(|ledger| ledger.wrong.clone()),
            Vec::<String>::new(),
            "{}",
            self.name
        );
    }
}

const CONTROLLERS: &[Controller] =
    &[Controller::Bind, Controller::Protect, Controller::Ephemeral, Controller::Snapshots];
/// The driver's side.
const NODES: &[Role] = &[Role::Node("n1"), Role::Node("n2")];

fn cases() -> Vec<Case> {
    let uses = |claim: &str| json!({"name": "data", "persistentVolumeClaim": {"claimName": claim}});
    let as_is = |_: &mut Value| {};
    let of_snapshot = |claim: &mut Value| {
        claim["spec"]["dataSource"] =
            json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
    };
    let source = |name: &'static str| {
        move |claim: &mut Value| {
            claim["spec"]["dataSource"] = json!({"kind": "PersistentVolumeClaim", "name": name})
        }
    };
    vec![
        Case::new("no class of that name", ("c", "ProvisioningFailed", "\"missing\" not found"))
            .claim("c", "missing", as_is),
        Case::new("no volume, and no class", ("c", "FailedBinding", "no storage class is set"))
            .claim("c", "", as_is),
        Case::new(
            "a selector that matches nothing",
            ("c", "FailedBinding", "no persistent volumes available"),
        )
        .volume("v", "", as_is)
        .claim("c", "", |claim| claim["spec"]["selector"] = json!({"matchLabels": {"tier": "gold"}})),
        Case::new("too large", ("c", "FailedBinding", "no persistent volumes available"))
            .volume("v", "", as_is)
            .claim("c", "", |claim| claim["spec"]["resources"]["requests"]["storage"] = "900Ti".into()),
        Case::new(
            "names a volume of another class",
            ("c", "VolumeMismatch", "storageClassName does not match"),
        )
        .volume("v", "local", as_is)
        .claim("c", "", |claim| claim["spec"]["volumeName"] = "v".into()),
        Case::new("names a volume that is too small", ("c", "VolumeMismatch", "too small"))
            .volume("v", "", as_is)
            .claim("c", "", |claim| {
                claim["spec"]["volumeName"] = "v".into();
                claim["spec"]["resources"]["requests"]["storage"] = "2Gi".into();
            }),
        Case::new(
            "names a volume that another claim has",
            ("c2", "FailedBinding", "already bound to a different claim"),
        )
        .volume("v", "", |volume| {
            volume["spec"]["claimRef"] =
                json!({"kind": "PersistentVolumeClaim", "namespace": "default", "name": "c1"});
        })
        .claim("c1", "", |claim| claim["spec"]["volumeName"] = "v".into())
        .claim("c2", "", |claim| claim["spec"]["volumeName"] = "v".into()),
        Case::new(
            "kept for a claim of another mode",
            ("c", "FailedBinding", "no persistent volumes available"),
        )
        .volume("v", "", |volume| {
            volume["spec"]["volumeMode"] = "Block".into();
            volume["spec"]["claimRef"] =
                json!({"kind": "PersistentVolumeClaim", "namespace": "default", "name": "c"});
        })
        .claim("c", "", as_is),
        Case::new("nobody provisions", ("c", "ExternalProvisioning", "storage.example.com"))
            .claim("c", "fast", as_is),
        Case {
            then_delete_class: Some("fast"),
            ..Case::new("its class is deleted while it waits", ("c", "ProvisioningFailed", "not found"))
                .claim("c", "fast", as_is)
        },
        Case {
            then_delete_class: Some("late"),
            ..Case::new("its late class is deleted", ("c", "ProvisioningFailed", "not found"))
                .claim("c", "late", as_is)
        },
        Case::new("no pod comes", ("c", "WaitForFirstConsumer", "waiting for first consumer"))
            .claim("c", "late", as_is),
        Case::new("a pod of no claim", ("p", "FailedScheduling", "not found"))
            .pod("p", uses("none"))
            .with(&[Role::Scheduler]),
        Case::new("a pod of a claim that is never bound", ("p", "FailedScheduling", "unbound immediate"))
            .claim("c", "", as_is)
            .pod("p", uses("c"))
            .with(&[Role::Scheduler]),
        Case::new(
            "a local volume is too small",
            ("p", "FailedScheduling", "didn't find available persistent volumes"),
        )
        .volume("v", "local", as_is)
        .claim("c", "local", |claim| claim["spec"]["resources"]["requests"]["storage"] = "2Gi".into())
        .pod("p", uses("c"))
        .with(&[Role::Scheduler]),
        Case::new("claims that are made from each other", ("a", "ProvisioningFailed", "go in a circle"))
            .claim("a", "fast", source("b"))
            .claim("b", "fast", source("a"))
            .with(NODES),
        Case::new("a claim that is made from itself", ("a", "ProvisioningFailed", "go in a circle"))
            .claim("a", "fast", source("a"))
            .with(NODES),
        Case::new("made from a claim that is not there", ("a", "ProvisioningFailed", "does not exist"))
            .claim("a", "fast", source("none"))
            .with(NODES),
        Case::new("made from a snapshot that is not there", ("a", "ProvisioningFailed", "does not exist"))
            .claim("a", "fast", of_snapshot)
            .with(NODES),
        Case::new(
            "made from a snapshot that is never taken",
            ("a", "ProvisioningFailed", "not ready to use"),
        )
        .snapshot("s", "shots", "none")
        .claim("a", "fast", of_snapshot)
        .with(NODES),
        Case::new(
            "a snapshot of a claim that is not there",
            ("s", "SnapshotContentCreationFailed", "not found"),
        )
        .snapshot("s", "shots", "none")
        .with(NODES),
        Case::new(
            "a snapshot of a claim that is never bound",
            ("s", "SnapshotContentCreationFailed", "not yet bound"),
        )
        .claim("c", "", as_is)
        .snapshot("s", "shots", "c")
        .with(NODES),
        Case::new(
            "a snapshot of a volume without a driver",
            ("s", "SnapshotContentCreationFailed", "no CSI volume"),
        )
        .volume("v", "", as_is)
        .claim("c", "", as_is)
        .snapshot("s", "shots", "c")
        .with(NODES),
        Case::new("a snapshot of no class", ("s", "GetSnapshotClassFailed", "not found"))
            .claim("c", "fast", as_is)
            .snapshot("s", "none", "c")
            .with(NODES),
        Case::new("a selector, and a driver", ("c", "ProvisioningFailed", "Selector is not supported"))
            .claim("c", "fast", |claim| claim["spec"]["selector"] = json!({"matchLabels": {"tier": "gold"}}))
            .with(NODES),
        Case::new(
            "modes that no volume has together",
            ("c", "ProvisioningFailed", "unsupported combination"),
        )
        .claim("c", "fast", |claim| {
            claim["spec"]["accessModes"] = json!(["ReadWriteOnce", "ReadOnlyMany"]);
        })
        .with(NODES),
        Case::new(
            "another claim has the name of a pod's own",
            ("p", "FailedBinding", "was not made for this pod"),
        )
        .claim("p-data", "", as_is)
        .pod(
            "p",
            json!({"name": "data", "ephemeral": {"volumeClaimTemplate": {"spec": {
                "accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}}}}),
        ),
    ]
}

#[test]
fn what_leads_nowhere_says_so_and_is_quiet() {
    for case in cases() {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(Box::pin(case.play()));
    }
}

#[test]
fn a_foreign_claim_that_goes_makes_room_for_a_pods_own() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(Box::pin(async {
        let mut world = World::new(0).await.with(CONTROLLERS);
        world.start(Role::Controllers);
        let case = cases().pop().unwrap();
        world.create::<PersistentVolumeClaim>(case.claims[0].clone()).await.unwrap();
        world.create::<Pod>(case.pods[0].clone()).await.unwrap();
        tokio::time::sleep(Duration::from_secs(300)).await;
        world.delete::<PersistentVolumeClaim>("p-data").await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        let claim = world.get::<PersistentVolumeClaim>("p-data").await.expect("the pod's own claim");
        assert_eq!(claim.metadata.owner_references.unwrap()[0].kind, "Pod");
    }));
}
