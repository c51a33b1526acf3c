//! Namespaces: those that must exist, and which ones take new objects.

use std::sync::Arc;

use object_store::{Precondition, WriteError};
use serde_json::{Value, json};

use crate::context::{Context, Target};
use crate::error::{ApiError, Cause, ResourceName};
use crate::kinds::NAMESPACE;
use crate::{change, object};

/// Creates the namespace unless it is there.
pub(crate) async fn ensure(context: &Arc<Context>, name: &str) -> Result<(), ApiError> {
    let served = context
        .catalog
        .now()
        .of(&NAMESPACE)
        .ok_or_else(|| ApiError::Internal("the kind Namespace is not served".into()))?;
    let key = served.key("", name);
    if context.store.get(&key).is_some() {
        return Ok(());
    }
    let mut new = json!({"apiVersion": "v1", "kind": NAMESPACE.kind, "metadata": {"name": name}});
    let uid = context.options.uids.choose(&served, "", name);
    change::begin(&served, &mut new, "", uid, clock::now())?;
    (NAMESPACE.hooks.on_create)(&mut new, &**context);
    match context.store.put(key, Precondition::Absent, object::encode(&new)).await {
        Ok(_) | Err(WriteError::Exists { .. }) => Ok(()),
        Err(error) => Err(ApiError::from_write(&served.kind, name, error)),
    }
}

/// Refuses a create in a namespace that is missing or terminating.
pub(crate) fn check_open(context: &Context, target: &Target, name: &str) -> Result<(), ApiError> {
    if !target.served.kind.namespaced {
        return Ok(());
    }
    let namespace = &target.namespace;
    let key = object_store::Key::new(NAMESPACE.plural, "", namespace.as_str());
    let Some(stored) = context.store.get(&key) else {
        let resource = ResourceName { group: String::new(), plural: NAMESPACE.plural.into() };
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
