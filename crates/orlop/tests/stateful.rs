//! A stateful set with real kubectl, real volumes and real containers.

mod common;

use common::{Place, kubectls, wait_until};

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
