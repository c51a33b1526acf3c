//! A served kind, be it built in or of a CustomResourceDefinition.

use std::borrow::Cow;

use super::row::Row;

type Text = Cow<'static, str>;
type Texts = Cow<'static, [Text]>;

/// One served kind: its names and scope, as discovery shows them, and its row.
#[derive(Debug, Clone)]
pub struct Kind {
    /// API group; empty for the core group.
    pub group: Text,
    /// API version, such as `v1`.
    pub version: Text,
    /// Kind of one object, such as `Pod`.
    pub kind: Text,
    /// Kind of a list of them, such as `PodList`.
    pub list_kind: Text,
    /// Resource name in URLs, such as `pods`.
    pub plural: Text,
    /// Singular name, such as `pod`.
    pub singular: Text,
    /// Short names that kubectl accepts, such as `po`.
    pub short_names: Texts,
    /// Groups of kinds that kubectl accepts, such as `all`.
    pub categories: Texts,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Whether there is a `status` subresource, so that the main resource can't change `.status`.
    pub status: bool,
    /// What is particular to it.
    pub(crate) row: &'static Row,
}

const VERBS: &[&str] = &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// Of kinds that can't be deleted as a collection.
const SINGLE_VERBS: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];

impl Kind {
    /// The built-in kind of a row.
    pub(crate) fn of(row: &'static Row) -> Kind {
        let texts = |texts: &'static [&'static str]| texts.iter().map(|text| Cow::Borrowed(*text)).collect();
        Kind {
            group: row.group.into(),
            version: "v1".into(),
            kind: row.kind.into(),
            list_kind: format!("{}List", row.kind).into(),
            plural: row.plural.into(),
            singular: row.kind.to_lowercase().into(),
            short_names: texts(row.short_names),
            categories: texts(row.categories),
            namespaced: row.namespaced,
            status: row.status,
            row,
        }
    }

    /// `v1` or `storage.k8s.io/v1`: what objects carry as `apiVersion`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_string()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// Verbs as discovery lists them.
    pub fn verbs(&self) -> &'static [&'static str] {
        if self.row.collectable { VERBS } else { SINGLE_VERBS }
    }

    /// Whether there is a `scale` subresource, by which `spec.replicas` is read and set.
    pub fn scales(&self) -> bool {
        self.row.scale.is_some()
    }

    /// Whether this kind comes from a custom resource definition.
    pub fn is_custom(&self) -> bool {
        self.row.schema.is_none()
    }

    /// `pods` or `storageclasses.storage.k8s.io`: the name that the store keeps objects under, and that messages use.
    pub fn resource(&self) -> String {
        if self.group.is_empty() {
            self.plural.to_string()
        } else {
            format!("{}.{}", self.plural, self.group)
        }
    }
}
