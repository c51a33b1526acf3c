//! What classes and pods say about volumes, with a real kubectl and two real drives: which drive, how fast, for how long,
//! and snapshots of several at once.

mod common;

use std::fs;

use common::{Orlop, Place, kubectls, wait_until, world};

fn apply(orlop: &Orlop, kubectl: &str, place: &Place, manifest: &str) {
    let file = place.path().join("manifest.yaml");
    fs::write(&file, manifest).expect("writing");
    orlop.run(kubectl, &["apply", "-f", &file.display().to_string()]);
}

fn class(name: &str, parameter: &str) -> String {
    format!(
        "---\napiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {name}}}\nprovisioner: orlop.dev\n\
         parameters: {{{parameter}}}\n"
    )
}

fn claim(name: &str, class: &str, label: &str, source: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: {name}, labels: {{app: {label}}}}}\nspec: \
         {{storageClassName: {class}, accessModes: [ReadWriteOnce], {source} resources: {{requests: {{storage: 16Mi}}}}}}\n"
    )
}

#[test]
fn drives_are_chosen_by_groups_and_labels_and_groups_snapshotted_as_one() {
    let Some(kubectl) = kubectls().into_iter().next() else { return };
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "512Mi", "--loop-drive", "512Mi"]);
    let ctl = |line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());
    let bound =
        |name: &str| ctl(&format!("wait --for=jsonpath={{.status.phase}}=Bound pvc/{name} --timeout=60s"));
    let drive_of = |name: &str| {
        let volume = ctl(&format!("get pvc {name} -o jsonpath={{.spec.volumeName}}"));
        let handle = ctl(&format!("get pv {volume} -o jsonpath={{.spec.csi.volumeHandle}}"));
        handle.split('/').next().expect("a drive").to_owned()
    };

    let manifest = [
        class("apart", "orlop.dev/spread: app"),
        class("near", "orlop.dev/drive-selector: medium=nvme"),
        claim("db-0", "apart", "db", ""),
        claim("db-1", "apart", "db", ""),
    ];
    apply(&orlop, &kubectl, &place, &manifest.concat());
    bound("db-0");
    bound("db-1");
    assert_ne!(drive_of("db-0"), drive_of("db-1"));
    apply(
        &orlop,
        &kubectl,
        &place,
        &[claim("db-2", "apart", "db", ""), claim("web-0", "apart", "web", "")].concat(),
    );
    bound("web-0");
    let events = "get events --field-selector involvedObject.name=db-2 -o jsonpath={.items[*].message}";
    wait_until("the third is refused", || {
        ctl(events).contains("it holds a volume of the group default/app=db")
    });
    let refusal = ctl(events);
    assert!(refusal.contains("room for 16Mi") && refusal.contains("largest free space"), "{refusal}");

    // A drive is labelled by its object, and found by that label.
    apply(&orlop, &kubectl, &place, &claim("fast", "near", "fast", ""));
    let events = "get events --field-selector involvedObject.name=fast -o jsonpath={.items[*].message}";
    wait_until("no drive is like that", || ctl(events).contains("it has no label medium"));
    let nvme = drive_of("db-1");
    ctl(&format!("label drive {nvme} medium=nvme"));
    bound("fast");
    assert_eq!(drive_of("fast"), nvme);

    // Both volumes of the group, on two drives, or none.
    ctl("delete pvc db-2 --timeout=60s");
    apply(
        &orlop,
        &kubectl,
        &place,
        "apiVersion: groupsnapshot.storage.k8s.io/v1\nkind: VolumeGroupSnapshotClass\nmetadata: {name: groups}\ndriver: \
         orlop.dev\ndeletionPolicy: Delete\n---\napiVersion: groupsnapshot.storage.k8s.io/v1\nkind: \
         VolumeGroupSnapshot\nmetadata: {name: backup}\nspec: {volumeGroupSnapshotClassName: groups, source: {selector: \
         {matchLabels: {app: db}}}}\n",
    );
    ctl("wait --for=jsonpath={.status.readyToUse}=true vgs/backup --timeout=60s");
    let members = ctl("get vs -o jsonpath={.items[*].metadata.name}");
    let members: Vec<&str> = members.split(' ').collect();
    assert_eq!(members.len(), 2, "{members:?}");
    let source = format!(
        "dataSource: {{apiGroup: snapshot.storage.k8s.io, kind: VolumeSnapshot, name: {}}},",
        members[0]
    );
    let manifest = [class("now", ""), claim("restored", "now", "restored", &source)];
    apply(&orlop, &kubectl, &place, &manifest.concat());
    bound("restored");
    ctl("delete vgs/backup --timeout=60s");
    wait_until("the members went with the group", || ctl("get vs,vsc,vgsc -o name").is_empty());

    ctl("delete pvc --all --timeout=60s");
    wait_until("nothing is left", || {
        ctl("get pv -o name").is_empty() && world::volumes_on_drives(&place.data()).is_empty()
    });
    orlop.stop();
}

#[test]
fn a_pod_describes_a_volume_and_a_claim_asks_for_a_speed() {
    let Some(kubectl) = kubectls().into_iter().next() else { return };
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "512Mi"]);
    let ctl = |line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());
    let pod = |name: &str, size: &str| {
        format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  terminationGracePeriodSeconds: 1\n  \
             containers:\n  - {{name: main, image: host, command: [sleep, infinity], volumeMounts: [{{name: scratch, \
             mountPath: /scratch}}]}}\n  volumes:\n  - name: scratch\n    csi: {{driver: orlop.dev, volumeAttributes: \
             {{orlop.dev/size: {size}}}}}\n"
        )
    };
    apply(&orlop, &kubectl, &place, &[pod("small", "32Mi"), pod("huge", "100Gi")].concat());
    ctl("wait --for=condition=Ready pod/small --timeout=60s");
    let uid = ctl("get pod small -o jsonpath={.metadata.uid}");
    let scratch =
        place.data().join("nodes/orlop-0/pods").join(uid).join("volumes/kubernetes.io~csi/scratch/mount");
    fs::write(scratch.join("fits"), vec![7; 24 << 20]).expect("24 MiB in 32Mi");
    fs::write(scratch.join("not"), vec![7; 16 << 20]).expect_err("40 MiB in 32Mi");
    assert_eq!(world::volumes_on_drives(&place.data()).len(), 1);
    let events = "get events --field-selector involvedObject.name=huge -o jsonpath={.items[*].message}";
    wait_until("the huge one is refused", || ctl(events).contains("no drive has room for 100Gi"));
    ctl("delete pod small huge --timeout=60s");
    wait_until("it went with its pod", || world::volumes_on_drives(&place.data()).is_empty());

    let manifest = [
        class("now", ""),
        claim("data", "now", "data", ""),
        "---\napiVersion: storage.k8s.io/v1\nkind: VolumeAttributesClass\nmetadata: {name: slow}\ndriverName: \
         orlop.dev\nparameters: {orlop.dev/write-bps: 10Mi}\n"
            .to_owned(),
    ];
    apply(&orlop, &kubectl, &place, &manifest.concat());
    ctl("wait --for=jsonpath={.status.phase}=Bound pvc/data --timeout=60s");
    orlop.run(&kubectl, &["patch", "pvc", "data", "-p", r#"{"spec":{"volumeAttributesClassName":"slow"}}"#]);
    let status = |what: &str| ctl(&format!("get pvc data -o jsonpath={{.status.{what}}}"));
    wait_until("the change has ended", || {
        status("currentVolumeAttributesClassName") == "slow"
            || status("modifyVolumeStatus.status") == "Infeasible"
    });
    if status("currentVolumeAttributesClassName").is_empty() {
        let why = status("conditions[*].message");
        eprintln!("SKIPPED: a volume with a limit of bandwidth: {why}");
        assert!(why.contains("can't be enforced on this node"), "{why}");
    } else {
        assert_eq!(ctl("get pv -o jsonpath={.items[0].spec.volumeAttributesClassName}"), "slow");
    }
    ctl("delete pvc data --timeout=60s");
    ctl("delete vac slow --timeout=60s");
    orlop.stop();
}

#[test]
fn what_makes_a_class_unusable_is_told_to_its_pods() {
    let Some(kubectl) = kubectls().into_iter().next() else { return };
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "512Mi"]);
    let ctl = |line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());
    let cases = [
        ("backend", "orlop.dev/backend: lvm", "its backend is btrfs, not lvm"),
        ("xfs", "csi.storage.k8s.io/fstype: xfs", "its backend is btrfs, not xfs"),
        ("ext4", "fsType: ext4", "its volumes have no file systems of their own"),
        ("zfs", "fstype: zfs", "file-system type \"zfs\""),
        ("overcommit", "orlop.dev/overcommit: \"2\"", "it can't promise more than it has"),
    ];
    let manifest = cases.map(|(name, parameter, _)| {
        let delayed = "volumeBindingMode: WaitForFirstConsumer\n";
        let pod = format!(
            "---\napiVersion: v1\nkind: Pod\nmetadata: {{name: {name}}}\nspec:\n  containers:\n  - {{name: main, image: host, \
             command: [sleep, infinity], volumeMounts: [{{name: data, mountPath: /data}}]}}\n  volumes:\n  - {{name: data, \
             persistentVolumeClaim: {{claimName: {name}}}}}\n"
        );
        [class(name, parameter), delayed.to_owned(), claim(name, name, name, ""), pod].concat()
    });
    apply(&orlop, &kubectl, &place, &manifest.concat());
    for (name, _, reason) in cases {
        let events = format!("get events --field-selector involvedObject.name={name} -o json");
        let of_pod = || {
            let list: serde_json::Value = serde_json::from_str(&ctl(&events)).expect("JSON");
            let events = list["items"].as_array().cloned().unwrap_or_default();
            let of_pod = events.into_iter().filter(|event| event["involvedObject"]["kind"] == "Pod");
            of_pod
                .map(|event| event["message"].to_string())
                .collect::<Vec<_>>()
                .join("\n")
                .replace("\\\"", "\"")
        };
        wait_until(&format!("{name}: {reason}"), || of_pod().contains(reason));
        ctl(&format!("delete pod {name} --grace-period=0 --force"));
        ctl(&format!("delete pvc {name} --timeout=60s"));
    }
    assert_eq!(ctl("get pv -o name"), "", "nothing was made");
    orlop.stop();
}
