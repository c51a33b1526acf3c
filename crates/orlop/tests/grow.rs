//! A claim that grows while a container uses it, with real kubectl binaries.

mod common;

use std::fs::File;
use std::io::Write;
use std::path::Path;

use common::{Place, kubectls, wait_until};

const QUICKSTART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/quickstart.yaml");

/// Writes a file of so many MiB down to the drive.
fn write(path: &Path, mebibytes: usize) -> std::io::Result<()> {
    let mut file = File::create(path)?;
    for _ in 0..mebibytes {
        file.write_all(&[7; 1 << 20])?;
    }
    file.sync_all()
}

#[test]
fn a_mounted_claim_grows_and_its_new_size_holds() {
    // One kubectl is enough: they differ in nothing that matters here.
    let Some(kubectl) = kubectls().into_iter().next() else { return };
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "1Gi"]);
    let ctl = |line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());
    let patch = |size: &str| format!(r#"{{"spec":{{"resources":{{"requests":{{"storage":"{size}"}}}}}}}}"#);
    let grow = |size: &str| ctl(&format!("patch pvc journal -p {}", patch(size)));
    let refused = |size: &str| {
        let output = orlop.attempt(&kubectl, &["patch", "pvc", "journal", "-p", &patch(size)]);
        assert!(!output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    };

    ctl(&format!("apply -f {QUICKSTART}"));
    ctl("wait --for=condition=Ready pod/writer --timeout=60s");
    let volume = ctl("get pvc journal -o jsonpath={.spec.volumeName}");
    let uid = ctl("get pod writer -o jsonpath={.metadata.uid}");
    let pod = place.data().join("nodes/orlop-0/pods").join(uid);
    let mount = pod.join("volumes/kubernetes.io~csi").join(&volume).join("mount");
    assert!(mount.join("journal").exists(), "the container's volume is at {}", mount.display());
    write(&mount.join("a"), 96).expect_err("96 MiB in 64Mi");
    std::fs::remove_file(mount.join("a")).expect("removing");

    grow("128Mi");
    ctl("wait --for=jsonpath={.status.capacity.storage}=128Mi pvc/journal --timeout=60s");
    assert_eq!(ctl("get pv -o jsonpath={.items[0].spec.capacity.storage}"), "128Mi");
    wait_until("there is room for 96 MiB", || write(&mount.join("a"), 96).is_ok());
    write(&mount.join("b"), 64).expect_err("160 MiB in 128Mi");
    std::fs::remove_file(mount.join("b")).expect("removing");
    assert_eq!(ctl("get pod writer -o jsonpath={.status.containerStatuses[0].restartCount}"), "0");

    assert!(refused("96Mi").contains("field can not be less than status.capacity"));
    grow("100Gi");
    wait_until("the failure is told", || {
        let told =
            ctl("get events --field-selector reason=VolumeResizeFailed -o jsonpath={.items[*].message}");
        told.contains("can't grow to 100Gi") && told.contains("left for it")
    });
    let conditions = ctl("get pvc journal -o jsonpath={.status.conditions[*].type}");
    assert!(conditions.contains("ControllerResizeError"), "{conditions}");
    grow("160Mi");
    ctl("wait --for=jsonpath={.status.capacity.storage}=160Mi pvc/journal --timeout=60s");
    write(&mount.join("b"), 32).expect("128 MiB in 160Mi");

    ctl(r#"patch sc quickstart -p {"allowVolumeExpansion":false}"#);
    assert!(refused("192Mi").contains("the storageclass that provisions the pvc must support resize"));
    ctl(&format!("delete -f {QUICKSTART} --timeout=60s"));
    orlop.stop();
}
