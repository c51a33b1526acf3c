//! What to do about a claim: pure.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;
use resources::source::{self, Source, SourceKind};
use resources::{claim, class, volume};

use super::intent::{self, Holder};

/// What a provisioner does about a claim.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Plan<'a> {
    /// Nothing: it is somebody else's, not ready, or done.
    Nothing,
    /// Its class binds at once and no node was chosen: choose one.
    Choose(&'a StorageClass),
    /// Nothing, but tell why; no retry would help.
    Refuse(&'static str),
    /// Nothing: a populator makes a claim of its own for it, and hands that one's volume over.
    LeaveToPopulator,
    /// Make a volume.
    Provision(&'a StorageClass),
    /// A volume may be there that is not wanted any more: find out, and delete it.
    Undo(&'a StorageClass),
    /// A volume may be there, and the class that it takes to find out is gone.
    Stuck,
    /// The volume is made and known: forget the intent.
    Settle,
}

/// Decides about a claim, given its class as far as that exists, and whether a PersistentVolume exists that was made
/// for the claim.
pub(super) fn plan<'a>(
    of: &PersistentVolumeClaim,
    class: Option<&'a StorageClass>,
    has_volume: bool,
    here: Holder<'_>,
) -> Plan<'a> {
    let deleting = of.metadata.deletion_timestamp.is_some();
    if intent::is_held_by(of, here) {
        return plan_held(of, class, has_volume, deleting);
    }
    let Some(class) = class.filter(|class| class.provisioner == here.driver) else { return Plan::Nothing };
    let wanted = !deleting
        && !intent::is_held(of)
        && !has_volume
        && claim::volume_name(of).is_empty()
        && claim::provisioner(of) == Some(here.driver);
    if !wanted {
        return Plan::Nothing;
    }
    match claim::selected_node(of) {
        Some(node) if node == here.node && is_populated(of) => Plan::LeaveToPopulator,
        None if is_populated(of) => Plan::Nothing,
        Some(node) if node == here.node => refusal(of).map_or(Plan::Provision(class), Plan::Refuse),
        None if !class::waits_for_consumer(class) => Plan::Choose(class),
        _ => Plan::Nothing,
    }
}

/// Once an intent is recorded, it decides alone: not the selected node, not the annotation for provisioners, both of
/// which may have been edited since.
fn plan_held<'a>(
    of: &PersistentVolumeClaim,
    class: Option<&'a StorageClass>,
    has_volume: bool,
    deleting: bool,
) -> Plan<'a> {
    let bound_to = claim::volume_name(of);
    let is_ours = bound_to == volume::name_for(of.metadata.uid.as_deref().unwrap_or_default());
    if has_volume {
        // The binder writes the claim until it is Bound: stay out of its way.
        return if deleting || claim::phase(of) == "Bound" { Plan::Settle } else { Plan::Nothing };
    }
    match class {
        // Bound to the volume, whose object went away since: its deletion took care of the storage.
        _ if is_ours => Plan::Settle,
        None => Plan::Stuck,
        Some(class) if deleting || !bound_to.is_empty() => Plan::Undo(class),
        Some(class) => Plan::Provision(class),
    }
}

/// Whether a populator fills the claim's volume: it makes one of its own, and hands it over.
fn is_populated(of: &PersistentVolumeClaim) -> bool {
    matches!(source::of(of), Some(Source { kind: SourceKind::Other { .. }, .. }))
}

/// What the claim asks for that can't be had. Only what is immutable in a claim may be refused here.
fn refusal(of: &PersistentVolumeClaim) -> Option<&'static str> {
    let spec = of.spec.as_ref()?;
    if spec.selector.is_some() {
        return Some(
            "claim Selector is not supported; remove it, or create a volume with these labels by hand",
        );
    }
    None
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::{
        PersistentVolumeClaimSpec, PersistentVolumeClaimStatus, TypedObjectReference,
    };
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, Time};
    use k8s_openapi::jiff::Timestamp;
    use kube::ResourceExt;
    use resources::annotations;

    use super::*;

    const HERE: Holder<'_> = Holder { driver: "orlop.dev", node: "n1" };
    const THERE: Holder<'_> = Holder { driver: "orlop.dev", node: "n2" };

    fn class(binding: &str, provisioner: &str) -> StorageClass {
        StorageClass {
            provisioner: provisioner.to_owned(),
            volume_binding_mode: Some(binding.to_owned()),
            ..StorageClass::default()
        }
    }

    fn claim() -> PersistentVolumeClaim {
        PersistentVolumeClaim {
            metadata: ObjectMeta {
                uid: Some("7".to_owned()),
                annotations: Some(
                    [(annotations::STORAGE_PROVISIONER.to_owned(), "orlop.dev".to_owned())].into(),
                ),
                ..ObjectMeta::default()
            },
            spec: Some(PersistentVolumeClaimSpec::default()),
            status: Some(PersistentVolumeClaimStatus {
                phase: Some("Pending".to_owned()),
                ..PersistentVolumeClaimStatus::default()
            }),
        }
    }

    fn on_node(node: &str) -> PersistentVolumeClaim {
        let mut claim = claim();
        claim.annotations_mut().insert(annotations::SELECTED_NODE.to_owned(), node.to_owned());
        claim
    }

    fn held(by: Holder<'_>) -> PersistentVolumeClaim {
        let mut claim = on_node("n1");
        intent::record(&mut claim, by, &class("WaitForFirstConsumer", "orlop.dev"), None);
        claim
    }

    fn with(
        mut claim: PersistentVolumeClaim,
        edit: impl FnOnce(&mut PersistentVolumeClaim),
    ) -> PersistentVolumeClaim {
        edit(&mut claim);
        claim
    }

    fn deleting(claim: PersistentVolumeClaim) -> PersistentVolumeClaim {
        with(claim, |claim| claim.metadata.deletion_timestamp = Some(Time(Timestamp::UNIX_EPOCH)))
    }

    fn bound_to(claim: PersistentVolumeClaim, volume: &str, phase: &str) -> PersistentVolumeClaim {
        with(claim, |claim| {
            claim.spec.get_or_insert_default().volume_name = Some(volume.to_owned());
            claim.status.get_or_insert_default().phase = Some(phase.to_owned());
        })
    }

    #[test]
    fn claims_without_intent() {
        let waiting = class("WaitForFirstConsumer", "orlop.dev");
        let immediate = class("Immediate", "orlop.dev");
        let other = class("WaitForFirstConsumer", "nfs.example.com");
        let legacy = with(on_node("n1"), |claim| {
            claim.annotations_mut().remove(annotations::STORAGE_PROVISIONER);
            let key = annotations::BETA_STORAGE_PROVISIONER.to_owned();
            claim.annotations_mut().insert(key, "orlop.dev".to_owned());
        });
        let unclaimed = with(on_node("n1"), |claim| {
            claim.annotations_mut().remove(annotations::STORAGE_PROVISIONER);
        });
        let populated = |claim| {
            with(claim, |claim| {
                claim.spec.get_or_insert_default().data_source_ref = Some(TypedObjectReference {
                    api_group: Some("example.com".to_owned()),
                    kind: "Backup".to_owned(),
                    name: "b".to_owned(),
                    namespace: None,
                });
            })
        };
        let selecting = with(on_node("n1"), |claim| {
            claim.spec.get_or_insert_default().selector = Some(LabelSelector::default());
        });
        for (what, claim, class, has_volume, expected) in [
            ("waits for its first pod", claim(), Some(&waiting), false, Plan::Nothing),
            ("has an empty node", on_node(""), Some(&waiting), false, Plan::Nothing),
            ("goes to this node", on_node("n1"), Some(&waiting), false, Plan::Provision(&waiting)),
            ("goes to another node", on_node("n2"), Some(&waiting), false, Plan::Nothing),
            ("binds at once", claim(), Some(&immediate), false, Plan::Choose(&immediate)),
            ("binds at once, here", on_node("n1"), Some(&immediate), false, Plan::Provision(&immediate)),
            ("binds at once, there", on_node("n2"), Some(&immediate), false, Plan::Nothing),
            ("has only the older annotation", legacy, Some(&waiting), false, Plan::Provision(&waiting)),
            ("was not handed over", unclaimed, Some(&waiting), false, Plan::Nothing),
            ("has no class", on_node("n1"), None, false, Plan::Nothing),
            ("has another driver's class", on_node("n1"), Some(&other), false, Plan::Nothing),
            ("has its volume", on_node("n1"), Some(&waiting), true, Plan::Nothing),
            ("is bound", bound_to(on_node("n1"), "x", "Bound"), Some(&waiting), false, Plan::Nothing),
            ("is being deleted", deleting(on_node("n1")), Some(&waiting), false, Plan::Nothing),
            ("a populator fills", populated(on_node("n1")), Some(&waiting), false, Plan::LeaveToPopulator),
            ("a populator fills there", populated(on_node("n2")), Some(&waiting), false, Plan::Nothing),
            ("a populator fills at once", populated(claim()), Some(&immediate), false, Plan::Nothing),
            ("is another provisioner's", held(THERE), Some(&waiting), false, Plan::Nothing),
        ] {
            assert_eq!(plan(&claim, class, has_volume, HERE), expected, "a claim that {what}");
        }
        assert!(matches!(plan(&selecting, Some(&waiting), false, HERE), Plan::Refuse(_)));
    }

    #[test]
    fn claims_with_intent() {
        let class = class("WaitForFirstConsumer", "orlop.dev");
        let moved = with(held(HERE), |claim| {
            claim.annotations_mut().insert(annotations::SELECTED_NODE.to_owned(), "n2".to_owned());
        });
        for (what, claim, class, has_volume, expected) in [
            ("was interrupted", held(HERE), Some(&class), false, Plan::Provision(&class)),
            ("was moved meanwhile", moved, Some(&class), false, Plan::Provision(&class)),
            ("has its volume", held(HERE), Some(&class), true, Plan::Nothing),
            ("is half bound", bound_to(held(HERE), "pvc-7", "Pending"), Some(&class), true, Plan::Nothing),
            ("is bound", bound_to(held(HERE), "pvc-7", "Bound"), Some(&class), true, Plan::Settle),
            ("is deleted with its volume", deleting(held(HERE)), Some(&class), true, Plan::Settle),
            ("is deleted before its volume", deleting(held(HERE)), Some(&class), false, Plan::Undo(&class)),
            (
                "got another volume",
                bound_to(held(HERE), "x", "Bound"),
                Some(&class),
                false,
                Plan::Undo(&class),
            ),
            ("lost its volume", bound_to(held(HERE), "pvc-7", "Lost"), Some(&class), false, Plan::Settle),
            ("lost its class", held(HERE), None, false, Plan::Stuck),
            ("lost its class but is done", bound_to(held(HERE), "pvc-7", "Bound"), None, true, Plan::Settle),
        ] {
            assert_eq!(plan(&claim, class, has_volume, HERE), expected, "a claim that {what}");
        }
    }
}
