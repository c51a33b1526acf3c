//! Which namespaces take new objects.

use serde_json::Value;

use crate::context::{Context, Target};
use crate::error::{ApiError, Cause, ResourceName};
use crate::kinds::NAMESPACE;
use crate::object;

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
