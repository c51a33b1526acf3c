//! How full a claim is: what the node tells of it to people, to Prometheus and to `kubectl`, with real kubectl binaries.

mod common;

use std::path::Path;

use common::{BINARY, Place, kubectls, run, wait_until};
use serde_json::Value;

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/quickstart.yaml");
const MIB: u64 = 1 << 20;

#[test]
fn how_full_a_claim_is_can_be_seen() {
    // One kubectl is enough: they differ in nothing that matters here.
    let Some(kubectl) = kubectls().into_iter().next() else { return };
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "1Gi"]);
    let ctl = |line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());
    let page = |path: &str| ctl(&format!("get --raw /api/v1/nodes/orlop-0/proxy/{path}"));

    ctl(&format!("apply -f {QUICKSTART}"));
    ctl("wait --for=condition=Ready pod/writer --timeout=60s");
    let volume = ctl("get pvc journal -o jsonpath={.spec.volumeName}");
    let uid = ctl("get pod writer -o jsonpath={.metadata.uid}");
    let pod = place.data().join("nodes/orlop-0/pods").join(&uid);
    let mount = pod.join("volumes/kubernetes.io~csi").join(&volume).join("mount");
    write(&mount.join("a"), 24);

    let used = || -> Option<Value> {
        let summary: Value = serde_json::from_str(&page("stats/summary")).expect("JSON");
        let pod =
            summary["pods"].as_array()?.iter().find(|one| one["podRef"]["uid"] == uid.as_str())?.clone();
        let volumes = pod["volume"].as_array()?.clone();
        volumes.into_iter().find(|one| one["pvcRef"]["name"] == "journal")
    };
    wait_until("the summary tells of 24 MiB", || {
        used().is_some_and(|volume| volume["usedBytes"].as_u64().is_some_and(|used| used >= 24 * MIB))
    });
    let volume = used().expect("it is still there");
    assert_eq!(volume["capacityBytes"], 64 * MIB, "the claim, not its drive: {volume}");
    let available = volume["availableBytes"].as_u64().expect("a number");
    assert!((MIB..=40 * MIB).contains(&available), "{volume}");
    wait_until("it is told that df shows the drive", || {
        ctl("get events --field-selector reason=VolumeSizeNotShown -o jsonpath={.items[*].message}")
            .contains("ends at 64Mi")
    });
    let metric = |name: &str| {
        let metrics = page("metrics");
        let line = format!(
            "kubelet_volume_stats_{name}{{namespace=\"default\",persistentvolumeclaim=\"journal\"}} "
        );
        let line = metrics.lines().find_map(|found| Some(found.strip_prefix(&line)?.to_owned()));
        line.and_then(|value| value.parse::<u64>().ok()).unwrap_or(0)
    };
    assert_eq!(metric("capacity_bytes"), 64 * MIB);
    assert!(metric("used_bytes") >= 24 * MIB);
    let refused = orlop.attempt(&kubectl, &["get", "--raw", "/api/v1/nodes/orlop-0/proxy/pods"]);
    let refused = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.contains("stats/summary, metrics and healthz"), "{refused}");

    // What the drives themselves tell, and what has become of the objects.
    let data = place.data().display().to_string();
    let kubeconfig = place.kubeconfig().display().to_string();
    let volumes = || run(BINARY, &["volumes", "--data-dir", &data, "--kubeconfig", &kubeconfig]);
    let name = ctl("get pvc journal -o jsonpath={.spec.volumeName}");
    let row = || -> Vec<String> {
        let table = volumes();
        let line = table.lines().find(|line| line.starts_with(&name)).unwrap_or_default();
        line.split_whitespace().map(str::to_owned).collect()
    };
    let [_, size, used, _, status, claim, ..] = &row()[..] else { panic!("{}", volumes()) };
    assert_eq!((size.as_str(), status.as_str(), claim.as_str()), ("64Mi", "Bound", "default/journal"));
    assert!(used.starts_with("24"), "{used}");
    assert!(volumes().contains("1 drive of "), "{}", volumes());
    let delete = || attempt(&["volumes", "delete", &name, "--data-dir", &data, "--kubeconfig", &kubeconfig]);
    let (deleted, said) = delete();
    assert!(!deleted && said.contains("belongs to the PersistentVolume"), "{said}");
    ctl(&format!("patch pv {name} -p {{\"spec\":{{\"persistentVolumeReclaimPolicy\":\"Retain\"}}}}"));
    ctl(&format!("delete -f {QUICKSTART} --timeout=60s"));
    ctl(&format!("delete pv {name} --timeout=60s"));
    assert_eq!(row()[2..5], ["-", "-", "Orphaned"], "{}", volumes());
    assert!(delete().0, "{}", delete().1);
    assert_eq!(row(), Vec::<String>::new());
    let (deleted, said) = delete();
    assert!(!deleted && said.contains("there is no volume"), "{said}");
    orlop.stop();
}

/// Runs the binary; whether it succeeded, and what it said.
fn attempt(arguments: &[&str]) -> (bool, String) {
    let output = std::process::Command::new(BINARY).args(arguments).output().expect("the binary");
    (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
}

/// Writes a file of so many MiB down to the drive.
fn write(path: &Path, mebibytes: usize) {
    let mut file = std::fs::File::create(path).expect("creating a file");
    for _ in 0..mebibytes {
        std::io::Write::write_all(&mut file, &[7; 1 << 20]).expect("writing");
    }
    file.sync_all().expect("syncing");
}
