//! OpenAPI documents of what is served, rendered when asked for.
//!
//! kubectl reads three things from them: field descriptions (`explain`), how patches merge lists (`apply`), and that
//! writes take `fieldValidation` and `dryRun`.

mod paths;
mod protobuf;
mod types;

use std::collections::BTreeMap;

use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::{kinds::Kind, schema::Schema};

/// A served kind; `schema` is absent for built-in kinds.
#[derive(Debug, Clone, Copy)]
pub struct Described<'a> {
    /// The kind.
    pub kind: &'a Kind,
    /// A custom kind's schema.
    pub schema: Option<&'a Schema>,
}

/// `/openapi/v3`: where each group version's document is. The URLs carry a hash that changes with the document, so
/// that clients may keep what they fetched.
pub fn v3_index(kinds: &[Described<'_>]) -> Value {
    let mut hashes: Map<String, Value> = Map::new();
    for described in kinds {
        let path = version_path(&described.kind.group, &described.kind.version);
        if hashes.contains_key(&path) {
            continue;
        }
        let hash = version_hash(&described.kind.group, &described.kind.version, kinds);
        hashes.insert(path.clone(), json!({"serverRelativeURL": format!("/openapi/v3/{path}?hash={hash}")}));
    }
    json!({"paths": hashes})
}

/// `/openapi/v3/apis/GROUP/VERSION` (`/openapi/v3/api/v1`): the document of the kinds of one group version.
pub fn v3_document(group: &str, version: &str, kinds: &[Described<'_>]) -> Value {
    let (mut schemas, mut operations) = (Map::new(), Map::new());
    for described in of_version(group, version, kinds) {
        types::add(described, types::Dialect::V3, &mut schemas);
        paths::add_v3(described.kind, &mut operations);
    }
    json!({
        "openapi": "3.0.0",
        "info": info(),
        "paths": operations,
        "components": {"schemas": schemas},
    })
}

/// `/openapi/v2`: one document of everything.
pub fn v2(kinds: &[Described<'_>]) -> Value {
    let (mut definitions, mut operations) = (Map::new(), Map::new());
    for described in kinds {
        types::add(described, types::Dialect::V2, &mut definitions);
        paths::add_v2(described.kind, &mut operations);
    }
    json!({
        "swagger": "2.0",
        "info": info(),
        "paths": operations,
        "definitions": definitions,
    })
}

/// `/openapi/v2` in protobuf, which is the only form in which kubectl reads it.
pub fn v2_protobuf(kinds: &[Described<'_>]) -> Vec<u8> {
    protobuf::encode(&v2(kinds))
}

fn info() -> Value {
    json!({"title": "Orlop", "version": env!("CARGO_PKG_VERSION")})
}

/// `api/v1` or `apis/GROUP/VERSION`.
fn version_path(group: &str, version: &str) -> String {
    if group.is_empty() { format!("api/{version}") } else { format!("apis/{group}/{version}") }
}

fn of_version<'a>(
    group: &'a str,
    version: &'a str,
    kinds: &'a [Described<'a>],
) -> impl Iterator<Item = &'a Described<'a>> {
    kinds.iter().filter(move |described| described.kind.group == group && described.kind.version == version)
}

/// A hash that changes with the document.
fn version_hash(group: &str, version: &str, kinds: &[Described<'_>]) -> String {
    let mut hash = Sha256::new();
    hash.update(builtin_hash(group, version, kinds));
    for described in of_version(group, version, kinds) {
        if let Some(schema) = described.schema.and_then(Schema::custom) {
            hash.update(format!("{:?}{schema}", described.kind));
        }
    }
    hash.finalize().iter().map(|byte| format!("{byte:02X}")).collect()
}

/// The hash of what is built in, rendered for it once.
fn builtin_hash(group: &str, version: &str, kinds: &[Described<'_>]) -> [u8; 32] {
    static HASHES: Mutex<BTreeMap<(String, String), [u8; 32]>> = Mutex::new(BTreeMap::new());
    let builtin: Vec<Described<'_>> =
        of_version(group, version, kinds).filter(|described| described.schema.is_none()).copied().collect();
    if builtin.is_empty() {
        // Custom types are rendered by the same code, which the version stands for.
        return Sha256::digest(env!("CARGO_PKG_VERSION")).into();
    }
    *HASHES
        .lock()
        .entry((group.to_owned(), version.to_owned()))
        .or_insert_with(|| Sha256::digest(v3_document(group, version, &builtin).to_string()).into())
}

#[cfg(test)]
mod tests;
