//! Bad input to `orlop up` and to a running Orlop: a clear word, and nothing changed.

mod common;

use std::process::{Command, Stdio};

use common::{BINARY, LoopDevice, Place, run, wait_until};

#[track_caller]
fn says(error: &str, words: &[&str]) {
    for word in words {
        assert!(error.contains(word), "the error does not say {word:?}:\n{error}");
    }
}

#[test]
fn devices_that_are_not_free_are_refused_and_left_alone() {
    let place = Place::new();
    let formatted = LoopDevice::new(&place, "formatted.img");
    run("mkfs.ext4", &["-q", &formatted.0]);
    let uuid = || run("blkid", &["-p", "-s", "UUID", "-o", "value", &formatted.0]);
    let before = uuid();
    says(&place.refused(&["--drive", &formatted.0]), &[&formatted.0, "ext", "--overwrite-drive"]);

    let mount = place.path().join("mnt").display().to_string();
    std::fs::create_dir(&mount).unwrap();
    run("mount", &[&formatted.0, &mount]);
    says(&place.refused(&["--drive", &formatted.0]), &[&formatted.0, "mounted", &mount]);
    says(&place.refused(&["--overwrite-drive", &formatted.0]), &[&formatted.0, "mounted", &mount]);
    run("umount", &[&mount]);
    assert_eq!(uuid(), before, "the device was written to");
    assert_eq!(
        common::world::volume_mounts(&place.data()),
        Vec::<String>::new(),
        "a refused start left mounts"
    );

    says(&place.refused(&["--drive", "/dev/no-such-device"]), &["/dev/no-such-device"]);
    let orlop = place.up(&["--overwrite-drive", &formatted.0]);
    assert!(orlop.run(BINARY, &["get", "drives"]).contains("Ready"));
    orlop.stop();
    run(BINARY, &["down", "--data-dir", &place.data().display().to_string()]);
}

#[test]
fn what_is_in_use_is_refused() {
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "512Mi"]);
    says(&place.refused(&[]), &["in use", &orlop.pid().to_string()]);

    let other = Place::new();
    let config = std::fs::read_to_string(orlop.kubeconfig()).unwrap();
    let port =
        config.split("https://127.0.0.1:").nth(1).unwrap().split('\n').next().unwrap().trim().to_owned();
    let mut command = Command::new(BINARY);
    command.args(["up", "--listen", &format!("127.0.0.1:{port}"), "--data-dir"]).arg(other.data());
    let output = command.stdin(Stdio::null()).output().unwrap();
    says(&String::from_utf8_lossy(&output.stderr), &["can't listen on", &port, "--listen"]);
    orlop.stop();
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let place = Place::new();
    for (arguments, words) in [
        (&["--loop-drive", "many"][..], &["--loop-drive", "many"][..]),
        (&["--loop-drive", "0"], &["more than 0"]),
        (&["--loop-drive", "9Ei"], &["no file can be that large"]),
        (&["--loop-drive", "7Ei"], &["0.img", "no files that large"]),
        (&["--kubeconfig-owner", "nobody-at-all"], &["/etc/passwd"]),
        (&["--nodes", "0"], &["--nodes"]),
        (&["--health", "0.0.0.0:0"], &["loopback"]),
    ] {
        says(&place.refused(arguments), words);
    }
    assert!(!place.data().join("layout.json").exists(), "a refused start was remembered");
}

#[test]
fn what_contradicts_the_data_directory_is_refused() {
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "512Mi"]);
    orlop.stop();
    says(&place.refused(&["--loop-drive", "1Gi"]), &["--loop-drive 1Gi", "512Mi"]);
    says(&place.refused(&["--backend", "lvm"]), &["--backend lvm", "stay so"]);
    let directory = place.path().display().to_string();
    says(
        &place.refused(&["--csi-driver", &format!("unix://{directory}")]),
        &[&directory, "not a unix socket"],
    );

    let store = place.data().join("store.redb");
    std::fs::remove_file(&store).unwrap();
    says(&place.refused(&[]), &["store.redb is missing", "--new-store", "orlop volumes"]);
    assert!(!store.exists(), "a refused start left a store");
    let orlop = place.up(&["--new-store", "--loop-drive", "512Mi"]);
    assert!(orlop.run(BINARY, &["get", "drives"]).contains("Ready"));
    orlop.stop();
    run(BINARY, &["down", "--data-dir", &place.data().display().to_string()]);
}

#[test]
fn without_root_it_says_so() {
    let place = Place::new();
    let nobody = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", BINARY, "up", "--data-dir"])
        .arg(place.data())
        .output()
        .unwrap();
    says(&String::from_utf8_lossy(&nobody.stderr), &["root"]);
}

#[test]
fn manifests_that_are_wrong_are_refused_by_the_server() {
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "512Mi"]);
    let claim = |spec: &str| {
        format!("apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {{name: c}}\nspec: {spec}\n")
    };
    let wrong = [
        ("kind: [".to_owned(), &["manifest"][..]),
        ("apiVersion: v1\nkind: Nothing\nmetadata: {name: a}\n".to_owned(), &["Nothing"]),
        (
            claim("{accessModes: [ReadWriteOnce], colour: red, resources: {requests: {storage: 1Mi}}}"),
            &["unknown field", "spec.colour"],
        ),
        (claim("{accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Zebra}}}"), &["1Zebra"]),
        (claim("{accessModes: [ReadWriteOnce], resources: {requests: {storage: -1Mi}}}"), &["storage"]),
        (
            claim("{accessModes: [Sometimes], resources: {requests: {storage: 1Mi}}}"),
            &["Sometimes", "ReadWriteOnce"],
        ),
        (claim("{resources: {requests: {storage: 1Mi}}}"), &["accessModes"]),
    ];
    for (manifest, words) in &wrong {
        let file = place.path().join("wrong.yaml");
        std::fs::write(&file, manifest).unwrap();
        let output = orlop.attempt(BINARY, &["apply", "-f", &file.display().to_string()]);
        assert!(!output.status.success(), "accepted:\n{manifest}");
        says(&String::from_utf8_lossy(&output.stderr), words);
    }
    let claims = orlop.attempt(BINARY, &["get", "pvc"]);
    says(&String::from_utf8_lossy(&claims.stderr), &["No resources found"]);
    orlop.stop();
}

#[test]
fn what_is_refused_of_a_file_stops_nothing_else() {
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "512Mi"]);
    let file = place.path().join("mixed.json").display().to_string();
    let claim = |name: &str| {
        let spec = r#"{"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Mi"}}}"#;
        format!(r#"{{"metadata": {{"name": "{name}"}}, "spec": {spec}}}"#)
    };
    let manifest = format!(
        r#"{{"apiVersion": "example.org/v1", "kind": "Foo", "metadata": {{"name": "foreign"}}}}
           {{"apiVersion": "v1", "kind": "PersistentVolumeClaimList", "items": [{}, {}]}}
           {{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {{"name": "No Name"}}}}
           {{"apiVersion": "v1", "kind": "ConfigMap", "metadata": {{"name": "after"}}}}"#,
        claim("first"),
        claim("second")
    );
    std::fs::write(&file, manifest).unwrap();

    let applied = orlop.attempt(BINARY, &["apply", "-f", &file]);
    assert_eq!(applied.status.code(), Some(1));
    let printed = String::from_utf8_lossy(&applied.stdout);
    assert_eq!(printed.matches("created").count(), 3, "{printed}");
    let errors = String::from_utf8_lossy(&applied.stderr);
    says(&errors, &["does not serve kind \"Foo\"", "ConfigMap \"No Name\" is invalid", "2 of 5 objects"]);
    assert!(!errors.contains("Status {"), "debug text: {errors}");

    let both = orlop.run(BINARY, &["get", "pvc,cm"]);
    says(&both, &["persistentvolumeclaim/first", "persistentvolumeclaim/second", "configmap/after"]);
    let listed = orlop.run(BINARY, &["get", "pvc,cm", "-o", "yaml"]);
    says(&listed, &["kind: List", "kind: PersistentVolumeClaim", "kind: ConfigMap"]);
    says(&orlop.run(BINARY, &["get", "pvc/first", "-o", "json"]), &["\"name\": \"first\""]);
    let all = orlop.attempt(BINARY, &["get", "all"]);
    says(&String::from_utf8_lossy(&all.stderr), &["No resources found"]);

    let deleted = orlop.attempt(BINARY, &["delete", "-f", &file]);
    assert_eq!(deleted.status.code(), Some(1));
    says(&String::from_utf8_lossy(&deleted.stderr), &["does not serve kind \"Foo\""]);
    says(
        &String::from_utf8_lossy(&orlop.attempt(BINARY, &["get", "pvc,cm"]).stderr),
        &["No resources found"],
    );
    orlop.stop();
}

#[test]
fn claims_that_can_not_be_filled_stay_pending_and_say_why() {
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "512Mi"]);
    let manifest = include_str!("../../../examples/quickstart.yaml");
    let file = place.path().join("big.yaml").display().to_string();
    std::fs::write(&file, manifest.replace("storage: 64Mi", "storage: 1Ti")).unwrap();
    orlop.run(BINARY, &["apply", "-f", &file]);
    let events = || orlop.run(BINARY, &["get", "events", "-o", "yaml"]);
    wait_until("an event says why", || events().contains("FailedScheduling") && events().contains("largest"));
    says(&events(), &["1Ti", "Ask for less"]);
    assert!(orlop.run(BINARY, &["get", "pvc", "journal"]).contains("Pending"));
    orlop.run(BINARY, &["delete", "-f", &file]);

    std::fs::write(&file, manifest.replace("storageClassName: quickstart", "storageClassName: absent"))
        .unwrap();
    orlop.run(BINARY, &["apply", "-f", &file]);
    wait_until("an event names the missing class", || {
        let events = events();
        events.contains("ProvisioningFailed") && events.contains("absent")
    });
    orlop.run(BINARY, &["delete", "-f", &file]);

    // What makes a class useless is told on the pod, by its name, and not as a want of room.
    for (name, parameters, said) in [
        ("typo", "{orlop.dev/backnd: btrfs}", "backnd"),
        ("other", "{orlop.dev/backend: lvm-thin}", "not lvm-thin"),
        ("picky", "{orlop.dev/drive-selector: disk=gold}", "it has no label disk"),
    ] {
        let class = format!(
            "apiVersion: storage.k8s.io/v1\nkind: StorageClass\nmetadata: {{name: {name}}}\nprovisioner: orlop.dev\n\
             volumeBindingMode: WaitForFirstConsumer\nparameters: {parameters}\n---\n"
        );
        let rest = manifest.replace("storageClassName: quickstart", &format!("storageClassName: {name}"));
        std::fs::write(&file, class + &rest).unwrap();
        orlop.run(BINARY, &["apply", "-f", &file]);
        let pods = || orlop.run(BINARY, &["get", "pods", "-o", "yaml"]);
        wait_until(&format!("the pod says why of the class {name}"), || {
            pods().contains("nothing can be made of the StorageClass") && pods().contains(said)
        });
        assert!(!pods().contains("add a drive"), "{}", pods());
        orlop.run(BINARY, &["delete", "-f", &file]);
    }

    let claim = "apiVersion: v1\nkind: PersistentVolumeClaim\nmetadata: {name: taped}\nspec: {accessModes: [ReadWriteOnce], \
                 resources: {requests: {storage: 1Mi}}, dataSourceRef: {apiGroup: example.com, kind: Tape, name: t}}\n";
    std::fs::write(&file, claim).unwrap();
    orlop.run(BINARY, &["apply", "-f", &file]);
    wait_until("an event names the missing populator", || {
        let events = events();
        events.contains("UnrecognizedDataSourceKind") && events.contains("Tape (example.com)")
    });
    orlop.run(BINARY, &["delete", "-f", &file]);
    orlop.stop();
}

#[test]
fn a_deleted_drive_file_fails_its_drive_alone() {
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "512Mi", "--loop-drive", "512Mi"]);
    orlop.stop();
    run(BINARY, &["down", "--data-dir", &place.data().display().to_string()]);
    std::fs::remove_file(place.data().join("loop/0.img")).unwrap();
    let orlop = place.up(&[]);
    wait_until("one drive failed and the other serves", || {
        let drives = orlop.run(BINARY, &["get", "drives"]);
        drives.contains("Failed") && drives.contains("Ready")
    });
    assert!(!place.data().join("loop/0.img").exists(), "a lost drive was made anew without being asked to");
    orlop.stop();
}

/// Damage to what this machine writes itself never keeps it from starting: it is made anew, and what people made stays.
#[test]
fn damaged_objects_of_this_machine_are_made_anew() {
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "512Mi"]);
    orlop.run(
        BINARY,
        &["apply", "-f", &format!("{}/../../examples/quickstart.yaml", env!("CARGO_MANIFEST_DIR"))],
    );
    let running = |orlop: &common::Orlop| orlop.run(BINARY, &["get", "pods"]).contains("Running");
    wait_until("the pod runs", || running(&orlop));
    orlop.stop();
    let store = place.data().join("store.redb");
    // Each is found once in its object, whichever copies of that the file still holds.
    for (kind, within) in [
        ("nodes", "\"bootID\""),
        ("csinodes", "\"nodeID\""),
        ("leases", "\"leaseDurationSeconds\":40"),
        ("drives", "\"backend\":\""),
        ("csistoragecapacities", "\"maximumVolumeSize\""),
        ("customresourcedefinitions", "\"singular\":\"drive\""),
        ("csidrivers", "\"seLinuxMount\""),
        ("storageclasses", "\"storageclass.kubernetes.io/is-default-class\""),
    ] {
        let mut bytes = std::fs::read(&store).unwrap();
        let found: Vec<usize> = bytes
            .windows(within.len())
            .enumerate()
            .filter(|(_, at)| *at == within.as_bytes())
            .map(|(at, _)| at)
            .collect();
        assert!(!found.is_empty(), "{within} is not in the store");
        found.into_iter().for_each(|at| bytes[at + 2] ^= 1);
        std::fs::write(&store, bytes).unwrap();

        let orlop = place.up(&[]);
        let log = orlop.log_end();
        assert!(log.contains("dropped, to be made anew") && log.contains(kind), "{kind}:\n{log}");
        wait_until("the pod runs", || running(&orlop));
        for kind in ["nodes", "csinodes", "drives", "csidrivers", "storageclasses"] {
            wait_until(&format!("{kind} are there again"), || {
                !orlop.run(BINARY, &["get", kind]).contains("No resources")
            });
        }
        orlop.stop();
    }
    run(BINARY, &["down", "--data-dir", &place.data().display().to_string()]);
}
