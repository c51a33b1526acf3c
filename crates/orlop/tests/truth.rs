//! The drive is the truth: with every object and the whole data directory gone, all is found on the drives again, also
//! on another machine.

mod common;

use std::path::Path;

use common::{BINARY, LoopDevice, Place, kubectls, run, wait_until};
use csi::v1::controller_client::ControllerClient;
use csi::v1::{self, CreateSnapshotRequest, ListSnapshotsRequest};
use tonic::transport::Channel;

/// A claim, and a pod that keeps what it once wrote.
const MANIFEST: &str = "
apiVersion: v1
kind: PersistentVolumeClaim
metadata: {name: journal}
spec:
  accessModes: [ReadWriteOnce]
  resources: {requests: {storage: 32Mi}}
---
apiVersion: v1
kind: Pod
metadata: {name: writer}
spec:
  terminationGracePeriodSeconds: 2
  containers:
  - name: main
    image: host
    command: [sh, -c, \"trap 'exit 0' TERM; [ -e /data/first ] || date +%s%N > /data/first; sleep infinity & wait\"]
    volumeMounts: [{name: data, mountPath: /data}]
  volumes:
  - name: data
    persistentVolumeClaim: {claimName: journal}
";

async fn driver(place: &Place) -> ControllerClient<Channel> {
    let socket = place.data().join("nodes/orlop-0/plugins/orlop.dev/csi.sock");
    ControllerClient::new(csi::connect(socket).await.expect("the driver"))
}

async fn snapshots(place: &Place) -> Vec<v1::Snapshot> {
    let answer = driver(place).await.list_snapshots(ListSnapshotsRequest::default()).await;
    answer.expect("listed").into_inner().entries.into_iter().filter_map(|entry| entry.snapshot).collect()
}

fn volumes(place: &Place, output: &str) -> String {
    let (data, kubeconfig) = (place.data().display().to_string(), place.kubeconfig().display().to_string());
    run(BINARY, &["volumes", "--data-dir", &data, "--kubeconfig", &kubeconfig, "-o", output])
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_comes_back_from_the_drives_alone() {
    let Some(kubectl) = kubectls().into_iter().next() else { return };
    let devices = Place::new();
    let (one, other) = (LoopDevice::new(&devices, "one.img"), LoopDevice::new(&devices, "other.img"));
    let manifest = devices.path().join("manifest.yaml");
    std::fs::write(&manifest, MANIFEST).unwrap();
    let manifest = manifest.to_str().unwrap();
    let drives = "get drives -o jsonpath={range.items[*]}{.metadata.name}{.spec.backend}{.status}{end}";

    let first = Place::new();
    let orlop = first.up(&["--drive", &one.0, "--drive", &other.0]);
    let ctl = |line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());
    ctl(&format!("apply -f {manifest}"));
    ctl("wait --for=condition=Ready pod/writer --timeout=60s");
    let grown = r#"{"spec":{"resources":{"requests":{"storage":"48Mi"}}}}"#;
    ctl(&format!("patch pvc journal -p {grown}"));
    ctl("wait --for=jsonpath={.status.capacity.storage}=48Mi pvc/journal --timeout=60s");
    let written = data_of(&first, &ctl("get pod writer -o jsonpath={.metadata.uid}"));
    let handle = ctl("get pv -o jsonpath={.items[0].spec.csi.volumeHandle}");
    let request = CreateSnapshotRequest {
        source_volume_id: handle.clone(),
        name: "before".into(),
        ..CreateSnapshotRequest::default()
    };
    driver(&first).await.create_snapshot(request).await.expect("a snapshot");
    let listed = volumes(&first, "table");
    assert!(
        listed.contains("default/journal") && listed.contains("48Mi") && listed.contains("Bound"),
        "{listed}"
    );
    let printed = volumes(&first, "yaml");
    wait_until("the drives' objects follow", || ctl(drives).matches("\"allocated\":\"0\"").count() == 1);
    let before = (ctl(drives), snapshots(&first).await);
    orlop.stop();
    run(BINARY, &["down", "--data-dir", &first.data().display().to_string()]);
    std::fs::remove_dir_all(first.data()).unwrap();

    // The drives in another order, and nothing else: on this machine or on another is the same.
    let second = Place::new();
    let orlop = second.up(&["--drive", &other.0, "--drive", &one.0]);
    let ctl = |line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());
    wait_until("the drives have their objects", || ctl(drives) == before.0);
    assert_eq!(snapshots(&second).await, before.1);
    assert_eq!(volumes(&second, "yaml"), printed);
    assert!(volumes(&second, "table").contains("Orphaned"), "their objects are gone");

    // The claim gets its volume back, and the pod what it wrote.
    assert_eq!(ctl("get pv -o name"), "", "no object is made up");
    let restored = devices.path().join("restored.yaml");
    std::fs::write(&restored, volumes(&second, "yaml")).unwrap();
    ctl(&format!("create -f {}", restored.display()));
    ctl(&format!("apply -f {manifest}"));
    ctl("wait --for=condition=Ready pod/writer --timeout=60s");
    assert_eq!(ctl("get pv -o jsonpath={.items[*].spec.csi.volumeHandle}"), handle);
    assert_eq!(data_of(&second, &ctl("get pod writer -o jsonpath={.metadata.uid}")), written);
    assert_eq!(ctl("get pvc journal -o jsonpath={.status.capacity.storage}"), "48Mi");

    // And it is deleted like any other, once its policy says so.
    ctl("delete pod writer --timeout=60s");
    let policy = r#"{"spec":{"persistentVolumeReclaimPolicy":"Delete"}}"#;
    ctl(&format!("patch pv {} -p {policy}", ctl("get pv -o jsonpath={.items[0].metadata.name}")));
    ctl("delete pvc journal --timeout=60s");
    wait_until("the volume is gone from its drive", || !volumes(&second, "table").contains(&handle));
    wait_until("and so is its object", || ctl("get pv -o name").is_empty());
    orlop.stop();
}

/// What the pod found or wrote.
fn data_of(place: &Place, pod: &str) -> String {
    let volumes = place.data().join("nodes/orlop-0/pods").join(pod).join("volumes/kubernetes.io~csi");
    let mount = common::world::children(&volumes).remove(0).join("mount");
    let file: &Path = &mount.join("first");
    wait_until("the container wrote", || std::fs::metadata(file).is_ok_and(|file| file.len() > 0));
    std::fs::read_to_string(file).unwrap_or_else(|err| panic!("{}: {err}", file.display()))
}

/// A PersistentVolume as DirectPV's provisioner wrote it, and a claim and a pod for it.
fn of_directpv(name: &str) -> String {
    let term =
        |key: &str, value: &str| format!("{{key: directpv.min.io/{key}, operator: In, values: [{value}]}}");
    let terms = [
        term("identity", "directpv-min-io"),
        term("node", "orlop-0"),
        term("rack", "default"),
        term("region", "default"),
        term("zone", "default"),
    ];
    format!(
        "
apiVersion: v1
kind: PersistentVolume
metadata:
  name: {name}
  annotations: {{pv.kubernetes.io/provisioned-by: directpv-min-io}}
spec:
  accessModes: [ReadWriteOnce]
  capacity: {{storage: 32Mi}}
  claimRef: {{namespace: default, name: journal}}
  csi:
    driver: directpv-min-io
    volumeHandle: {name}
    volumeAttributes: {{storage.kubernetes.io/csiProvisionerIdentity: 1678000000000-8081-directpv-min-io}}
  nodeAffinity: {{required: {{nodeSelectorTerms: [{{matchExpressions: [{}]}}]}}}}
  persistentVolumeReclaimPolicy: Delete
  storageClassName: directpv-min-io
---{MANIFEST}",
        terms.join(", ")
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn persistent_volumes_of_directpv_are_served_under_its_name() {
    let Some(kubectl) = kubectls().into_iter().next() else { return };
    let devices = Place::new();
    let device = LoopDevice::new(&devices, "drive.img");
    let manifest = devices.path().join("manifest.yaml").display().to_string();
    std::fs::write(&manifest, MANIFEST).unwrap();
    let first = Place::new();
    let orlop = first.up(&["--drive", &device.0]);
    let ctl = |line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());
    ctl(&format!("apply -f {manifest}"));
    ctl("wait --for=condition=Ready pod/writer --timeout=60s");
    let written = data_of(&first, &ctl("get pod writer -o jsonpath={.metadata.uid}"));
    let name = ctl("get pv -o jsonpath={.items[0].metadata.name}");
    orlop.stop();
    run(BINARY, &["down", "--data-dir", &first.data().display().to_string()]);

    let second = Place::new();
    let orlop = second.up(&["--drive", &device.0, "--driver-name", "directpv-min-io"]);
    let ctl = |line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());
    std::fs::write(&manifest, of_directpv(&name)).unwrap();
    ctl(&format!("apply -f {manifest}"));
    ctl("wait --for=condition=Ready pod/writer --timeout=60s");
    assert_eq!(data_of(&second, &ctl("get pod writer -o jsonpath={.metadata.uid}")), written);
    orlop.stop();

    // The name need not be given again; what was mounted comes away, and the volume is deleted as its policy says.
    let orlop = second.up(&[]);
    let ctl = |line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());
    ctl("delete pod writer --timeout=60s");
    ctl("delete pvc journal --timeout=60s");
    wait_until("the volume is gone from its drive", || !volumes(&second, "table").contains(&name));
    wait_until("and so is its object", || ctl("get pv -o name").is_empty());

    // A new claim goes the same way.
    std::fs::write(&manifest, MANIFEST).unwrap();
    ctl(&format!("apply -f {manifest}"));
    ctl("wait --for=condition=Ready pod/writer --timeout=60s");
    let handle = ctl("get pv -o jsonpath={.items[0].spec.csi.volumeHandle}");
    assert_eq!(handle, ctl("get pv -o jsonpath={.items[0].metadata.name}"), "the handle is the name");
    orlop.stop();
}
