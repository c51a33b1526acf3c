//! Block volumes of pods: a CSI driver with loop devices that fails at every call in turn, and real containers that get
//! the device and no other.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::{Path, PathBuf};

use common::{
    World,
    driver::{Driver, Fault},
    is_root,
};
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use linux::{Kernel, LoopDevices};
use serde_json::{Value, json};

async fn world(name: &str) -> (World, Driver) {
    World::with_driver(name, Driver::default(), json!({"attachRequired": false})).await
}

async fn claim(world: &World, name: &str, mode: &str) {
    world.bound_claim(name, "8Mi", json!({"accessModes": ["ReadWriteOnce"], "volumeMode": mode})).await;
}

fn with_device(claim: &str, image: &str, read_only: bool) -> Value {
    json!({"containers": [{"image": image, "volumeDevices": [{"name": "disk", "devicePath": "/dev/disk"}]}],
           "volumes": [{"name": "disk", "persistentVolumeClaim": {"claimName": claim, "readOnly": read_only}}]})
}

fn target(world: &World, pod: &Pod, claim: &str) -> PathBuf {
    let uid = pod.metadata.uid.as_ref().unwrap();
    world.root.join(format!("plugins/kubernetes.io/csi/volumeDevices/publish/pv-{claim}/{uid}"))
}

async fn published(world: &World, pod: &Pod, claim: &str) {
    let uid = pod.metadata.uid.as_ref().unwrap();
    let record = world.root.join(format!("pods/{uid}/plugins/kubernetes.io~csi/pv-{claim}/vol_data.json"));
    world
        .until("the volume is published", async || {
            let ready = std::fs::read_to_string(&record).is_ok_and(|text| text.contains(r#""ready":true"#));
            (ready && world.mounts().contains(&target(world, pod, claim))).then_some(())
        })
        .await;
    let link = world.root.join(format!("pods/{uid}/volumeDevices/kubernetes.io~csi/pv-{claim}"));
    assert_eq!(std::fs::read_link(link).unwrap(), target(world, pod, claim));
}

async fn delete(world: &World, pod: &str) {
    world.pods().delete(pod, &DeleteParams::default()).await.unwrap();
    world.gone(pod).await;
}

fn nothing_left(world: &World, driver: &Driver, when: &str) {
    assert_eq!(world.mounts(), Vec::<PathBuf>::new(), "{when}");
    let loops = Kernel.loops_of(&driver.image("data")).unwrap();
    assert!(loops.iter().all(|device| device.leaving), "{when}: {loops:?}");
    let empty = |path: &Path| std::fs::read_dir(path).unwrap().count() == 0;
    assert!(empty(&world.root.join("pods")), "{when}");
    let devices = world.root.join("plugins/kubernetes.io/csi/volumeDevices");
    for entry in std::fs::read_dir(&devices).unwrap().flatten() {
        assert!(["staging", "publish"].map(Into::into).contains(&entry.file_name()), "{when}: {entry:?}");
        assert!(empty(&entry.path()), "{when}: {entry:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_driver_call_may_fail_or_be_the_last() {
    if !is_root() {
        return;
    }
    let (mut world, driver) = world("devices").await;
    claim(&world, "data", "Block").await;
    let faults = [Fault::LostBefore, Fault::LostAfter, Fault::Refused, Fault::CrashBefore, Fault::CrashAfter];
    for fault in faults {
        for at in 0..4 {
            driver.calls.lock().clear();
            *driver.fault.lock() = Some((at, fault));
            let pod = world.pod("user", "", with_device("data", "nginx", false)).await;
            let crashes = matches!(fault, Fault::CrashBefore | Fault::CrashAfter);
            let crash = async |world: &mut World| {
                tokio::time::timeout(common::PATIENCE, driver.crash.notified()).await.unwrap();
                world.crash().await;
                world.start();
            };
            if crashes && at < 2 {
                crash(&mut world).await;
            }
            published(&world, &pod, "data").await;
            world.pods().delete("user", &DeleteParams::default()).await.unwrap();
            if crashes && at >= 2 {
                crash(&mut world).await;
            }
            world.gone("user").await;
            nothing_left(&world, &driver, &format!("{fault:?} at {at}: {:?}", driver.calls.lock()));
        }
    }
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_container_gets_its_device_and_no_other() {
    if !is_root() {
        return;
    }
    let (mut world, driver) = world("given").await;
    claim(&world, "data", "Block").await;
    let script = "echo kept | dd of=/dev/disk bs=4096 conv=sync,fsync 2>/dev/null && echo wrote; \
        mknod /tmp/other b 7 250 && dd if=/tmp/other of=/dev/null count=1 2>&1 | grep -o 'not permitted'; \
        stat -c %t:%T /dev/disk; trap 'exit 0' TERM; while :; do sleep 0.1; done";
    let writer = world.pod("writer", script, with_device("data", "host", false)).await;
    world.phase("writer", "Running").await;
    let log = world
        .until("the script has run", async || {
            let log = world.log(&writer, Default::default()).await;
            (log.lines().count() >= 3).then_some(log)
        })
        .await;
    assert!(log.starts_with("wrote\nnot permitted\n7:"), "{log}");

    // The agent may come and go; whoever reads only can't write.
    world.crash().await;
    world.start();
    let script =
        "head -c 4 /dev/disk; echo; echo lost | dd of=/dev/disk conv=fsync 2>/dev/null || echo refused";
    let mut spec = with_device("data", "host", true);
    spec["restartPolicy"] = json!("Never");
    let reader = world.pod("reader", script, spec).await;
    world.phase("reader", "Succeeded").await;
    assert_eq!(world.log(&reader, Default::default()).await, "kept\nrefused\n");
    let publish = driver.calls.lock().iter().rfind(|call| call.starts_with("publish")).cloned().unwrap();
    assert!(publish.ends_with("ro=true"), "{publish}");
    let staged = driver.calls.lock().iter().filter(|call| call.starts_with("unstage")).count();
    assert_eq!(staged, 0, "the writer has it");
    delete(&world, "reader").await;
    delete(&world, "writer").await;
    nothing_left(&world, &driver, "after all");
    world.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_volume_of_the_other_mode_is_refused_by_name() {
    if !is_root() {
        return;
    }
    let (world, driver) = world("modes").await;
    claim(&world, "data", "Block").await;
    claim(&world, "files", "Filesystem").await;
    let mounted = json!({"containers": [{"image": "nginx", "volumeMounts": [{"name": "disk", "mountPath": "/disk"}]}],
        "volumes": [{"name": "disk", "persistentVolumeClaim": {"claimName": "data"}}]});
    world.pod("mounts", "", mounted).await;
    world.pod("maps", "", with_device("files", "nginx", false)).await;
    for (reason, message) in [
        ("FailedMount", "volume disk has volumeMode Block, but is specified in volumeMounts"),
        ("FailedMapVolume", "volume disk has volumeMode Filesystem, but is specified in volumeDevices"),
    ] {
        world
            .until(&format!("an event {reason}: {message}"), async || {
                let events = world.events().await;
                events.iter().any(|(r, m)| r == reason && m.contains(message)).then_some(())
            })
            .await;
    }
    assert_eq!(*driver.calls.lock(), Vec::<String>::new(), "the driver was not asked");
    delete(&world, "mounts").await;
    delete(&world, "maps").await;
    world.end().await;
}
