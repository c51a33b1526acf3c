//! Stateful sets have their pods and claims.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::{Ledger, World};

/// Which sets lack a pod, or have one too many.
pub(super) async fn settled(world: &World, ledger: &Ledger) -> Vec<String> {
    let mut wrong = Vec::new();
    for set in world.list::<StatefulSet>().await {
        let (name, wanted) = (set.name_any(), set.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1));
        if set.metadata.deletion_timestamp.is_some() {
            wrong.push(format!("set {name} is not gone"));
            continue;
        }
        let own = ledger.pods.values().filter(|pod| {
            pod.owner_references().iter().any(|owner| Some(&owner.uid) == set.metadata.uid.as_ref())
        });
        let found: Vec<String> = own.map(ResourceExt::name_any).collect();
        let expected: Vec<String> = (0..wanted).map(|ordinal| format!("{name}-{ordinal}")).collect();
        let own = ledger.pods.values().filter(|pod| found.contains(&pod.name_any()));
        let runs = |pod: &&Pod| pod.status.as_ref().is_some_and(|it| it.phase.as_deref() == Some("Running"));
        let running = own.filter(runs).count();
        // One that does not run, which is looked at elsewhere, holds the others up.
        if found != expected && running == found.len() {
            wrong.push(format!("set {name} has pods {found:?}, not {expected:?}"));
        }
        let ready = set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
        if ready != running as i32 {
            wrong.push(format!("set {name} says that {ready} of {running} are ready"));
        }
    }
    wrong
}
