//! What Kubernetes' admission plugins add to new objects that a volume needs.

use object_store::Object;
use serde_json::{Value, json};

use crate::catalog::Served;
use crate::object;
use crate::server::Shared;

const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const DEFAULT_CLASS_BETA: &str = "storageclass.beta.kubernetes.io/is-default-class";
const CLASS_BETA: &str = "volume.beta.kubernetes.io/storage-class";
/// Removed by the CustomResourceDefinition's clean-up when its objects are gone.
pub(crate) const DEFINITION_CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Adds to an object that is being created what its kind's admission adds.
pub(crate) fn on_create(shared: &Shared, served: &Served, new: &mut Value) {
    if served.custom.is_some() {
        return;
    }
    match served.kind.kind.as_ref() {
        "PersistentVolumeClaim" => {
            object::add_finalizer(new, CLAIM_PROTECTION);
            default_class(shared, new);
        }
        "PersistentVolume" => object::add_finalizer(new, VOLUME_PROTECTION),
        "Namespace" => {
            new["spec"]["finalizers"] = json!(["kubernetes"]);
            new["status"] = json!({"phase": "Active"});
            let name = object::name(new).to_owned();
            new["metadata"]["labels"]["kubernetes.io/metadata.name"] = name.into();
        }
        "CustomResourceDefinition" => {
            object::add_finalizer(new, DEFINITION_CLEANUP);
            crate::crds::establish(&shared.catalog, new);
        }
        _ => {}
    }
}

/// A claim that names no class gets the default one, the newest if there are several.
fn default_class(shared: &Shared, claim: &mut Value) {
    let names_class = claim.pointer("/spec/storageClassName").is_some_and(|class| !class.is_null())
        || claim.pointer("/metadata/annotations").is_some_and(|all| all.get(CLASS_BETA).is_some());
    if names_class {
        return;
    }
    let is_default = |class: &Object| {
        let annotated =
            |class: &Value, annotation: &str| class["metadata"]["annotations"][annotation] == "true";
        object::decode(&class.value)
            .is_ok_and(|class| annotated(&class, DEFAULT_CLASS) || annotated(&class, DEFAULT_CLASS_BETA))
    };
    let Ok(page) = shared.store.list("storageclasses.storage.k8s.io", None, None, None, 0, is_default) else {
        return;
    };
    let created = |class: &Object| {
        object::decode(&class.value)
            .map(|class| object::meta_str(&class, "creationTimestamp").to_owned())
            .unwrap_or_default()
    };
    // Later creation wins, then the name that comes first.
    let newest =
        page.objects.iter().min_by_key(|class| (std::cmp::Reverse(created(class)), class.key.name.clone()));
    if let Some(class) = newest {
        claim["spec"]["storageClassName"] = class.key.name.as_ref().into();
    }
}
