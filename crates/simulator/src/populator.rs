//! A populator as users install one: it fills claims from backups. For each it makes a claim of its own, fills that one's
//! volume, and hands the volume over.

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt;
use kube::api::PostParams;
use resources::populator::{self, GroupKind, VolumePopulator};
use resources::source::{self, SourceKind};
use resources::{annotations, claim, volume};
use serde_json::json;

use crate::World;

/// The API group of what claims are filled from.
pub(crate) const GROUP: &str = "example.com";
/// What the populator fills claims from.
pub(crate) const BACKUP: &str = "Backup";
/// What nobody fills claims from.
pub(crate) const TAPE: &str = "Tape";
/// The registration's name.
pub(crate) const NAME: &str = "backups";
/// How the names of the populator's own claims begin. The UID of the claim that is to be filled follows.
const OWN: &str = "prime-";
const FINALIZER: &str = "example.com/populated";

/// Whether a claim is to be filled from an object of this kind.
pub(crate) fn is_filled_from(kind: &str, of: &PersistentVolumeClaim) -> bool {
    let is_kind = |found: &SourceKind| found.group_and_kind() == (GROUP, kind);
    source::of(of).is_some_and(|source| is_kind(&source.kind))
}

/// Whether a claim is the populator's.
pub(crate) fn is_own(claim: &PersistentVolumeClaim) -> bool {
    claim.name_any().starts_with(OWN)
}

fn own_for(wanted: &PersistentVolumeClaim) -> String {
    format!("{OWN}{}", wanted.uid().unwrap_or_default())
}

fn goes(object: &impl ResourceExt) -> bool {
    object.meta().deletion_timestamp.is_some()
}

impl World {
    /// Makes the kind by which populators are registered, and registers this one.
    pub(crate) async fn define_populators(&self) {
        let definition = populator::definition();
        drop(self.api::<CustomResourceDefinition>().create(&PostParams::default(), &definition).await);
        self.register_populator().await;
    }

    pub(crate) async fn register_populator(&self) {
        let kind = GroupKind { group: GROUP.to_owned(), kind: BACKUP.to_owned() };
        let object = VolumePopulator::new(NAME, kind);
        drop(self.api::<VolumePopulator>().create(&PostParams::default(), &object).await);
    }

    /// The populator looks once at all claims.
    pub(crate) async fn populate(&self) {
        let (wanted, own): (Vec<_>, Vec<_>) = self.network.ledger(|ledger| {
            let claims = ledger.claims.values();
            let ours = claims.filter(|one| is_own(one) || is_filled_from(BACKUP, one));
            ours.cloned().partition(|one| !is_own(one))
        });
        for claim in &wanted {
            let own = own.iter().find(|own| own.name_any() == own_for(claim));
            self.fill(claim, own).await;
        }
        let is_needed =
            |own: &&PersistentVolumeClaim| wanted.iter().any(|one| own_for(one) == own.name_any());
        for own in own.iter().filter(|own| !is_needed(own)) {
            self.drop_own(own).await;
        }
    }

    /// Takes the next step to fill a claim.
    async fn fill(&self, wanted: &PersistentVolumeClaim, own: Option<&PersistentVolumeClaim>) {
        let is_kept = wanted.finalizers().iter().any(|name| name == FINALIZER);
        if claim::phase(wanted) == "Bound" || goes(wanted) {
            match own {
                Some(own) => self.drop_own(own).await,
                None if is_kept => self.keep(wanted, false).await,
                None => {}
            }
            return;
        }
        let node = claim::selected_node(wanted);
        if claim::class(wanted) == "late" && node.is_none() {
            return;
        }
        if !is_kept {
            return self.keep(wanted, true).await;
        }
        let Some(own) = own else {
            let mut spec = wanted.spec.clone().unwrap_or_default();
            (spec.data_source, spec.data_source_ref) = (None, None);
            let node: Vec<_> = node.map(|node| (annotations::SELECTED_NODE, node)).into_iter().collect();
            let node: std::collections::BTreeMap<_, _> = node.into_iter().collect();
            self.network.note(format_args!("populator: begins with {}", wanted.name_any()));
            self.create::<PersistentVolumeClaim>(json!({
                "metadata": {"name": own_for(wanted), "namespace": "default", "annotations": node}, "spec": spec,
            }))
            .await;
            return;
        };
        let named = claim::volume_name(own);
        let Some(volume) = self.network.ledger(|ledger| ledger.volumes.get(named).cloned()) else {
            // Somebody deleted it in between.
            if claim::phase(own) == "Lost" {
                self.drop_own(own).await;
            }
            return;
        };
        let is_free = ["", named].contains(&claim::volume_name(wanted));
        if volume::is_bound_to(&volume, wanted) || goes(own) || !is_free {
            return;
        }
        // Somebody deletes the volume, or gave it to another: once more.
        if goes(&volume) || claim::phase(own) == "Lost" {
            return self.drop_own(own).await;
        }
        if claim::phase(own) == "Bound" {
            self.network.note(format_args!("populator: hands {named} over to {}", wanted.name_any()));
            let to = json!({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "namespace": "default",
                "name": wanted.name_any(), "uid": wanted.uid(), "resourceVersion": wanted.resource_version()});
            self.patch::<PersistentVolume>(named, json!({"spec": {"claimRef": to}})).await;
        }
    }

    async fn drop_own(&self, own: &PersistentVolumeClaim) {
        if !goes(own) {
            self.network.note(format_args!("populator: no claim {}", own.name_any()));
            self.delete::<PersistentVolumeClaim>(&own.name_any()).await;
        }
    }

    /// Puts the finalizer on a claim, or takes it off; next time, if somebody else writes the claim meanwhile.
    async fn keep(&self, wanted: &PersistentVolumeClaim, keep: bool) {
        let mut wanted = wanted.clone();
        wanted.finalizers_mut().retain(|name| name != FINALIZER);
        wanted.finalizers_mut().extend(keep.then(|| FINALIZER.to_owned()));
        let api = self.api::<PersistentVolumeClaim>();
        drop(api.replace(&wanted.name_any(), &PostParams::default(), &wanted).await);
    }
}
