//! Namespaces: those that must exist, and which ones take new objects.

use std::sync::Arc;

use object_store::{Precondition, WriteError};
use serde_json::{Value, json};

use crate::error::{ApiError, Cause, ResourceName};
use crate::server::{Shared, Target};
use crate::{admission, change, object};

/// Namespaces that can't be deleted.
pub(crate) fn is_immortal(name: &str) -> bool {
    matches!(name, "default" | "kube-system" | "kube-public")
}

/// Creates the namespace unless it is there.
pub(crate) async fn ensure(shared: &Arc<Shared>, name: &str) -> Result<(), ApiError> {
    let served = shared
        .catalog
        .now()
        .builtin("Namespace")
        .ok_or_else(|| ApiError::Internal("the kind Namespace is not served".into()))?;
    let key = served.key("", name);
    if shared.store.get(&key).is_some() {
        return Ok(());
    }
    let mut new = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
    let uid = shared.options.uids.choose(&served, "", name);
    change::begin(&served, &mut new, "", uid, clock::now())?;
    admission::on_create(shared, &served, &mut new);
    match shared.store.put(key, Precondition::Absent, object::encode(&new)).await {
        Ok(_) | Err(WriteError::Exists { .. }) => Ok(()),
        Err(error) => Err(ApiError::from_write(&served.kind, name, error)),
    }
}

/// Refuses a create in a namespace that is missing or terminating.
pub(crate) fn check_open(shared: &Shared, target: &Target, name: &str) -> Result<(), ApiError> {
    if !target.served.kind.namespaced {
        return Ok(());
    }
    let namespace = &target.namespace;
    let key = object_store::Key::new("namespaces", "", namespace.as_str());
    let Some(stored) = shared.store.get(&key) else {
        let resource = ResourceName { group: String::new(), plural: "namespaces".into() };
        return Err(ApiError::NotFound { resource, name: namespace.clone() });
    };
    if is_terminating(&stored.value) {
        return Err(ApiError::Forbidden {
            resource: ResourceName::of(&target.served.kind),
            name: name.to_owned(),
            why: format!(
                "unable to create new content in namespace {namespace} because it is being terminated"
            ),
            cause: Some(Box::new(Cause {
                reason: "NamespaceTerminating",
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace",
            })),
        });
    }
    Ok(())
}

fn is_terminating(namespace: &[u8]) -> bool {
    serde_json::from_slice::<Value>(namespace).is_ok_and(|namespace| object::is_deleting(&namespace))
}
