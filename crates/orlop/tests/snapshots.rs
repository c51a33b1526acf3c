//! Snapshots, claims made from them, and clones, with a real kubectl and real data.

mod common;

use std::fs;
use std::path::PathBuf;

use common::{Orlop, Place, kubectls, wait_until, world};

const EXAMPLES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples");

/// Where the volume of a claim is mounted in a pod on one of two nodes.
fn mount(place: &Place, ctl: &dyn Fn(&str) -> String, pod: &str, claim: &str) -> PathBuf {
    let volume = ctl(&format!("get pvc {claim} -o jsonpath={{.spec.volumeName}}"));
    let uid = ctl(&format!("get pod {pod} -o jsonpath={{.metadata.uid}}"));
    let node = ctl(&format!("get pod {pod} -o jsonpath={{.spec.nodeName}}"));
    let pods = place.data().join("nodes").join(node).join("pods");
    pods.join(uid).join("volumes/kubernetes.io~csi").join(volume).join("mount")
}

fn apply(orlop: &Orlop, kubectl: &str, place: &Place, manifest: &str) {
    let file = place.path().join("manifest.yaml");
    fs::write(&file, manifest).expect("writing");
    orlop.run(kubectl, &["apply", "-f", &file.display().to_string()]);
}

#[test]
fn a_snapshot_is_restored_and_a_claim_cloned_where_the_data_is() {
    let Some(kubectl) = kubectls().into_iter().next() else { return };
    let place = Place::new();
    let orlop = place.up(&["--nodes", "2", "--loop-drive", "1Gi"]);
    let ctl = |line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());

    ctl(&format!("apply -f {EXAMPLES}/quickstart.yaml"));
    ctl("wait --for=condition=Ready pod/writer --timeout=60s");
    let journal = mount(&place, &ctl, "writer", "journal");
    let data: Vec<u8> = (0..3_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(journal.join("data"), &data).expect("writing");
    let before = fs::read(journal.join("journal")).expect("reading");

    ctl(&format!("apply -f {EXAMPLES}/snapshot.yaml"));
    ctl("wait --for=jsonpath={.status.readyToUse}=true vs/journal-before --timeout=60s");
    let table = ctl("get vs");
    assert!(table.contains("READYTOUSE") && table.contains("journal"), "{table}");
    assert!(ctl("get vsc").contains("orlop.dev"));
    fs::write(journal.join("data"), b"later").expect("writing");

    ctl("wait --for=condition=Ready pod/reader --timeout=60s");
    let node = |pod: &str| ctl(&format!("get pod {pod} -o jsonpath={{.spec.nodeName}}"));
    assert_eq!(node("reader"), node("writer"), "the data is on that node only");
    let restored = mount(&place, &ctl, "reader", "journal-restored");
    assert_eq!(fs::read(restored.join("journal")).expect("reading"), before);
    assert!(fs::read(restored.join("data")).expect("reading") == data, "what was there at the snapshot");
    let clone = mount(&place, &ctl, "reader", "journal-clone");
    assert_eq!(fs::read(clone.join("journal")).expect("reading"), before);
    // The restored claim asked for more than its snapshot, and has that: not less, and not more.
    fs::write(restored.join("more"), vec![7; 72 << 20]).expect("72 MiB more in 96Mi");
    fs::write(restored.join("even"), vec![7; 32 << 20]).expect_err("107 MiB in 96Mi");
    fs::remove_file(restored.join("even")).expect("removing");
    let patch = r#"{"spec":{"resources":{"requests":{"storage":"160Mi"}}}}"#;
    orlop.run(&kubectl, &["patch", "pvc", "journal-restored", "-p", patch]);
    ctl("wait --for=jsonpath={.status.capacity.storage}=160Mi pvc/journal-restored --timeout=60s");
    wait_until("there is room for 32 MiB more", || {
        fs::write(restored.join("even"), vec![7; 32 << 20]).is_ok()
    });

    // Nothing holds the sources any more, so everything goes at one word, data and all.
    let free = || ctl("get pvc journal -o jsonpath={.metadata.finalizers}");
    wait_until("the sources are let go", || {
        free() == r#"["kubernetes.io/pvc-protection"]"#
            && !ctl("get vs journal-before -o jsonpath={.metadata.finalizers}")
                .contains("provisioner.storage")
    });
    ctl(&format!("delete -f {EXAMPLES}/snapshot.yaml --timeout=60s"));
    ctl(&format!("delete -f {EXAMPLES}/quickstart.yaml --timeout=60s"));
    wait_until("nothing is left", || {
        ctl("get vsc,pv -o name").is_empty() && world::volumes_on_drives(&place.data()).is_empty()
    });
    orlop.stop();
}

/// A claim that is made from a source.
fn claim_from(name: &str, source: &str, mode: &str, size: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec: {{volumeMode: {mode}, \
         accessModes: [ReadWriteOnce], dataSource: {source}, resources: {{requests: {{storage: {size}}}}}}}\n"
    )
}

fn snapshot_of(claim: &str) -> String {
    format!(
        "---\napiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {{name: {claim}-kept}}\nspec: \
         {{source: {{persistentVolumeClaimName: {claim}}}}}\n"
    )
}

/// A pod that tells how large the device of a claim is, and what it begins with.
fn teller(name: &str, claim: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  restartPolicy: Never\n  containers:\n  - \
         {{name: main, image: host, command: [sh, -c, 'head -c 4096 /dev/it | tr -d \"\\0\"; blockdev --getsize64 \
         /dev/it'], volumeDevices: [{{name: it, devicePath: /dev/it}}]}}\n  volumes: [{{name: it, \
         persistentVolumeClaim: {{claimName: {claim}}}}}]\n"
    )
}

#[test]
fn what_a_deleted_claim_held_comes_back_from_its_snapshot() {
    let Some(kubectl) = kubectls().into_iter().next() else { return };
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "1Gi"]);
    let ctl = |line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());
    let log = |pod: &str| {
        wait_until("the container has told", || ctl(&format!("logs {pod}")).contains('\n'));
        ctl(&format!("logs {pod}"))
    };
    let restore =
        |of: &str| format!("{{apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: {of}}}");

    // A file system and a device, each with a user.
    ctl(&format!("apply -f {EXAMPLES}/quickstart.yaml -f {EXAMPLES}/block.yaml"));
    ctl("wait --for=condition=Ready pod/writer pod/disk-user --timeout=60s");
    let data: Vec<u8> = (0..3_u32 << 20).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    fs::write(mount(&place, &ctl, "writer", "journal").join("data"), &data).expect("writing");
    let written = log("disk-user");
    apply(&orlop, &kubectl, &place, &[snapshot_of("journal"), snapshot_of("disk")].concat());
    ctl("wait --for=jsonpath={.status.readyToUse}=true vs/journal-kept --timeout=60s");
    let error = || ctl("get vs disk-kept -o jsonpath={.status.error.message}");
    wait_until("a device in use is refused", || error().contains("stop its users first"));
    ctl("delete pod disk-user --timeout=60s");
    ctl("wait --for=jsonpath={.status.readyToUse}=true vs/disk-kept --timeout=60s");
    assert_eq!(error(), "");

    // A larger clone of the device, and then the claims go.
    let clone = claim_from("disk-clone", "{kind: PersistentVolumeClaim, name: disk}", "Block", "96Mi");
    apply(&orlop, &kubectl, &place, &[clone, teller("cloned", "disk-clone")].concat());
    ctl("wait --for=jsonpath={.status.phase}=Succeeded pod/cloned --timeout=60s");
    assert_eq!(log("cloned"), format!("{written}{}\n", 96 << 20));
    ctl("delete pod/writer pod/cloned pvc/journal pvc/disk pvc/disk-clone --timeout=60s");
    wait_until("the volumes are gone", || ctl("get pv -o name").is_empty());

    let reader = fs::read_to_string(format!("{EXAMPLES}/quickstart.yaml")).expect("reading");
    let reader =
        reader.rsplit("---").next().expect("the pod").replace("claimName: journal", "claimName: files");
    let manifest = [
        claim_from("files", &restore("journal-kept"), "Filesystem", "64Mi"),
        claim_from("device", &restore("disk-kept"), "Block", "64Mi"),
        claim_from("mixed", &restore("disk-kept"), "Filesystem", "64Mi"),
        teller("restored", "device"),
        reader,
        "---\napiVersion: v1\nkind: Pod\nmetadata: {name: mixed}\nspec: {containers: [{name: main, image: host}], \
         volumes: [{name: it, persistentVolumeClaim: {claimName: mixed}}]}\n"
            .to_owned(),
    ];
    let manifest = manifest.map(|part| if part.starts_with("---") { part } else { format!("---{part}") });
    apply(&orlop, &kubectl, &place, &manifest.concat());
    ctl("wait --for=jsonpath={.status.phase}=Succeeded pod/restored --timeout=60s");
    assert_eq!(log("restored"), format!("{written}{}\n", 64 << 20));
    ctl("wait --for=condition=Ready pod/writer --timeout=60s");
    let files = mount(&place, &ctl, "writer", "files");
    assert!(fs::read(files.join("data")).expect("reading") == data, "what was there at the snapshot");

    // A device is no file system, even if somebody says so.
    let told = |what: &str| {
        let line = "get events --field-selector involvedObject.name=mixed -o jsonpath={.items[*].message}";
        wait_until(&format!("told {what:?}"), || ctl(line).contains(what));
    };
    told("volume mode Filesystem differs from the mode Block");
    let content = ctl("get vs disk-kept -o jsonpath={.status.boundVolumeSnapshotContentName}");
    ctl(&format!("annotate vsc {content} snapshot.storage.kubernetes.io/allow-volume-mode-change=true"));
    told("what it is made from was a block volume; ask for the same");

    ctl("delete pod/mixed pod/restored pvc/mixed pvc/device vs/disk-kept --timeout=60s");
    ctl("delete pod/writer pvc/files vs/journal-kept --timeout=60s");
    wait_until("nothing is left", || {
        ctl("get vsc,pv -o name").is_empty() && world::volumes_on_drives(&place.data()).is_empty()
    });
    orlop.stop();
}

#[test]
fn what_can_not_be_made_says_why_and_comes_when_it_can() {
    let Some(kubectl) = kubectls().into_iter().next() else { return };
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "1Gi"]);
    let ctl = |line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());
    let now =
        "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {name: now}\nprovisioner: orlop.dev\n";
    apply(&orlop, &kubectl, &place, now);
    let claim = |name: &str, source: &str, size: &str| {
        format!(
            "---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}}}\nspec: {{storageClassName: \
             now, accessModes: [ReadWriteOnce], {source} resources: {{requests: {{storage: {size}}}}}}}\n"
        )
    };
    let clone = |of: &str| format!("dataSource: {{kind: PersistentVolumeClaim, name: {of}}},");
    let restore = |of: &str| {
        format!("dataSource: {{apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: {of}}},")
    };
    let told = |name: &str, what: &str| {
        let line = format!(
            "get events --field-selector involvedObject.name={name} -o jsonpath={{.items[*].message}}"
        );
        wait_until(&format!("{name} is told {what:?}"), || ctl(&line).contains(what));
    };
    let manifest = [
        claim("a", &clone("b"), "8Mi"),
        claim("b", &clone("a"), "8Mi"),
        claim("early", &restore("later"), "16Mi"),
        claim("small", &restore("later"), "1Mi"),
        claim("source", "", "8Mi"),
    ];
    apply(&orlop, &kubectl, &place, &manifest.concat());
    told("a", "the data sources go in a circle, default/a from default/b from default/a");
    told("early", "the data source VolumeSnapshot default/later does not exist");
    ctl("wait --for=jsonpath={.status.phase}=Bound pvc/source --timeout=60s");

    let snapshot = |name: &str, of: &str| {
        format!(
            "---\napiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\nmetadata: {{name: {name}}}\nspec: \
             {{source: {{persistentVolumeClaimName: {of}}}}}\n"
        )
    };
    apply(&orlop, &kubectl, &place, &[snapshot("later", "source"), snapshot("lost", "nothing")].concat());
    ctl("wait --for=jsonpath={.status.phase}=Bound pvc/early --timeout=60s");
    told("small", "1Mi is less than the size 8Mi of the data source");
    told("lost", "claim nothing not found");
    let error = ctl("get vs lost -o jsonpath={.status.error.message}");
    assert!(error.contains("claim nothing not found; create it, or delete the snapshot"), "{error}");
    let output = orlop.attempt(
        &kubectl,
        &[
            "patch",
            "vs",
            "later",
            "--type=merge",
            "-p",
            r#"{"spec":{"source":{"persistentVolumeClaimName":"a"}}}"#,
        ],
    );
    assert!(String::from_utf8_lossy(&output.stderr).contains("field is immutable"), "{output:?}");

    // From another namespace only with a grant.
    ctl("create namespace dev");
    let across = claim(
        "copy",
        "dataSourceRef: {apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: later, namespace: default},",
        "16Mi",
    )
    .replace("{name: copy}", "{name: copy, namespace: dev}");
    apply(&orlop, &kubectl, &place, &across);
    let events = "get events -n dev -o jsonpath={.items[*].message}";
    wait_until("the missing grant is told", || {
        ctl(events).contains("create a ReferenceGrant in the namespace")
    });
    apply(
        &orlop,
        &kubectl,
        &place,
        "apiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: copies, namespace: \
         default}\nspec:\n  from: [{group: '', kind: PersistentVolumeClaim, namespace: dev}]\n  to: [{group: \
         snapshot.storage.k8s.io, kind: VolumeSnapshot}]\n",
    );
    ctl("wait -n dev --for=jsonpath={.status.phase}=Bound pvc/copy --timeout=60s");

    // A snapshot that is known by its id only; and its claim may go before it.
    let handle = ctl("get vsc -o jsonpath={.items[0].status.snapshotHandle}");
    apply(
        &orlop,
        &kubectl,
        &place,
        &format!(
            "apiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshotContent\nmetadata: {{name: known}}\nspec: \
             {{deletionPolicy: Retain, driver: orlop.dev, source: {{snapshotHandle: {handle}}}, volumeSnapshotRef: \
             {{name: found, namespace: default}}}}\n---\napiVersion: snapshot.storage.k8s.io/v1\nkind: VolumeSnapshot\n\
             metadata: {{name: found}}\nspec: {{source: {{volumeSnapshotContentName: known}}}}\n"
        ),
    );
    ctl("wait --for=jsonpath={.status.readyToUse}=true vs/found --timeout=60s");
    assert!(ctl("get vsc known -o jsonpath={.metadata.labels}").contains("orlop-0"));
    ctl("delete pvc source --timeout=60s");
    ctl("delete vs found --timeout=60s");
    ctl("delete vsc known --timeout=60s");
    apply(&orlop, &kubectl, &place, &claim("late", &restore("later"), "16Mi"));
    ctl("wait --for=jsonpath={.status.phase}=Bound pvc/late --timeout=60s");

    ctl("delete -n dev pvc/copy --timeout=60s");
    ctl("delete pvc/a pvc/b pvc/early pvc/small pvc/late vs/later vs/lost --timeout=60s");
    wait_until("nothing is left", || {
        ctl("get vsc,pv -o name").is_empty() && world::volumes_on_drives(&place.data()).is_empty()
    });
    orlop.stop();
}
