//! Asking for a volume to be made: by an external provisioner, or by an in-tree plugin.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use resources::annotations::{BETA_STORAGE_PROVISIONER, MIGRATED_TO, STORAGE_PROVISIONER};

use super::plugins::IN_TREE_PREFIX;
use super::step::{Operation, Step, Write, claim_reference};
use super::upkeep;
use super::world::World;

/// Says on the claim who shall make its volume. External provisioners watch for that annotation.
pub(super) fn hand_off(step: &mut Step, world: &World, claim: PersistentVolumeClaim, class_name: &str) {
    let about = claim_reference(&claim);
    let failed =
        |step: &mut Step, message: String| step.warning(about.clone(), "ProvisioningFailed", message);
    let Some(class) = world.class(class_name) else {
        return failed(
            step,
            format!(
                "storageclass.storage.k8s.io {class_name:?} not found; create it or name another in a new claim"
            ),
        );
    };
    let migrated = world.plugins.migrated_to(&class.provisioner);
    let provisioner = migrated.unwrap_or(&class.provisioner);
    let plugin = world.plugins.named(provisioner);
    if plugin.is_none() && provisioner.starts_with(IN_TREE_PREFIX) {
        return failed(
            step,
            format!("no volume plugin matched {provisioner:?}: create a PersistentVolume by hand"),
        );
    }

    let mut marked = claim.clone();
    // A claim that names its provisioner is as that one expects it, whatever else it says.
    if claim.annotations().get(STORAGE_PROVISIONER).map(String::as_str) != Some(provisioner) {
        let annotations = marked.annotations_mut();
        for key in [STORAGE_PROVISIONER, BETA_STORAGE_PROVISIONER] {
            annotations.insert(key.to_owned(), provisioner.to_owned());
        }
        match migrated {
            // The annotation names the driver already, so that upkeep has nothing to go by.
            Some(driver) => {
                annotations.insert(MIGRATED_TO.to_owned(), driver.to_owned());
            }
            None => {
                upkeep::migrate_claim(&world.plugins, &mut marked);
            }
        }
        step.writes.push(Write::Claim(Box::new(marked.clone())));
    }

    match plugin {
        None => step.normal(
            about,
            "ExternalProvisioning",
            format!(
                "Waiting for a volume to be created either by the external provisioner '{provisioner}' or manually by \
                 the system administrator. If volume creation is delayed, please verify that the provisioner is \
                 running and correctly registered."
            ),
        ),
        Some(plugin) => {
            let spec = claim.spec.as_ref();
            let has_source = spec.is_some_and(|spec| spec.data_source.is_some() || spec.data_source_ref.is_some());
            if has_source {
                return failed(step, format!("plugin {provisioner:?} is not a CSI plugin: it can't fill a volume"));
            }
            let options = class.mount_options.as_deref().unwrap_or_default();
            if !options.is_empty() && !plugin.takes_mount_options() {
                return failed(step, format!("plugin {provisioner:?} takes no mount options; remove them from the class"));
            }
            step.operation = Some(Operation::Provision(plugin.clone(), Box::new(marked), class.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::claim::sync_claim;
    use super::*;
    use serde_json::{Value, json};

    /// What is written to a claim of the class `c`, if anything is.
    fn written(class_provisioner: &str, annotations: &Value) -> Option<Value> {
        let class = json!({"metadata": {"name": "c"}, "provisioner": class_provisioner, "volumeBindingMode": "Immediate"});
        let claim = json!({
            "metadata": {"namespace": "a", "name": "data", "uid": "1", "annotations": annotations},
            "spec": {"storageClassName": "c", "accessModes": ["ReadWriteOnce"]},
            "status": {"phase": "Pending"},
        });
        let mut world = World::default();
        world.put_class(Arc::new(serde_json::from_value(class).expect("a class")));
        let step = sync_claim(&world, &serde_json::from_value(claim).expect("a claim"));
        assert!(step.notices.iter().any(|notice| notice.reason == "ExternalProvisioning"));
        assert!(step.writes.len() <= 1, "{:?}", step.writes);
        step.writes.into_iter().next().map(|write| match write {
            Write::Claim(claim) => json!(claim.annotations()),
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn a_claim_that_names_its_provisioner_is_not_written_again() {
        let [mine, cloud] = ["driver.example.com", "pd.csi.storage.gke.io"];
        let named = |name: &str| json!({STORAGE_PROVISIONER: name, BETA_STORAGE_PROVISIONER: name});
        let mut migrated = named(cloud);
        migrated[MIGRATED_TO] = json!(cloud);
        let table = [
            (mine, json!({}), Some(named(mine))),
            (mine, named(mine), None),
            // As newer or older tools write it.
            (mine, json!({STORAGE_PROVISIONER: mine}), None),
            (mine, json!({STORAGE_PROVISIONER: mine, BETA_STORAGE_PROVISIONER: "other"}), None),
            (mine, json!({BETA_STORAGE_PROVISIONER: mine}), Some(named(mine))),
            (mine, named("other"), Some(named(mine))),
            // Of a plugin that a driver took over: the look after the hand-off leaves it as it is.
            ("kubernetes.io/gce-pd", json!({}), Some(migrated.clone())),
            ("kubernetes.io/gce-pd", migrated, None),
        ];
        for (class, before, after) in table {
            assert_eq!(written(class, &before), after, "{class}, {before}");
        }
    }
}
