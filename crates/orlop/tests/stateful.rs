//! A stateful set with real kubectl, real volumes and real containers.

mod common;

use common::{Place, kubectls, wait_until};

/// A set whose pods start all at once at ordinal 5; its claims outlive its pods, but not itself.
const LEDGER: &str = r#"
apiVersion: apps/v1
kind: StatefulSet
metadata: {name: ledger}
spec:
  serviceName: ledger
  replicas: 0
  podManagementPolicy: Parallel
  ordinals: {start: 5}
  selector: {matchLabels: {app: ledger}}
  persistentVolumeClaimRetentionPolicy: {whenScaled: Retain, whenDeleted: Delete}
  template:
    metadata: {labels: {app: ledger}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - name: writer
        image: host
        command: [sh, -c, "trap 'exit 0' TERM; echo $EDITION >> /data/ledger; cat /data/ledger; sleep infinity & wait"]
        env: [{name: EDITION, value: first}]
        volumeMounts: [{name: data, mountPath: /data}]
  volumeClaimTemplates:
  - metadata: {name: data}
    spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 32Mi}}}
"#;

const EXAMPLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../examples/stateful-set.yaml");

#[test]
fn a_stateful_set_starts_in_order_and_keeps_its_data() {
    // One kubectl is enough: they differ in nothing that matters here.
    let Some(kubectl) = kubectls().into_iter().next() else { return };
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "512Mi"]);
    let ctl = |line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());
    let journal = |pod: &str| ctl(&format!("logs {pod}")).lines().count();

    let applied = orlop.attempt(&kubectl, &["apply", "-f", EXAMPLE]);
    assert!(applied.status.success(), "{applied:?}");
    let warned = String::from_utf8_lossy(&applied.stderr).into_owned();
    assert!(warned.contains("Warning: services are stored only"), "{warned}");
    ctl("rollout status statefulset/journal --timeout=60s");
    assert!(ctl("get sts").contains("journal   3/3"), "{}", ctl("get sts"));
    // kubectl compares claim templates without their defaults; nothing comes of its patch.
    let version = || ctl("get sts journal -o jsonpath={.metadata.resourceVersion}");
    let before = version();
    ctl(&format!("apply -f {EXAMPLE}"));
    assert_eq!(version(), before);

    // One after the other: each was made when the one before it was ready.
    let ready = |pod: &str, field: &str| ctl(&format!("get pod {pod} -o jsonpath={{{field}}}"));
    for (before, after) in [("journal-0", "journal-1"), ("journal-1", "journal-2")] {
        let since = ready(before, ".status.conditions[?(@.type==\"Ready\")].lastTransitionTime");
        let created = ready(after, ".metadata.creationTimestamp");
        assert!(since <= created, "{after} was made at {created}, {before} was ready at {since}");
    }
    assert!(ctl("describe sts journal").contains("SuccessfulCreate"));

    // A pod that is deleted comes back to its data.
    wait_until("the first line is there", || journal("journal-1") == 1);
    ctl("delete pod journal-1");
    ctl("rollout status sts/journal --timeout=60s");
    wait_until("both starts are in the journal", || journal("journal-1") == 2);

    // Claims go with pods that are scaled away, and only those.
    ctl("scale sts journal --replicas=1");
    ctl("rollout status sts/journal --timeout=60s");
    let claims = || ctl("get pvc -o name");
    wait_until("two claims are gone", || claims() == "persistentvolumeclaim/data-journal-0\n");
    wait_until("and their volumes", || ctl("get pv -o name").lines().count() == 1);
    ctl("scale sts journal --replicas=2");
    ctl("rollout status sts/journal --timeout=60s");
    wait_until("the second begins anew", || journal("journal-1") == 1);
    assert_eq!(journal("journal-0"), 1);

    // Pods survive their set when told to, and are taken over by the next.
    let uid = || ctl("get pod journal-0 -o jsonpath={.metadata.uid}");
    let before = uid();
    ctl("delete sts journal --cascade=orphan");
    ctl(&format!("apply -f {EXAMPLE}"));
    ctl("rollout status sts/journal --timeout=60s");
    assert_eq!(uid(), before);
    ctl("rollout restart sts/journal");
    ctl("rollout status sts/journal --timeout=60s");
    assert_ne!(uid(), before);
    assert_eq!(
        ctl("rollout history sts/journal").lines().filter(|line| line.starts_with(['1', '2'])).count(),
        2
    );

    let wrong =
        orlop.attempt(&kubectl, &["patch", "sts", "journal", "-p", r#"{"spec":{"serviceName":"other"}}"#]);
    let refusal = String::from_utf8_lossy(&wrong.stderr).into_owned();
    assert!(refusal.contains("updates to statefulset spec for fields other than 'replicas'"), "{refusal}");

    // Claims outlive the set.
    ctl(&format!("delete -f {EXAMPLE} --timeout=60s"));
    wait_until("the pods are gone", || ctl("get pods -o name").is_empty());
    assert_eq!(claims().lines().count(), 3);
    ctl("delete pvc --all --timeout=60s");
    wait_until("the volumes are gone", || ctl("get pv -o name").is_empty());
    orlop.stop();
}

#[test]
fn claims_outlive_pods_that_are_scaled_away_and_go_with_their_set() {
    let Some(kubectl) = kubectls().into_iter().next() else { return };
    let place = Place::new();
    let orlop = place.up(&["--loop-drive", "512Mi"]);
    let ctl = |line: &str| orlop.run(&kubectl, &line.split(' ').collect::<Vec<_>>());
    let manifest = place.path().join("ledger.yaml");
    std::fs::write(&manifest, LEDGER).expect("writing the manifest");
    let rolled_out = || ctl("rollout status sts/ledger --timeout=60s");
    let written = |pod: &str, lines: &[&str]| {
        wait_until(&format!("{pod} has written {lines:?}"), || {
            ctl(&format!("logs {pod}")).lines().eq(lines.iter().copied())
        });
    };

    ctl(&format!("apply -f {}", manifest.display()));
    rolled_out();
    assert_eq!(ctl("get pods,pvc -o name"), "");
    ctl("scale sts ledger --replicas=3");
    rolled_out();
    assert_eq!(ctl("get pods -o name"), "pod/ledger-5\npod/ledger-6\npod/ledger-7\n");
    for pod in ["ledger-5", "ledger-6", "ledger-7"] {
        written(pod, &["first"]);
    }
    ctl("scale sts ledger --replicas=1");
    wait_until("two pods are gone", || ctl("get pods -o name") == "pod/ledger-5\n");
    let volumes = || ctl("get pvc -o custom-columns=N:.metadata.name,V:.spec.volumeName,P:.status.phase");
    let before = volumes();
    assert_eq!(before.matches("Bound").count(), 3, "{before}");
    ctl("scale sts ledger --replicas=3 --current-replicas=1");
    rolled_out();
    assert_eq!(volumes(), before);
    for pod in ["ledger-6", "ledger-7"] {
        written(pod, &["first", "first"]);
    }

    // A new template reaches the pods above the partition first, the others when it falls.
    let partition = |at: u8| {
        let strategy = format!(r#"{{"spec":{{"updateStrategy":{{"rollingUpdate":{{"partition":{at}}}}}}}}}"#);
        ctl(&format!("patch sts ledger -p {strategy}"));
    };
    partition(2);
    ctl("set env sts/ledger EDITION=second");
    assert!(rolled_out().contains("partitioned roll out complete: 1 new pods"));
    written("ledger-7", &["first", "first", "second"]);
    written("ledger-6", &["first", "first"]);
    partition(0);
    rolled_out();
    written("ledger-5", &["first", "second"]);
    written("ledger-6", &["first", "first", "second"]);

    ctl("delete sts ledger --timeout=60s");
    wait_until("nothing is left", || ctl("get pods,pvc,pv,controllerrevisions -o name").is_empty());
    orlop.stop();
}
