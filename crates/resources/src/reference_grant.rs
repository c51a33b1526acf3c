//! Permission to refer to objects of another namespace, as the Gateway API gives it.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::approval::approved;

/// Lets objects of other namespaces refer to objects of its own one.
#[derive(CustomResource, Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1beta1",
    kind = "ReferenceGrant",
    plural = "referencegrants",
    singular = "referencegrant",
    shortname = "refgrant",
    category = "gateway-api",
    namespaced,
    derive = "PartialEq",
    derive = "Default",
    printcolumn = r#"{"name":"Age", "type":"date", "jsonPath":".metadata.creationTimestamp"}"#
)]
pub struct ReferenceGrantSpec {
    /// Who may refer: any of these.
    #[schemars(length(min = 1, max = 16))]
    pub from: Vec<GrantFrom>,
    /// To what: any of these.
    #[schemars(length(min = 1, max = 16))]
    pub to: Vec<GrantTo>,
}

/// Objects of a kind in a namespace.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
pub struct GrantFrom {
    /// Their API group; empty for the core group.
    #[serde(default)]
    pub group: String,
    /// Their kind.
    pub kind: String,
    /// Their namespace.
    pub namespace: String,
}

/// Objects of a kind in the grant's namespace.
#[derive(Serialize, Deserialize, Clone, Debug, Default, PartialEq, JsonSchema)]
pub struct GrantTo {
    /// Their API group; empty for the core group.
    #[serde(default)]
    pub group: String,
    /// Their kind.
    pub kind: String,
    /// The only one that is meant; all of them without a name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// The definition of the kind.
pub fn definition() -> CustomResourceDefinition {
    use kube::CustomResourceExt;
    approved(ReferenceGrant::crd(), "https://github.com/kubernetes-sigs/gateway-api/pull/3328")
}

impl ReferenceGrant {
    /// Whether it lets claims of a namespace refer to an object of its own namespace.
    pub fn permits_claims(&self, from_namespace: &str, group: &str, kind: &str, name: &str) -> bool {
        let from = self.spec.from.iter().any(|from| {
            from.group.is_empty() && from.kind == "PersistentVolumeClaim" && from.namespace == from_namespace
        });
        let to = |to: &GrantTo| {
            let is_named = to.name.as_deref().is_none_or(|only| only.is_empty() || only == name);
            to.group == group && to.kind == kind && is_named
        };
        from && self.spec.to.iter().any(to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_names_who_and_what() {
        let grant = |from: (&str, &str), to_kind: &str, to_name: Option<&str>| {
            let spec = ReferenceGrantSpec {
                from: vec![GrantFrom {
                    group: String::new(),
                    kind: from.0.to_owned(),
                    namespace: from.1.to_owned(),
                }],
                to: vec![GrantTo {
                    group: "g".to_owned(),
                    kind: to_kind.to_owned(),
                    name: to_name.map(str::to_owned),
                }],
            };
            ReferenceGrant::new("grant", spec).permits_claims("dev", "g", "VolumeSnapshot", "gold")
        };
        let claims = ("PersistentVolumeClaim", "dev");
        assert!(grant(claims, "VolumeSnapshot", None));
        assert!(grant(claims, "VolumeSnapshot", Some("gold")));
        assert!(!grant(claims, "VolumeSnapshot", Some("silver")));
        assert!(!grant(claims, "Secret", None));
        assert!(!grant(("PersistentVolumeClaim", "prod"), "VolumeSnapshot", None));
        assert!(!grant(("Pod", "dev"), "VolumeSnapshot", None));
    }
}
