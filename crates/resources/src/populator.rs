//! VolumePopulators: which kinds of objects claims may be filled from, beside snapshots and claims. Whoever fills such
//! claims registers the kind.

use std::borrow::Cow;

use k8s_openapi::ClusterResourceScope;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceDefinitionNames,
    CustomResourceDefinitionSpec, CustomResourceDefinitionVersion, CustomResourceValidation, JSONSchemaProps,
};
use kube::Resource;
use kube::core::ObjectMeta;
use serde::{Deserialize, Serialize};

use crate::approval::approved;

/// The API group of VolumePopulators.
pub const GROUP: &str = "populator.storage.k8s.io";
const VERSION: &str = "v1beta1";
const KIND: &str = "VolumePopulator";
const PLURAL: &str = "volumepopulators";

/// Says that somebody fills volumes from objects of a kind.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct VolumePopulator {
    /// The API version.
    pub api_version: String,
    /// The kind.
    pub kind: String,
    /// The metadata.
    pub metadata: ObjectMeta,
    /// The kind of the objects.
    pub source_kind: GroupKind,
}

/// A kind of objects, whatever its version.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash)]
pub struct GroupKind {
    /// The API group.
    pub group: String,
    /// The kind.
    pub kind: String,
}

impl VolumePopulator {
    /// The registration of a kind.
    pub fn new(name: &str, source_kind: GroupKind) -> Self {
        Self {
            api_version: Self::api_version(&()).into_owned(),
            kind: KIND.to_owned(),
            metadata: ObjectMeta { name: Some(name.to_owned()), ..ObjectMeta::default() },
            source_kind,
        }
    }
}

impl Resource for VolumePopulator {
    type DynamicType = ();
    type Scope = ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        KIND.into()
    }

    fn group((): &()) -> Cow<'_, str> {
        GROUP.into()
    }

    fn version((): &()) -> Cow<'_, str> {
        VERSION.into()
    }

    fn plural((): &()) -> Cow<'_, str> {
        PLURAL.into()
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// The definition of VolumePopulators.
pub fn definition() -> CustomResourceDefinition {
    let of_type = |name: &str| JSONSchemaProps { type_: Some(name.to_owned()), ..JSONSchemaProps::default() };
    let object = |fields: Vec<(&str, JSONSchemaProps)>, required: &[&str]| JSONSchemaProps {
        properties: Some(fields.into_iter().map(|(name, schema)| (name.to_owned(), schema)).collect()),
        required: Some(required.iter().map(|name| (*name).to_owned()).collect()),
        ..of_type("object")
    };
    let source = object(vec![("group", of_type("string")), ("kind", of_type("string"))], &["group", "kind"]);
    let fields = vec![
        ("apiVersion", of_type("string")),
        ("kind", of_type("string")),
        ("metadata", of_type("object")),
        ("sourceKind", source),
    ];
    let version = CustomResourceDefinitionVersion {
        name: VERSION.to_owned(),
        served: true,
        storage: true,
        schema: Some(CustomResourceValidation { open_api_v3_schema: Some(object(fields, &["sourceKind"])) }),
        additional_printer_columns: Some(vec![CustomResourceColumnDefinition {
            name: "SourceKind".to_owned(),
            type_: "string".to_owned(),
            json_path: ".sourceKind.kind".to_owned(),
            ..CustomResourceColumnDefinition::default()
        }]),
        ..CustomResourceDefinitionVersion::default()
    };
    let definition = CustomResourceDefinition {
        metadata: ObjectMeta { name: Some(format!("{PLURAL}.{GROUP}")), ..ObjectMeta::default() },
        spec: CustomResourceDefinitionSpec {
            group: GROUP.to_owned(),
            names: CustomResourceDefinitionNames {
                kind: KIND.to_owned(),
                list_kind: Some(format!("{KIND}List")),
                plural: PLURAL.to_owned(),
                singular: Some(KIND.to_lowercase()),
                ..CustomResourceDefinitionNames::default()
            },
            scope: "Cluster".to_owned(),
            versions: vec![version],
            ..CustomResourceDefinitionSpec::default()
        },
        status: None,
    };
    approved(definition, "https://github.com/kubernetes/enhancements/pull/2934")
}
