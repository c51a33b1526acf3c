//! What a kind's file gives: its defaults and its rules.

use serde_json::Value;

use super::{
    Kind, config_map, csi_driver, csi_node, custom_resource_definition, event, lease, metadata::NameRule,
    namespace, node, persistent_volume, persistent_volume_claim, pod, secret, service, snapshot,
    stateful_set, storage_capacity, storage_class, violations::Violations, volume_attachment,
    volume_attributes_class,
};

/// The defaults and rules of one kind, metadata aside.
pub(super) struct Rules {
    /// What its objects may be named.
    pub(super) name: NameRule,
    /// Fills in defaults; the old object is there on updates.
    pub(super) default: fn(&mut Value, Option<&Value>),
    /// What every object must keep to.
    pub(super) check: fn(&Value, &mut Violations),
    /// What a change from an old to a new object must keep to.
    pub(super) check_change: fn(new: &Value, old: &Value, &mut Violations),
}

impl Rules {
    /// A kind without rules of its own.
    pub(super) const NONE: Rules =
        Rules { name: NameRule::Subdomain, default: |_, _| {}, check: |_, _| {}, check_change: |_, _, _| {} };
}

/// The rules of a kind; custom kinds have only a schema, except those that everyone knows.
pub(super) fn of(kind: &Kind) -> &'static Rules {
    if kind.is_custom() {
        return snapshot::rules(&kind.group, &kind.kind).unwrap_or(&Rules::NONE);
    }
    match &*kind.kind {
        "ConfigMap" => &config_map::RULES,
        "ControllerRevision" => &stateful_set::REVISION_RULES,
        "CSIDriver" => &csi_driver::RULES,
        "CSINode" => &csi_node::RULES,
        "CSIStorageCapacity" => &storage_capacity::RULES,
        "CustomResourceDefinition" => &custom_resource_definition::RULES,
        "Event" => &event::RULES,
        "Lease" => &lease::RULES,
        "Namespace" => &namespace::RULES,
        "Node" => &node::RULES,
        "PersistentVolume" => &persistent_volume::RULES,
        "PersistentVolumeClaim" => &persistent_volume_claim::RULES,
        "Pod" => &pod::RULES,
        "Secret" => &secret::RULES,
        "Service" => &service::RULES,
        "StatefulSet" => &stateful_set::RULES,
        "StorageClass" => &storage_class::RULES,
        "VolumeAttachment" => &volume_attachment::RULES,
        "VolumeAttributesClass" => &volume_attributes_class::RULES,
        _ => &Rules::NONE,
    }
}
