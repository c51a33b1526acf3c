//! Storage classes.

use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;

use crate::annotations;

/// Whether claims that name no class may get this one.
pub fn is_default(class: &StorageClass) -> bool {
    let annotations = class.annotations();
    [annotations::IS_DEFAULT_CLASS, annotations::BETA_IS_DEFAULT_CLASS]
        .iter()
        .any(|key| annotations.get(*key).is_some_and(|value| value == "true"))
}

/// The class that claims without one get: among the default ones the newest, then the first by name.
pub fn default<C: AsRef<StorageClass>>(classes: &[C]) -> Option<&StorageClass> {
    classes.iter().map(AsRef::as_ref).filter(|class| is_default(class)).max_by(|a, b| {
        let by_age = a.metadata.creation_timestamp.cmp(&b.metadata.creation_timestamp);
        by_age.then_with(|| b.metadata.name.cmp(&a.metadata.name))
    })
}

/// Whether volumes wait until a pod that uses them has a node.
pub fn waits_for_consumer(class: &StorageClass) -> bool {
    class.volume_binding_mode.as_deref() == Some("WaitForFirstConsumer")
}

/// What becomes of volumes whose claim is gone: `Delete` unless the class says otherwise.
pub fn reclaim_policy(class: &StorageClass) -> &str {
    class.reclaim_policy.as_deref().unwrap_or("Delete")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
    use k8s_openapi::jiff::Timestamp;

    use super::*;

    fn class(name: &str, created: i64, annotation: Option<(&str, &str)>) -> Arc<StorageClass> {
        let created = Timestamp::from_second(created).expect("a time");
        Arc::new(StorageClass {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                creation_timestamp: Some(Time(created)),
                annotations: annotation.map(|(key, value)| [(key.to_owned(), value.to_owned())].into()),
                ..ObjectMeta::default()
            },
            ..StorageClass::default()
        })
    }

    #[test]
    fn the_newest_default_class_wins_then_the_first_name() {
        const GA: Option<(&str, &str)> = Some((annotations::IS_DEFAULT_CLASS, "true"));
        const BETA: Option<(&str, &str)> = Some((annotations::BETA_IS_DEFAULT_CLASS, "true"));
        const OFF: Option<(&str, &str)> = Some((annotations::IS_DEFAULT_CLASS, "false"));
        for (classes, chosen) in [
            (vec![class("a", 1, None), class("b", 2, OFF)], None),
            (vec![class("a", 1, GA), class("b", 2, BETA), class("c", 3, OFF)], Some("b")),
            (vec![class("b", 2, GA), class("a", 2, GA), class("c", 1, GA)], Some("a")),
        ] {
            assert_eq!(default(&classes).and_then(|class| class.metadata.name.as_deref()), chosen);
        }
    }
}
