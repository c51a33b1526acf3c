//! What is served now: the built-in kinds and the kinds of established CustomResourceDefinitions.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use object_store::Key;
use parking_lot::RwLock;
use serde_json::Value;

use crate::kinds::row::{Row, ScalePaths};
use crate::kinds::{BUILTIN, Kind};
use crate::schema::{Schema, TypeSchema};

/// One served version of a kind.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) kind: Kind,
    /// What objects carry as `apiVersion`.
    pub(crate) api_version: String,
    /// Under what the store keeps the objects; the same for all versions of a kind.
    pub(crate) resource: Arc<str>,
    /// Set for custom kinds.
    pub(crate) custom: Option<Custom>,
}

/// What a CustomResourceDefinition says about one version of its kind.
#[derive(Debug)]
pub(crate) struct Custom {
    pub(crate) schema: Schema,
    /// `additionalPrinterColumns`.
    pub(crate) columns: Option<Value>,
    /// `selectableFields`, as JSON paths.
    pub(crate) selectable: Vec<String>,
    /// `subresources.scale`.
    pub(crate) scale: Option<ScalePaths>,
}

impl Served {
    pub(crate) fn new(kind: Kind, custom: Option<Custom>) -> Self {
        Self { api_version: kind.api_version(), resource: kind.resource().into(), kind, custom }
    }

    /// Where the store keeps the object `name`.
    pub(crate) fn key(&self, namespace: &str, name: &str) -> Key {
        Key::new(self.resource.clone(), namespace, name)
    }

    /// The structural schema, if there is one.
    pub(crate) fn schema(&self) -> Option<&Schema> {
        match &self.custom {
            Some(custom) => Some(&custom.schema),
            None => self.kind.row.schema.map(TypeSchema::get),
        }
    }

    /// What the `scale` subresource is about, if there is one.
    pub(crate) fn scale(&self) -> Option<&ScalePaths> {
        match &self.custom {
            Some(custom) => custom.scale.as_ref(),
            None => self.kind.row.scale,
        }
    }
}

/// All served kinds at one moment.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    /// By group, version and plural.
    by_path: HashMap<(String, String, String), Arc<Served>>,
    /// In the order of discovery: core first, then groups by name, newest version first.
    pub(crate) all: Vec<Arc<Served>>,
    /// `/openapi/v2` in protobuf, rendered when first asked for: every `kubectl apply` of a list asks.
    pub(crate) openapi_protobuf: OnceLock<Bytes>,
}

impl Snapshot {
    fn with(custom: &BTreeMap<String, Definition>) -> Self {
        let builtin = BUILTIN.iter().map(|kind| Arc::new(Served::new(kind.clone(), None)));
        let mut all: Vec<Arc<Served>> = builtin
            .chain(custom.values().flat_map(|definition| definition.versions.iter().cloned()))
            .collect();
        all.sort_by(|a, b| {
            let order = |served: &Served| (served.kind.group.to_string(), served.kind.plural.to_string());
            (&a.kind.group, version_rank(&b.kind.version))
                .cmp(&(&b.kind.group, version_rank(&a.kind.version)))
                .then_with(|| order(a).cmp(&order(b)))
        });
        let by_path = all
            .iter()
            .map(|served| {
                let kind = &served.kind;
                let path = (kind.group.to_string(), kind.version.to_string(), kind.plural.to_string());
                (path, served.clone())
            })
            .collect();
        Self { by_path, all, openapi_protobuf: OnceLock::new() }
    }

    pub(crate) fn find(&self, group: &str, version: &str, plural: &str) -> Option<Arc<Served>> {
        self.by_path.get(&(group.to_owned(), version.to_owned(), plural.to_owned())).cloned()
    }

    /// The built-in kind of this row.
    pub(crate) fn of(&self, row: &'static Row) -> Option<Arc<Served>> {
        self.all.iter().find(|served| std::ptr::eq(served.kind.row, row)).cloned()
    }

    /// Whether another kind of the group has this kind, or a built-in one this plural.
    pub(crate) fn is_taken(&self, group: &str, plural: &str, kind: &str) -> bool {
        self.all.iter().filter(|served| served.kind.group == group).any(|served| {
            let own = served.custom.is_some() && served.kind.plural == plural;
            !own && (served.kind.kind == kind || served.kind.plural == plural)
        })
    }

    /// Groups with their versions, in the order of discovery.
    pub(crate) fn groups(&self) -> Vec<(String, Vec<String>)> {
        let mut groups: Vec<(String, Vec<String>)> = Vec::new();
        for served in &self.all {
            let (group, version) = (served.kind.group.to_string(), served.kind.version.to_string());
            // All are in the order of their groups.
            match groups.last_mut().filter(|(known, _)| *known == group) {
                Some((_, versions)) if versions.contains(&version) => {}
                Some((_, versions)) => versions.push(version),
                None => groups.push((group, vec![version])),
            }
        }
        groups
    }

    /// The kinds of one group version.
    pub(crate) fn of_version(&self, group: &str, version: &str) -> Vec<Arc<Served>> {
        let wanted = |served: &&Arc<Served>| served.kind.group == group && served.kind.version == version;
        self.all.iter().filter(wanted).cloned().collect()
    }
}

/// Kubernetes' order of versions: stable before beta before alpha, then by number; others last.
pub(crate) fn version_rank(version: &str) -> (u8, u32, u32) {
    let number = |text: &str| text.parse::<u32>().ok();
    let Some(rest) = version.strip_prefix('v') else { return (0, 0, 0) };
    for (rank, word) in [(2, "beta"), (1, "alpha")] {
        if let Some((major, minor)) = rest.split_once(word) {
            return match (number(major), number(minor)) {
                (Some(major), Some(minor)) => (rank, major, minor),
                _ => (0, 0, 0),
            };
        }
    }
    number(rest).map_or((0, 0, 0), |major| (3, major, 0))
}

/// The served versions of one CustomResourceDefinition, as of one of its revisions.
#[derive(Debug, Default)]
pub(crate) struct Definition {
    pub(crate) revision: u64,
    pub(crate) versions: Vec<Arc<Served>>,
}

/// The kinds that are served; changed by writes of CustomResourceDefinitions only.
#[derive(Debug)]
pub(crate) struct Catalog {
    state: RwLock<(BTreeMap<String, Definition>, Arc<Snapshot>)>,
}

impl Catalog {
    pub(crate) fn new() -> Self {
        let custom = BTreeMap::new();
        let snapshot = Arc::new(Snapshot::with(&custom));
        Self { state: RwLock::new((custom, snapshot)) }
    }

    pub(crate) fn now(&self) -> Arc<Snapshot> {
        self.state.read().1.clone()
    }

    /// Serves what the definition `name` says at its revision, unless a newer revision was seen.
    pub(crate) fn define(&self, name: &str, definition: Definition) {
        let mut state = self.state.write();
        let (custom, snapshot) = &mut *state;
        if custom.get(name).is_some_and(|known| known.revision >= definition.revision) {
            return;
        }
        custom.insert(name.to_owned(), definition);
        *snapshot = Arc::new(Snapshot::with(custom));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_ranked_as_in_kubernetes() {
        let mut versions = ["v1alpha1", "v2beta1", "foo", "v1", "v2", "v10", "v1beta2"];
        versions.sort_by_key(|version| std::cmp::Reverse(version_rank(version)));
        assert_eq!(versions, ["v10", "v2", "v1", "v2beta1", "v1beta2", "v1alpha1", "foo"]);
    }
}
