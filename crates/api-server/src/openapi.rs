//! OpenAPI documents of what is served.

use serde_json::{Value, json};

use crate::kinds::Kind;
use crate::schema::Schema;

/// A served kind; `schema` is absent for built-in kinds.
#[derive(Debug, Clone, Copy)]
pub struct Described<'a> {
    /// The kind.
    pub kind: &'a Kind,
    /// A custom kind's schema.
    pub schema: Option<&'a Schema>,
}

/// `/openapi/v3`: where each group version's document is.
pub fn v3_index(_kinds: &[Described<'_>]) -> Value {
    json!({"paths": {}})
}

/// `/openapi/v3/apis/GROUP/VERSION` (`/openapi/v3/api/v1`): the document of the kinds of one group version.
pub fn v3_document(_group: &str, _version: &str, _kinds: &[Described<'_>]) -> Value {
    json!({"openapi": "3.0.0", "info": {"title": "Orlop", "version": "unversioned"}, "paths": {}, "components": {"schemas": {}}})
}

/// `/openapi/v2`: one document of everything.
pub fn v2(_kinds: &[Described<'_>]) -> Value {
    json!({"swagger": "2.0", "info": {"title": "Orlop", "version": "unversioned"}, "paths": {}, "definitions": {}})
}
