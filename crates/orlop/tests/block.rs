//! Raw block volumes from a claim to a device in a container, with real kubectl binaries and the example that users get.

mod common;

use std::os::unix::fs::FileTypeExt;

use common::{BINARY, Place, kubectls, run, wait_until};

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/block.yaml");

/// A pod that reads the claim `disk` and can't write it, and one that wants it mounted.
const OTHERS: &str = "
apiVersion: v1
kind: Pod
metadata: {name: reader}
spec:
  restartPolicy: Never
  containers:
  - name: main
    image: host
    command: [sh, -c, \"head -c 7 /dev/disk; echo; echo lost | dd of=/dev/disk conv=fsync status=none || echo refused\"]
    volumeDevices: [{name: disk, devicePath: /dev/disk}]
  volumes: [{name: disk, persistentVolumeClaim: {claimName: disk, readOnly: true}}]
---
apiVersion: v1
kind: Pod
metadata: {name: mounter}
spec:
  containers:
  - name: main
    image: host
    command: [sleep, infinity]
    volumeMounts: [{name: disk, mountPath: /disk}]
  volumes: [{name: disk, persistentVolumeClaim: {claimName: disk}}]
";

#[test]
fn a_device_is_written_read_back_grown_and_found_again() {
    let Some(kubectl) = kubectls().into_iter().next() else { return };
    let place = Place::new();
    let mut orlop = place.up(&["--loop-drive", "1Gi"]);
    let ctl = |orlop: &common::Orlop, line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());
    let log = |orlop: &common::Orlop, pod: &str| {
        wait_until("the container has told", || ctl(orlop, &format!("logs {pod}")).contains('\n'));
        ctl(orlop, &format!("logs {pod}"))
    };
    let others = place.path().join("others.yaml");
    std::fs::write(&others, OTHERS).expect("writing");

    ctl(&orlop, &format!("apply -f {EXAMPLE}"));
    ctl(&orlop, "wait --for=condition=Ready pod/disk-user --timeout=60s");
    let written = log(&orlop, "disk-user");
    assert!(written.starts_with("written by disk-user"), "{written}");
    assert_eq!(ctl(&orlop, "get pv -o jsonpath={.items[0].spec.volumeMode}"), "Block");
    let listed = run(BINARY, &["volumes", "--data-dir", &place.data().display().to_string(), "-o", "yaml"]);
    assert!(listed.contains("volumeMode: Block") || listed.contains(r#""volumeMode": "Block""#), "{listed}");

    // kubelet's places.
    let (volume, uid) = (
        ctl(&orlop, "get pvc disk -o jsonpath={.spec.volumeName}"),
        ctl(&orlop, "get pod disk-user -o jsonpath={.metadata.uid}"),
    );
    let node = place.data().join("nodes/orlop-0");
    let device = node.join(format!("plugins/kubernetes.io/csi/volumeDevices/publish/{volume}/{uid}"));
    assert!(std::fs::metadata(&device).expect("published").file_type().is_block_device());
    let link = node.join(format!("pods/{uid}/volumeDevices/kubernetes.io~csi/{volume}"));
    assert_eq!(std::fs::read_link(link).expect("a link"), device);
    let size = || run("blockdev", &["--getsize64", &device.display().to_string()]).trim().to_owned();
    assert_eq!(size(), (64 << 20).to_string());

    // Others on the same node.
    ctl(&orlop, &format!("apply -f {}", others.display()));
    ctl(&orlop, "wait --for=jsonpath={.status.phase}=Succeeded pod/reader --timeout=60s");
    let told = ctl(&orlop, "logs reader");
    // Two streams, whose lines are in no order.
    assert!(
        ["written\n", "Operation not permitted\n", "refused\n"].iter().all(|line| told.contains(line)),
        "{told}"
    );
    wait_until("the wrong mode is told", || {
        let told =
            ctl(&orlop, "get events --field-selector reason=FailedMount -o jsonpath={.items[*].message}");
        told.contains("volume disk has volumeMode Block, but is specified in volumeMounts")
    });
    ctl(&orlop, &format!("delete -f {} --timeout=60s", others.display()));

    // Growing while in use.
    let patch = r#"{"spec":{"resources":{"requests":{"storage":"128Mi"}}}}"#;
    ctl(&orlop, &format!("patch pvc disk -p {patch}"));
    ctl(&orlop, "wait --for=jsonpath={.status.capacity.storage}=128Mi pvc/disk --timeout=60s");
    assert_eq!(size(), (128 << 20).to_string());

    // The container outlives Orlop, and its device with it.
    orlop.kill();
    orlop = place.up(&[]);
    assert_eq!(ctl(&orlop, "get pod disk-user -o jsonpath={.status.containerStatuses[0].restartCount}"), "0");
    assert_eq!(size(), (128 << 20).to_string());
    ctl(&orlop, "delete pod disk-user --timeout=60s");
    assert!(!device.exists(), "unpublished");

    // Another pod reads what the first has written; the claim in the file must not be smaller than it is by now.
    let grown = place.path().join("grown.yaml");
    let example = std::fs::read_to_string(EXAMPLE).expect("the example");
    std::fs::write(&grown, example.replace("storage: 64Mi", "storage: 128Mi")).expect("writing");
    ctl(&orlop, &format!("apply -f {}", grown.display()));
    ctl(&orlop, "wait --for=condition=Ready pod/disk-user --timeout=60s");
    assert_eq!(log(&orlop, "disk-user"), written);
    ctl(&orlop, &format!("delete -f {EXAMPLE} --timeout=60s"));
    wait_until("the space is given back", || ctl(&orlop, "get pv -o name").is_empty());
    orlop.stop();
    run(BINARY, &["down", "--data-dir", &place.data().display().to_string()]);
    assert_eq!(place.leftovers(), Vec::<String>::new());
}
