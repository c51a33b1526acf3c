//! `kill -9` of `orlop up` at random moments while claims and pods come and go.

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::world::{self, is_running, wait_for};
use common::{Place, Random, run, seed, wait_until};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;

const ROUNDS: u64 = 8;
const PATIENCE: Duration = Duration::from_secs(120);

/// What the API acknowledged: name to uid. Deleted ones are gone from here when the deletion was acknowledged;
/// names whose last call got no answer are in doubt and checked for nothing but leaks.
#[derive(Clone, Default)]
struct Acknowledged {
    notes: BTreeMap<String, String>,
    claims: BTreeMap<String, String>,
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_acknowledged_is_lost_and_nothing_leaks() {
    let mut random = Random(seed());
    let place = Place::new();
    let data = place.data();
    let arguments = ["--nodes", "2", "--loop-drive", "1Gi", "--loop-drive", "1Gi"];
    let counter = Arc::new(AtomicUsize::new(0));
    let acknowledged = Arc::new(Mutex::new(Acknowledged::default()));

    let orlop = place.up(&arguments);
    let client = orlop.client().await;
    world::create(&client, "survivor").await.unwrap();
    wait_for(&world::pods(&client), "the survivor runs", PATIENCE, |pods| pods.iter().all(is_running)).await;
    let survivor = container_of(&client, "survivor").await;
    orlop.kill();

    for round in 0..ROUNDS {
        let orlop = place.up(&arguments);
        let client = orlop.client().await;
        check(&client, &acknowledged).await;
        let workers: Vec<_> = (0..4)
            .map(|_| tokio::spawn(come_and_go(client.clone(), counter.clone(), acknowledged.clone())))
            .collect();
        tokio::time::sleep(Duration::from_millis(random.below(2_500))).await;
        orlop.kill();
        for worker in workers {
            worker.await.unwrap();
        }
        eprintln!("round {round}: {} objects were made so far", counter.load(Ordering::Relaxed));
    }

    let orlop = place.up(&[]);
    let client = orlop.client().await;
    check(&client, &acknowledged).await;
    assert_eq!(container_of(&client, "survivor").await, survivor, "the running container was found again");

    wait_for(&world::pods(&client), "all pods that are left run", PATIENCE, |pods| {
        pods.iter().all(is_running)
    })
    .await;
    wait_for(&world::claims(&client), "all deleted claims are gone", PATIENCE, |claims| {
        claims.iter().all(|claim| claim.metadata.deletion_timestamp.is_none())
    })
    .await;
    let bound = |volumes: &[k8s_openapi::api::core::v1::PersistentVolume]| {
        volumes.iter().all(|volume| volume.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Bound"))
    };
    wait_for(&world::volumes(&client), "all released volumes are gone", PATIENCE, bound).await;
    // A claim whose pod was deleted meanwhile may still get its volume.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let volumes = world::volumes(&client).list(&ListParams::default()).await.unwrap().items;
        let (on_drives, objects) = (world::volumes_on_drives(&data), world::names(&volumes));
        if on_drives == objects {
            break;
        }
        assert!(
            tokio::time::Instant::now() < deadline,
            "volumes on drives: {on_drives:?}; objects: {objects:?}\n{}",
            orlop.log_end()
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }

    for pod in world::names(&world::pods(&client).list(&ListParams::default()).await.unwrap().items) {
        world::pods(&client).delete(&pod, &DeleteParams::default()).await.unwrap();
    }
    for claim in world::names(&world::claims(&client).list(&ListParams::default()).await.unwrap().items) {
        world::claims(&client).delete(&claim, &DeleteParams::default()).await.unwrap();
    }
    wait_for(&world::pods(&client), "all pods are gone", PATIENCE, |pods| pods.is_empty()).await;
    wait_for(&world::volumes(&client), "all volumes are gone", PATIENCE, |volumes| volumes.is_empty()).await;
    wait_until("no volume is left on a drive", || world::volumes_on_drives(&data).is_empty());
    wait_until("no mount is left", || world::volume_mounts(&data).is_empty());
    wait_until("no pod directory is left", || world::pod_leftovers(&data).is_empty());
    orlop.stop();
    run(common::BINARY, &["down", "--data-dir", &data.display().to_string()]);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

/// Makes and deletes config maps, claims and pods until the server is gone, and notes what was acknowledged.
async fn come_and_go(client: Client, counter: Arc<AtomicUsize>, acknowledged: Arc<Mutex<Acknowledged>>) {
    let notes: Api<ConfigMap> = Api::default_namespaced(client.clone());
    loop {
        let number = counter.fetch_add(1, Ordering::Relaxed);
        let name = format!("object-{number}");
        let note = ConfigMap {
            metadata: kube::api::ObjectMeta { name: Some(name.clone()), ..Default::default() },
            ..Default::default()
        };
        let Ok(made) = notes.create(&PostParams::default(), &note).await else { return };
        acknowledged.lock().notes.insert(name.clone(), made.uid().expect("a uid"));
        if number.is_multiple_of(3) {
            acknowledged.lock().notes.remove(&name);
            let Ok(_) = notes.delete(&name, &DeleteParams::default()).await else { return };
        }
        if number.is_multiple_of(4) {
            let Ok(made) = world::make(&client, &world::claim(&name)).await else { return };
            acknowledged.lock().claims.insert(name.clone(), made.uid().expect("a uid"));
            let Ok(_) = world::make(&client, &world::pod(&name, &name)).await else { return };
            if number.is_multiple_of(8) {
                tokio::time::sleep(Duration::from_millis(number as u64 % 16 * 40)).await;
                acknowledged.lock().claims.remove(&name);
                let Ok(()) = world::delete(&client, &name).await else { return };
            }
        }
        tokio::time::sleep(Duration::from_millis(30)).await;
    }
}

/// Everything acknowledged is there, as the same object.
async fn check(client: &Client, acknowledged: &Mutex<Acknowledged>) {
    let Acknowledged { notes, claims } = acknowledged.lock().clone();
    let api: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let found = api.list(&ListParams::default()).await.expect("listing").items;
    let found: BTreeMap<String, String> =
        found.iter().map(|note| (note.name_any(), note.uid().expect("a uid"))).collect();
    for (name, uid) in &notes {
        assert_eq!(found.get(name), Some(uid), "config map {name} was acknowledged and is lost");
    }
    let found = world::claims(client).list(&ListParams::default()).await.expect("listing").items;
    let found: BTreeMap<String, String> =
        found.iter().map(|claim| (claim.name_any(), claim.uid().expect("a uid"))).collect();
    for (name, uid) in &claims {
        assert_eq!(found.get(name), Some(uid), "claim {name} was acknowledged and is lost");
    }
}

async fn container_of(client: &Client, pod: &str) -> (Option<String>, i32) {
    let pod = world::pods(client).get(pod).await.expect("the pod");
    let status = &pod.status.expect("a status").container_statuses.expect("containers")[0];
    assert!(status.state.as_ref().is_some_and(|state| state.running.is_some()), "it runs");
    (status.container_id.clone(), status.restart_count)
}
