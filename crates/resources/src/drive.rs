use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A drive of a node, for people to see. The drive itself is the truth: this object is a copy that the node's driver
/// writes, and writes again when it is gone. Its name is the drive's id.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[kube(
    group = "orlop.dev",
    version = "v1alpha1",
    kind = "Drive",
    plural = "drives",
    singular = "drive",
    status = "DriveStatus",
    derive = "PartialEq",
    printcolumn = r#"{"name":"Node", "type":"string", "jsonPath":".spec.node"}"#,
    printcolumn = r#"{"name":"Path", "type":"string", "jsonPath":".spec.path"}"#,
    printcolumn = r#"{"name":"Backend", "type":"string", "jsonPath":".spec.backend"}"#,
    printcolumn = r#"{"name":"Capacity", "type":"string", "jsonPath":".status.capacity"}"#,
    printcolumn = r#"{"name":"Allocated", "type":"string", "jsonPath":".status.allocated"}"#,
    printcolumn = r#"{"name":"Free", "type":"string", "jsonPath":".status.free"}"#,
    printcolumn = r#"{"name":"Volumes", "type":"integer", "jsonPath":".status.volumes"}"#,
    printcolumn = r#"{"name":"State", "type":"string", "jsonPath":".status.state"}"#,
    printcolumn = r#"{"name":"Reason", "type":"string", "jsonPath":".status.reason"}"#,
    printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#
)]
#[serde(rename_all = "camelCase")]
pub struct DriveSpec {
    /// The node that the drive is in.
    pub node: String,
    /// The device on that node, as it is called now.
    pub path: String,
    /// How volumes are kept on it: xfs, btrfs, lvm or lvm-thin.
    pub backend: String,
}

/// What the driver last saw.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DriveStatus {
    /// Whether the drive serves volumes.
    pub state: DriveState,
    /// Why it does not, or what is wrong with it all the same, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The bytes that volumes can have in sum.
    pub capacity: Quantity,
    /// The bytes that the sizes of its volumes add up to.
    pub allocated: Quantity,
    /// The bytes that new volumes can have in sum.
    pub free: Quantity,
    /// How many volumes lie on it.
    #[serde(default)]
    pub volumes: i32,
}

/// Whether a drive serves volumes.
#[derive(Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq, JsonSchema)]
pub enum DriveState {
    /// It does.
    Ready,
    /// It can't; the reason says why.
    Failed,
}

#[cfg(test)]
mod tests {
    use kube::CustomResourceExt;

    use super::*;

    #[test]
    fn the_definition_is_cluster_scoped_and_its_schema_structural() {
        let definition = serde_json::to_value(Drive::crd()).expect("JSON");
        assert_eq!(definition["metadata"]["name"], "drives.orlop.dev");
        assert_eq!(definition["spec"]["scope"], "Cluster");
        let version = &definition["spec"]["versions"][0];
        assert_eq!(version["subresources"]["status"], serde_json::json!({}));
        let columns = version["additionalPrinterColumns"].as_array().expect("columns");
        let names: Vec<_> = columns.iter().filter_map(|column| column["name"].as_str()).collect();
        assert_eq!(
            names,
            ["Node", "Path", "Backend", "Capacity", "Allocated", "Free", "Volumes", "State", "Reason", "Age"]
        );
        let schema = &version["schema"]["openAPIV3Schema"]["properties"];
        assert_eq!(schema["spec"]["required"], serde_json::json!(["backend", "node", "path"]));
        let state = &schema["status"]["properties"]["state"];
        assert_eq!(state["type"], "string");
        assert_eq!(state["enum"], serde_json::json!(["Ready", "Failed"]));
        assert_eq!(schema["status"]["properties"]["free"]["x-kubernetes-int-or-string"], true);
    }
}
