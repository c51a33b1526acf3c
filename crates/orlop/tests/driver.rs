//! `orlop driver`: a start that is refused, a socket that answers, and an end that leaves the drive to a next start.

mod common;

use std::process::Stdio;

use common::caller::{self, Caller, capability, driver, faults_of_children, stop};
use common::{Place, run, wait_until};
use csi::v1::controller_client::ControllerClient;
use csi::v1::node_client::NodeClient;
use rustix::process::{Pid, Signal, kill_process};

#[tokio::test]
async fn the_socket_alone_serves_and_what_it_mounted_outlives_it() {
    let place = Place::new();
    let refused = driver(&place, &[]).output().unwrap();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("--loop-drive"), "{refused:?}");

    let socket = caller::socket(&place);
    let child = driver(&place, &["--loop-drive", "512Mi"]).spawn().unwrap();
    wait_until("the driver serves", || socket.exists());
    let channel = csi::connect(&socket).await.unwrap();
    let capability = capability();
    let request = csi::v1::CreateVolumeRequest {
        name: "v1".into(),
        volume_capabilities: vec![capability.clone()],
        ..Default::default()
    };
    let made = ControllerClient::new(channel.clone()).create_volume(request).await.unwrap();
    let volume = made.into_inner().volume.unwrap();
    assert_eq!(volume.accessible_topology[0].segments["topology.orlop.dev/node"], "n1");
    let staging = place.path().join("staging");
    let request = csi::v1::NodeStageVolumeRequest {
        volume_id: volume.volume_id.clone(),
        staging_target_path: staging.display().to_string(),
        volume_capability: Some(capability),
        ..Default::default()
    };
    NodeClient::new(channel).node_stage_volume(request).await.unwrap();
    std::fs::write(staging.join("kept"), "here").unwrap();

    stop(child);
    assert!(!socket.exists(), "the socket goes with the driver");
    assert_eq!(std::fs::read_to_string(staging.join("kept")).unwrap(), "here", "the volume stays mounted");

    // The next start needs no drive named; the volume is found, and can be taken away.
    let child = driver(&place, &[]).spawn().unwrap();
    wait_until("the driver serves again", || socket.exists());
    let channel = csi::connect(&socket).await.unwrap();
    let request = csi::v1::NodeUnstageVolumeRequest {
        volume_id: volume.volume_id,
        staging_target_path: staging.display().to_string(),
    };
    NodeClient::new(channel).node_unstage_volume(request).await.unwrap();
    stop(child);
    assert!(!run("losetup", &["-l", "-n", "-O", "BACK-FILE"]).contains(&place.path().display().to_string()));
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[test]
fn it_ends_in_order_when_nobody_reads_its_log_any_more() {
    let place = Place::new();
    let mut child = driver(&place, &["--loop-drive", "512Mi"]).stderr(Stdio::piped()).spawn().unwrap();
    wait_until("the driver serves", || caller::socket(&place).exists());
    drop(child.stderr.take());
    kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
    wait_until("the driver ends", || child.try_wait().unwrap().is_some());
    assert!(child.wait().unwrap().success());
    assert_eq!(place.leftovers(), Vec::<String>::new());
}

#[tokio::test]
async fn no_call_of_a_volume_s_life_starts_a_process() {
    let place = Place::new();
    let child = driver(&place, &["--loop-drive", "512Mi"]).spawn().unwrap();
    wait_until("the driver serves", || caller::socket(&place).exists());
    let caller = Caller::connect(&caller::socket(&place), place.path()).await;
    caller.probe().await.unwrap();
    let before = faults_of_children(child.id());
    assert_ne!(before, 0, "making the drive has started one, and that was seen");
    let volume = caller.create("v1", 32 << 20).await.unwrap();
    let target = caller.show(&volume, "v1").await.unwrap();
    std::fs::write(target.join("data"), "here").unwrap();
    caller.expand(&volume, 64 << 20).await.unwrap();
    caller.hide(&volume, "v1").await.unwrap();
    caller.delete(&volume).await.unwrap();
    assert_eq!(faults_of_children(child.id()), before);
    stop(child);
}
