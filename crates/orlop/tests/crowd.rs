//! A hundred claims and pods at once on three nodes: all run, and afterwards nothing is left.

mod common;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use common::world::{self, is_running, wait_for};
use common::{Place, run, wait_until};
use futures::future::try_join_all;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::Api;
use kube::api::ListParams;

const CROWD: usize = 100;
const PATIENCE: Duration = Duration::from_secs(180);

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_claims_and_pods_at_once() {
    let place = Place::new();
    let orlop =
        place.up(&["--nodes", "3", "--loop-drive", "1Gi", "--loop-drive", "1Gi", "--loop-drive", "1Gi"]);
    let client = orlop.client().await;
    let data = place.data();
    let names: Vec<String> = (0..CROWD).map(|number| format!("crowd-{number}")).collect();
    let loops = run("losetup", &["-l", "-n"]).lines().count();

    let began = Instant::now();
    try_join_all(names.iter().map(|name| world::create(&client, name))).await.expect("creating");
    wait_for(&world::pods(&client), "all pods run", PATIENCE, |pods| {
        pods.len() == CROWD && pods.iter().all(is_running)
    })
    .await;
    eprintln!("{CROWD} pods with a new claim each: all running after {:.1} s", began.elapsed().as_secs_f64());

    let volumes = world::volumes(&client).list(&ListParams::default()).await.unwrap().items;
    assert_eq!(volumes.len(), CROWD, "one volume a claim");
    assert_eq!(world::volumes_on_drives(&data).len(), CROWD, "one record a volume");
    let pods = world::pods(&client).list(&ListParams::default()).await.unwrap().items;
    let mut per_node = BTreeMap::new();
    for pod in &pods {
        *per_node.entry(pod.spec.as_ref().unwrap().node_name.clone().unwrap()).or_insert(0) += 1;
    }
    assert_eq!(per_node.len(), 3, "every node takes its part: {per_node:?}");
    assert!(per_node.values().all(|&pods| pods >= CROWD / 5), "spread evenly: {per_node:?}");

    let began = Instant::now();
    try_join_all(names.iter().map(|name| world::delete(&client, name))).await.expect("deleting");
    wait_for(&world::pods(&client), "all pods are gone", PATIENCE, |pods| pods.is_empty()).await;
    wait_for(&world::claims(&client), "all claims are gone", PATIENCE, |claims| claims.is_empty()).await;
    wait_for(&world::volumes(&client), "all volumes are gone", PATIENCE, |volumes| volumes.is_empty()).await;
    eprintln!("all gone {:.1} s after deletion", began.elapsed().as_secs_f64());

    let attachments: Api<VolumeAttachment> = Api::all(client.clone());
    assert!(attachments.list(&ListParams::default()).await.unwrap().items.is_empty());
    wait_until("no volume is left on a drive", || world::volumes_on_drives(&data).is_empty());
    wait_until("no mount is left", || world::volume_mounts(&data).is_empty());
    wait_until("no pod or stage directory is left", || world::pod_leftovers(&data).is_empty());
    let drives = world::drives(&data);
    assert_eq!(drives.len(), 3);
    for drive in drives {
        let list = |deleted: &[&str]| {
            run("btrfs", &[&["subvolume", "list"], deleted, &[&drive.display().to_string()]].concat())
        };
        wait_until("no subvolume is left, not even a deleted one", || {
            list(&[]).is_empty() && list(&["-d"]).is_empty()
        });
    }
    assert_eq!(run("losetup", &["-l", "-n"]).lines().count(), loops, "a loop device was left");
    let processes = |place: &Place| {
        let left = place.leftovers().into_iter();
        left.filter(|line| !line.contains(" up --listen ") && line.contains("monitor")).collect::<Vec<_>>()
    };
    wait_until("no container process is left", || processes(&place).is_empty());

    orlop.stop();
    run(common::BINARY, &["down", "--data-dir", &data.display().to_string()]);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}
