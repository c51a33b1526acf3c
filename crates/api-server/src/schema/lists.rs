//! Which lists of built-in types are maps or sets, and how a strategic merge patch treats them: facts that the types'
//! JSON schemas lack.

/// How the items of a list are told apart.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum ListType {
    #[default]
    Atomic,
    Set,
    Map(Vec<String>),
}

/// How a strategic merge patch changes a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Patch {
    /// Scalars are added if absent.
    Merge,
    /// Items with the same value of this key are merged.
    MergeBy(&'static str),
    /// The same, and the item keeps only those fields that `$retainKeys` names.
    RetainKeys(&'static str),
}

impl Patch {
    /// The merge key, unless the list is of scalars.
    pub(crate) fn key(self) -> Option<&'static str> {
        match self {
            Patch::Merge => None,
            Patch::MergeBy(key) | Patch::RetainKeys(key) => Some(key),
        }
    }

    /// `x-kubernetes-patch-strategy`.
    pub(crate) fn strategy(self) -> &'static str {
        match self {
            Patch::Merge | Patch::MergeBy(_) => "merge",
            Patch::RetainKeys(_) => "merge,retainKeys",
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Keys {
    /// Not keyed, though patches may merge it.
    None,
    Set,
    By(&'static [&'static str]),
}

/// What is known of one list field beyond its JSON schema.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ListRules {
    keys: Keys,
    pub(crate) patch: Option<Patch>,
}

impl ListRules {
    pub(crate) fn list(&self) -> ListType {
        match self.keys {
            Keys::None => ListType::Atomic,
            Keys::Set => ListType::Set,
            Keys::By(keys) => ListType::Map(keys.iter().map(|&key| key.to_owned()).collect()),
        }
    }
}

/// The rules of a field of a Go type, if it is not an atomic list.
pub(crate) fn rules(type_name: &str, field: &str) -> Option<ListRules> {
    let row = LISTS.binary_search_by(|(ty, name, _)| (*ty, *name).cmp(&(type_name, field))).ok()?;
    Some(LISTS[row].2)
}

/// Types that a server-side apply treats as one value.
pub(crate) const ATOMIC_STRUCTS: &[&str] = &[
    "ConfigMapKeySelector",
    "FileKeySelector",
    "LabelSelector",
    "LocalObjectReference",
    "NodeSelector",
    "NodeSelectorTerm",
    "ObjectFieldSelector",
    "ObjectReference",
    "OwnerReference",
    "ResourceFieldSelector",
    "SecretKeySelector",
    "SecretReference",
    "TopologySelectorTerm",
    "TypedLocalObjectReference",
];

/// By type and field, sorted.
static LISTS: &[(&str, &str, ListRules)] = &[
    ("CSIDriverSpec", "volumeLifecycleModes", ListRules { keys: Keys::Set, patch: None }),
    ("CSINodeSpec", "drivers", ListRules { keys: Keys::By(&["name"]), patch: Some(Patch::MergeBy("name")) }),
    ("Container", "env", ListRules { keys: Keys::By(&["name"]), patch: Some(Patch::MergeBy("name")) }),
    (
        "Container",
        "ports",
        ListRules {
            keys: Keys::By(&["containerPort", "protocol"]),
            patch: Some(Patch::MergeBy("containerPort")),
        },
    ),
    (
        "Container",
        "volumeDevices",
        ListRules { keys: Keys::By(&["devicePath"]), patch: Some(Patch::MergeBy("devicePath")) },
    ),
    (
        "Container",
        "volumeMounts",
        ListRules { keys: Keys::By(&["mountPath"]), patch: Some(Patch::MergeBy("mountPath")) },
    ),
    ("ContainerRestartRuleOnExitCodes", "values", ListRules { keys: Keys::Set, patch: None }),
    (
        "ContainerStatus",
        "allocatedResourcesStatus",
        ListRules { keys: Keys::By(&["name"]), patch: Some(Patch::MergeBy("name")) },
    ),
    (
        "ContainerStatus",
        "volumeMounts",
        ListRules { keys: Keys::By(&["mountPath"]), patch: Some(Patch::MergeBy("mountPath")) },
    ),
    ("CustomResourceDefinitionStatus", "conditions", ListRules { keys: Keys::By(&["type"]), patch: None }),
    (
        "EphemeralContainer",
        "env",
        ListRules { keys: Keys::By(&["name"]), patch: Some(Patch::MergeBy("name")) },
    ),
    (
        "EphemeralContainer",
        "ports",
        ListRules {
            keys: Keys::By(&["containerPort", "protocol"]),
            patch: Some(Patch::MergeBy("containerPort")),
        },
    ),
    (
        "EphemeralContainer",
        "volumeDevices",
        ListRules { keys: Keys::By(&["devicePath"]), patch: Some(Patch::MergeBy("devicePath")) },
    ),
    (
        "EphemeralContainer",
        "volumeMounts",
        ListRules { keys: Keys::By(&["mountPath"]), patch: Some(Patch::MergeBy("mountPath")) },
    ),
    (
        "JSONSchemaProps",
        "x-kubernetes-validations",
        ListRules { keys: Keys::By(&["rule"]), patch: Some(Patch::MergeBy("rule")) },
    ),
    (
        "NamespaceStatus",
        "conditions",
        ListRules { keys: Keys::By(&["type"]), patch: Some(Patch::MergeBy("type")) },
    ),
    ("NodeAllocatableResourceClaimStatus", "containers", ListRules { keys: Keys::Set, patch: None }),
    ("NodeSpec", "podCIDRs", ListRules { keys: Keys::Set, patch: Some(Patch::Merge) }),
    ("NodeStatus", "addresses", ListRules { keys: Keys::By(&["type"]), patch: Some(Patch::MergeBy("type")) }),
    (
        "NodeStatus",
        "conditions",
        ListRules { keys: Keys::By(&["type"]), patch: Some(Patch::MergeBy("type")) },
    ),
    ("ObjectMeta", "finalizers", ListRules { keys: Keys::Set, patch: Some(Patch::Merge) }),
    (
        "ObjectMeta",
        "ownerReferences",
        ListRules { keys: Keys::By(&["uid"]), patch: Some(Patch::MergeBy("uid")) },
    ),
    (
        "PersistentVolumeClaimStatus",
        "conditions",
        ListRules { keys: Keys::By(&["type"]), patch: Some(Patch::MergeBy("type")) },
    ),
    ("PodSpec", "containers", ListRules { keys: Keys::By(&["name"]), patch: Some(Patch::MergeBy("name")) }),
    (
        "PodSpec",
        "ephemeralContainers",
        ListRules { keys: Keys::By(&["name"]), patch: Some(Patch::MergeBy("name")) },
    ),
    ("PodSpec", "hostAliases", ListRules { keys: Keys::By(&["ip"]), patch: Some(Patch::MergeBy("ip")) }),
    (
        "PodSpec",
        "imagePullSecrets",
        ListRules { keys: Keys::By(&["name"]), patch: Some(Patch::MergeBy("name")) },
    ),
    (
        "PodSpec",
        "initContainers",
        ListRules { keys: Keys::By(&["name"]), patch: Some(Patch::MergeBy("name")) },
    ),
    (
        "PodSpec",
        "resourceClaims",
        ListRules { keys: Keys::By(&["name"]), patch: Some(Patch::RetainKeys("name")) },
    ),
    (
        "PodSpec",
        "schedulingGates",
        ListRules { keys: Keys::By(&["name"]), patch: Some(Patch::MergeBy("name")) },
    ),
    (
        "PodSpec",
        "topologySpreadConstraints",
        ListRules {
            keys: Keys::By(&["topologyKey", "whenUnsatisfiable"]),
            patch: Some(Patch::MergeBy("topologyKey")),
        },
    ),
    ("PodSpec", "volumes", ListRules { keys: Keys::By(&["name"]), patch: Some(Patch::RetainKeys("name")) }),
    ("PodStatus", "conditions", ListRules { keys: Keys::By(&["type"]), patch: Some(Patch::MergeBy("type")) }),
    ("PodStatus", "hostIPs", ListRules { keys: Keys::None, patch: Some(Patch::MergeBy("ip")) }),
    ("PodStatus", "podIPs", ListRules { keys: Keys::By(&["ip"]), patch: Some(Patch::MergeBy("ip")) }),
    (
        "PodStatus",
        "resourceClaimStatuses",
        ListRules { keys: Keys::By(&["name"]), patch: Some(Patch::RetainKeys("name")) },
    ),
    ("ResourceRequirements", "claims", ListRules { keys: Keys::By(&["name"]), patch: None }),
    ("ResourceStatus", "resources", ListRules { keys: Keys::By(&["resourceID"]), patch: None }),
    (
        "ServiceAccount",
        "secrets",
        ListRules { keys: Keys::By(&["name"]), patch: Some(Patch::MergeBy("name")) },
    ),
    (
        "ServiceSpec",
        "ports",
        ListRules { keys: Keys::By(&["port", "protocol"]), patch: Some(Patch::MergeBy("port")) },
    ),
    (
        "ServiceStatus",
        "conditions",
        ListRules { keys: Keys::By(&["type"]), patch: Some(Patch::MergeBy("type")) },
    ),
    (
        "StatefulSetStatus",
        "conditions",
        ListRules { keys: Keys::By(&["type"]), patch: Some(Patch::MergeBy("type")) },
    ),
];

#[cfg(test)]
#[test]
fn the_table_is_sorted() {
    assert!(LISTS.is_sorted_by_key(|(ty, field, _)| (*ty, *field)));
}
