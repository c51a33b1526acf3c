//! What a claim's volume is to be filled with.

use k8s_openapi::api::core::v1::PersistentVolumeClaim;

use crate::snapshot;

/// A claim's data source.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Source {
    /// Of which kind.
    pub kind: SourceKind,
    /// Its namespace: the claim's own unless `dataSourceRef` says otherwise.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

/// Kinds of data sources.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum SourceKind {
    /// A VolumeSnapshot, to be restored.
    Snapshot,
    /// A claim, to be cloned.
    Claim,
    /// Anything else: a populator fills the volume.
    Other {
        /// The API group.
        group: String,
        /// The kind.
        kind: String,
    },
}

impl SourceKind {
    /// API group and kind.
    pub fn group_and_kind(&self) -> (&str, &str) {
        match self {
            SourceKind::Snapshot => (snapshot::GROUP, "VolumeSnapshot"),
            SourceKind::Claim => ("", "PersistentVolumeClaim"),
            SourceKind::Other { group, kind } => (group, kind),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", self.kind.group_and_kind().1, self.namespace, self.name)
    }
}

/// The data source of a claim. `dataSourceRef` counts where present; the API server keeps both fields equal unless the
/// source is in another namespace.
pub fn of(claim: &PersistentVolumeClaim) -> Option<Source> {
    let spec = claim.spec.as_ref()?;
    let own = claim.metadata.namespace.as_deref().unwrap_or_default();
    let (group, kind, name, namespace) = match (&spec.data_source_ref, &spec.data_source) {
        (Some(one), _) => (&one.api_group, &one.kind, &one.name, one.namespace.as_deref()),
        (None, Some(one)) => (&one.api_group, &one.kind, &one.name, None),
        (None, None) => return None,
    };
    let kind = match (group.as_deref().unwrap_or_default(), kind.as_str()) {
        ("", "PersistentVolumeClaim") => SourceKind::Claim,
        (snapshot::GROUP, "VolumeSnapshot") => SourceKind::Snapshot,
        (group, kind) => SourceKind::Other { group: group.to_owned(), kind: kind.to_owned() },
    };
    let namespace = namespace.filter(|namespace| !namespace.is_empty()).unwrap_or(own);
    Some(Source { kind, namespace: namespace.to_owned(), name: name.clone() })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn the_reference_counts_and_may_name_another_namespace() {
        let of = |spec| {
            let claim = json!({"metadata": {"name": "new", "namespace": "shop"}, "spec": spec});
            super::of(&serde_json::from_value(claim).expect("a claim")).map(|source| source.to_string())
        };
        let snapshot = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
        assert_eq!(of(json!({})), None);
        assert_eq!(of(json!({"dataSource": snapshot})).as_deref(), Some("VolumeSnapshot shop/s"));
        let clone = json!({"kind": "PersistentVolumeClaim", "name": "c"});
        assert_eq!(of(json!({"dataSource": clone})).as_deref(), Some("PersistentVolumeClaim shop/c"));
        let mut elsewhere = snapshot;
        elsewhere["namespace"] = json!("gold");
        assert_eq!(of(json!({"dataSourceRef": elsewhere})).as_deref(), Some("VolumeSnapshot gold/s"));
        let other = json!({"apiGroup": "example.com", "kind": "Backup", "name": "b"});
        assert_eq!(of(json!({"dataSourceRef": other})).as_deref(), Some("Backup shop/b"));
    }
}
