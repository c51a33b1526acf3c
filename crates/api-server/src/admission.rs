//! What Kubernetes' admission plugins add to new objects that a volume needs, and what they refuse.

use object_store::{Key, Object};
use serde_json::{Value, json};
use values::Quantity;

use crate::catalog::Served;
use crate::error::ApiError;
use crate::object;
use crate::server::Shared;

const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
const ATTRIBUTES_CLASS_PROTECTION: &str = "kubernetes.io/vac-protection";
const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
const DEFAULT_CLASS_BETA: &str = "storageclass.beta.kubernetes.io/is-default-class";
const CLASSES: &str = "storageclasses.storage.k8s.io";
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
        "VolumeAttributesClass" => object::add_finalizer(new, ATTRIBUTES_CLASS_PROTECTION),
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

/// Refuses a change that its kind's admission refuses: a claim grows only when it is bound, and its class allows it.
pub(crate) fn on_update(shared: &Shared, served: &Served, old: &Value, new: &Value) -> Result<(), ApiError> {
    if !served.is_builtin("PersistentVolumeClaim") {
        return Ok(());
    }
    let size =
        |claim: &Value| claim["spec"]["resources"]["requests"]["storage"].as_str()?.parse::<Quantity>().ok();
    if size(new) <= size(old) {
        return Ok(());
    }
    let refuse = |why| Err(ApiError::forbidden(&served.kind, object::name(new), why));
    if old["status"]["phase"] != "Bound" {
        return refuse("Only bound persistent volume claims can be expanded");
    }
    let class = |claim: &Value| {
        let legacy = claim["metadata"]["annotations"][CLASS_BETA].as_str();
        legacy.or(claim["spec"]["storageClassName"].as_str()).unwrap_or_default().to_owned()
    };
    let name = class(new);
    let key = Key { resource: CLASSES.into(), namespace: "".into(), name: name.as_str().into() };
    let allows = name == class(old)
        && shared.store.get(&key).is_some_and(|class| {
            object::decode(&class.value).is_ok_and(|class| class["allowVolumeExpansion"] == true)
        });
    if allows {
        return Ok(());
    }
    refuse(
        "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
    )
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
    let Ok(page) = shared.store.list(CLASSES, None, None, None, 0, is_default) else {
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
