//! A CSI driver that runs beside Orlop, and whose volumes have to be attached to nodes.

mod common;

use std::collections::BTreeMap;
use std::time::Duration;

use common::driver::{NAME, Storage};
use common::world::{self, is_running, wait_for};
use common::{BINARY, Orlop, PATIENCE, Place, Random, run, seed, wait_until};
use k8s_openapi::ClusterResourceScope;
use k8s_openapi::api::core::v1::{Event, Node, PersistentVolume, PersistentVolumeClaim, Pod};
use k8s_openapi::api::storage::v1::{CSIDriver, StorageClass, VolumeAttachment};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

/// The example that users get.
const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/any-driver.yaml");

/// Nodes with a driver each over the same storage.
struct Machine {
    place: Place,
    storage: Storage,
    nodes: Vec<String>,
    /// How Orlop is told of the drivers.
    drivers: Vec<String>,
}

impl Machine {
    fn new(nodes: usize) -> Machine {
        let place = Place::new();
        let storage = Storage::new(&place.path().join("storage"));
        let drives = (0..nodes).flat_map(|_| ["--loop-drive".to_owned(), "512Mi".to_owned()]);
        let drivers = (0..nodes).flat_map(|at| {
            let socket = storage.serve(&format!("orlop-{at}")).display().to_string();
            // Without a name it is the first.
            let node = if at == 0 { String::new() } else { format!("orlop-{at}=") };
            ["--csi-driver".to_owned(), format!("{node}unix://{socket}")]
        });
        let drivers = drivers.collect();
        let nodes = ["--nodes".to_owned(), nodes.to_string()].into_iter().chain(drives).collect();
        Machine { place, storage, nodes, drivers }
    }

    fn up(&self) -> Orlop {
        self.place.up(&self.nodes.iter().chain(&self.drivers).map(String::as_str).collect::<Vec<_>>())
    }

    /// Waits until the driver was called like this since it was asked last, and not otherwise.
    fn called(&self, expected: &[&str]) {
        let mut calls = Vec::new();
        wait_until(&format!("the driver's calls are {expected:?}"), || {
            calls.extend(self.storage.calls());
            calls.len() >= expected.len()
        });
        assert_eq!(calls, expected);
        assert_eq!(self.storage.wrong(), Vec::<String>::new());
    }
}

async fn make<K>(client: &Client, object: Value)
where
    K: Resource<DynamicType = (), Scope = ClusterResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
{
    let object: K = serde_json::from_value(object).expect("a valid object");
    Api::all(client.clone()).create(&PostParams::default(), &object).await.expect("created");
}

/// The driver's objects, and a claim of it.
async fn prepare(client: &Client, claims: &[&str]) {
    make::<CSIDriver>(client, json!({"metadata": {"name": NAME}, "spec": {"attachRequired": true}})).await;
    let class = json!({"metadata": {"name": "network"}, "provisioner": NAME});
    make::<StorageClass>(client, class).await;
    for name in claims {
        let mut claim = world::claim(name);
        claim.spec.get_or_insert_default().storage_class_name = Some("network".to_owned());
        world::make::<PersistentVolumeClaim>(client, &claim).await.expect("a claim");
    }
}

fn pod_on(name: &str, node: &str, claim: &str) -> Pod {
    let mut pod = world::pod(name, claim);
    let node = ("kubernetes.io/hostname".to_owned(), node.to_owned());
    pod.spec.get_or_insert_default().node_selector = Some(BTreeMap::from([node]));
    pod
}

async fn start(client: &Client, name: &str, node: &str) {
    world::make::<Pod>(client, &pod_on(name, node, "data")).await.expect("a pod");
}

async fn runs(client: &Client, name: &str) {
    let what = format!("{name} runs");
    let runs = |pods: &[Pod]| pods.iter().any(|pod| pod.name_any() == name && is_running(pod));
    wait_for(&world::pods(client), &what, PATIENCE, runs).await;
}

async fn delete(client: &Client, name: &str) {
    world::pods(client).delete(name, &DeleteParams::default()).await.expect("deleted");
}

async fn gone(client: &Client, name: &str) {
    let gone = |pods: &[Pod]| pods.iter().all(|pod| pod.name_any() != name);
    wait_for(&world::pods(client), &format!("{name} is gone"), PATIENCE, gone).await;
}

async fn told(client: &Client, pod: &str, reason: &str, text: &str) {
    let events: Api<Event> = Api::default_namespaced(client.clone());
    wait_for(&events, &format!("{pod} is told {text:?}"), PATIENCE, |events| {
        events.iter().any(|event| {
            event.involved_object.name.as_deref() == Some(pod)
                && event.reason.as_deref() == Some(reason)
                && event.message.as_deref().is_some_and(|message| message.contains(text))
        })
    })
    .await;
}

async fn attachments(client: &Client, count: usize) {
    let api: Api<VolumeAttachment> = Api::all(client.clone());
    wait_for(&api, &format!("{count} VolumeAttachments"), PATIENCE, |all| all.len() == count).await;
}

/// Waits until no node has, or uses, any volume that was attached.
async fn nothing_attached(client: &Client) {
    attachments(client, 0).await;
    let is_free = |node: &Node| {
        resources::node::volumes_in_use(node).is_empty()
            && resources::node::volumes_attached(node).next().is_none()
    };
    let nodes: Api<Node> = Api::all(client.clone());
    wait_for(&nodes, "nodes are free", PATIENCE, |nodes| nodes.iter().all(is_free)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_volume_goes_to_the_node_of_its_pod_and_is_detached_after_it_is_unmounted() {
    let machine = Machine::new(2);
    let mut orlop = machine.up();
    let mut client = orlop.client().await;
    prepare(&client, &["data"]).await;
    start(&client, "first", "orlop-0").await;
    runs(&client, "first").await;
    machine.called(&["create", "attach orlop-0", "stage orlop-0", "publish orlop-0"]);
    told(&client, "first", "SuccessfulAttachVolume", "AttachVolume.Attach succeeded for volume").await;

    // It is for one node only: another pod waits, and is told for whom.
    start(&client, "second", "orlop-1").await;
    told(&client, "second", "FailedAttachVolume", "Multi-Attach error for volume").await;
    told(&client, "second", "FailedAttachVolume", "Volume is already used by pod(s) first").await;
    let waits = |pods: &[Pod]| {
        let status = pods.iter().find(|pod| pod.name_any() == "second").and_then(|pod| pod.status.as_ref());
        serde_json::to_string(&status).is_ok_and(|text| text.contains("is not attached to this node yet"))
    };
    wait_for(&world::pods(&client), "second shows what it waits for", PATIENCE, waits).await;

    // A crash changes nothing of that.
    orlop.kill();
    orlop = machine.up();
    client = orlop.client().await;
    runs(&client, "first").await;
    told(&client, "second", "FailedAttachVolume", "Volume is already used by pod(s) first").await;
    attachments(&client, 1).await;
    assert_eq!(machine.storage.calls(), Vec::<String>::new(), "what is attached and mounted stays so");

    // The driver can't detach for a while, and Orlop dies meanwhile.
    machine.storage.refuse(Some("detach"));
    delete(&client, "first").await;
    gone(&client, "first").await;
    machine.called(&["unpublish orlop-0", "unstage orlop-0"]);
    let api: Api<VolumeAttachment> = Api::all(client.clone());
    wait_for(&api, "the failure is shown", PATIENCE, |all| {
        serde_json::to_string(all).is_ok_and(|text| text.contains("detach is not possible now"))
    })
    .await;
    orlop.kill();
    machine.storage.refuse(None);
    orlop = machine.up();
    client = orlop.client().await;
    runs(&client, "second").await;
    machine.called(&["detach orlop-0", "attach orlop-1", "stage orlop-1", "publish orlop-1"]);
    let [volume] = &machine.storage.volumes()[..] else { panic!("one volume") };
    wait_until("the second has written what the first wrote before", || {
        std::fs::read_to_string(volume.join("name")).is_ok_and(|name| name.trim() == "second")
    });

    // The claim goes with its last pod, and the volume is deleted when it is not attached any more.
    world::claims(&client).delete("data", &DeleteParams::default()).await.expect("deleted");
    delete(&client, "second").await;
    gone(&client, "second").await;
    machine.called(&["unpublish orlop-1", "unstage orlop-1", "detach orlop-1", "delete"]);
    nothing_attached(&client).await;
    wait_for(&world::volumes(&client), "no volume is left", PATIENCE, <[PersistentVolume]>::is_empty).await;
    orlop.stop();
    run(BINARY, &["down", "--data-dir", &machine.place.data().display().to_string()]);
    drop(client);
    let sockets = machine.storage.volumes();
    assert!(sockets.is_empty(), "{sockets:?}");
    assert_eq!(machine.place.leftovers(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_failing_attacher_is_shown_and_tearing_down_goes_through_the_driver() {
    let machine = Machine::new(1);
    let refused = machine.place.refused(&["--csi-driver", "orlop-7=unix:///run/csi.sock"]);
    assert!(refused.contains("there is no node orlop-7 for the driver"), "{refused}");
    let orlop = machine.up();
    let client = orlop.client().await;
    machine.storage.refuse(Some("attach"));
    orlop.run(BINARY, &["apply", "-f", EXAMPLE]);
    told(&client, "note-taker", "FailedAttachVolume", "attach is not possible now").await;
    machine.called(&["create"]);
    // Nothing was mounted: the pod goes at once, and what the driver may have done is undone.
    delete(&client, "note-taker").await;
    gone(&client, "note-taker").await;
    nothing_attached(&client).await;
    machine.storage.refuse(None);
    orlop.run(BINARY, &["apply", "-f", EXAMPLE]);
    runs(&client, "note-taker").await;
    machine.called(&["attach orlop-0", "stage orlop-0", "publish orlop-0"]);
    orlop.stop();

    let data = machine.place.data().display().to_string();
    let mut down = vec!["down", "--data-dir", &data];
    down.extend(machine.drivers.iter().map(String::as_str));
    run(BINARY, &down);
    machine.called(&["unpublish orlop-0", "unstage orlop-0"]);
    assert_eq!(machine.place.leftovers(), Vec::<String>::new());
}

/// Pods of three claims come and go on both nodes, faster than volumes can follow, while Orlop is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn nothing_is_detached_from_under_a_pod_whenever_orlop_is_killed() {
    const CLAIMS: [&str; 3] = ["a", "b", "c"];
    let mut random = Random(seed());
    let machine = Machine::new(2);
    let orlop = machine.up();
    prepare(&orlop.client().await, &CLAIMS).await;
    orlop.kill();
    for round in 0..5 {
        let orlop = machine.up();
        let client = orlop.client().await;
        let movers = CLAIMS
            .map(|claim| tokio::spawn(come_and_go(client.clone(), claim, Random(random.below(u64::MAX)))));
        tokio::time::sleep(Duration::from_millis(1000 + random.below(2500))).await;
        orlop.kill();
        for mover in movers {
            mover.await.expect("it ends with Orlop");
        }
        eprintln!("round {round}: {:?}", machine.storage.attached());
        assert_eq!(machine.storage.wrong(), Vec::<String>::new());
    }

    // Each claim is served on the other node now, whatever was going on.
    let orlop = machine.up();
    let client = orlop.client().await;
    for pod in world::pods(&client).list(&Default::default()).await.expect("pods") {
        // It may be gone already.
        let _ = world::pods(&client).delete(&pod.name_any(), &DeleteParams::default()).await;
    }
    for claim in CLAIMS {
        let pod = pod_on(&format!("last-{claim}"), "orlop-1", claim);
        world::make::<Pod>(&client, &pod).await.expect("a pod");
    }
    for claim in CLAIMS {
        runs(&client, &format!("last-{claim}")).await;
    }
    attachments(&client, CLAIMS.len()).await;
    for claim in CLAIMS {
        delete(&client, &format!("last-{claim}")).await;
        world::claims(&client).delete(claim, &DeleteParams::default()).await.expect("deleted");
    }
    nothing_attached(&client).await;
    wait_for(&world::volumes(&client), "no volume is left", PATIENCE, <[PersistentVolume]>::is_empty).await;
    assert_eq!(machine.storage.wrong(), Vec::<String>::new());
    let calls = machine.storage.calls();
    let count = |of: &str| calls.iter().filter(|call| call.starts_with(of)).count();
    eprintln!("{} attached, {} detached", count("attach"), count("detach"));
    assert_eq!(count("attach"), count("detach"));
    assert_eq!((count("create"), count("delete")), (CLAIMS.len(), CLAIMS.len()));
    wait_until("no mount is left", || world::volume_mounts(&machine.place.data()).is_empty());
    orlop.stop();
}

/// Moves a claim between the nodes until Orlop is gone.
async fn come_and_go(client: Client, claim: &str, mut random: Random) {
    let pods = world::pods(&client);
    for number in 0.. {
        let node = format!("orlop-{}", random.below(2));
        let name = format!("{claim}-{number}-{}", random.below(1 << 32));
        let at_once = DeleteParams::default().grace_period(random.below(2) as u32);
        let moved = async {
            pods.create(&PostParams::default(), &pod_on(&name, &node, claim)).await?;
            tokio::time::sleep(Duration::from_millis(random.below(700))).await;
            pods.delete(&name, &at_once).await
        };
        if moved.await.is_err() {
            return;
        }
    }
}
