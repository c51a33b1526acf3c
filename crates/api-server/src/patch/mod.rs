//! Patches: JSON Patch, merge patch, strategic merge patch.

mod json;
mod merge;

use serde_json::Value;

use crate::body::{self, Payload};
use crate::error::ApiError;
use crate::kinds::Kind;
use crate::strategic_merge;

/// A decoded patch.
#[derive(Debug)]
pub(crate) enum Patch {
    /// RFC 6902.
    Json(Vec<json::Operation>),
    /// RFC 7386.
    Merge(Value),
    /// Kubernetes' own: lists merge by key.
    Strategic(Value),
}

const BUILTIN: &str =
    "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json";
const CUSTOM: &str = "application/json-patch+json, application/merge-patch+json";

/// Operations of one JSON patch that are accepted; Kubernetes' number.
const MAX_OPERATIONS: usize = 10_000;

impl Patch {
    /// The patch, and the fields that occur twice in it.
    pub(crate) fn parse(payload: &Payload, custom: bool) -> Result<(Self, Vec<String>), ApiError> {
        let accepted = if custom { CUSTOM } else { BUILTIN };
        match payload.media_type.as_str() {
            "application/json-patch+json" => {
                let patch: Option<Vec<json::Operation>> = serde_json::from_slice(&payload.bytes)
                    .map_err(|error| ApiError::BadRequest(format!("error decoding patch: {error}")))?;
                let patch = patch.unwrap_or_default();
                if patch.len() > MAX_OPERATIONS {
                    return Err(ApiError::TooManyOperations { most: MAX_OPERATIONS, got: patch.len() });
                }
                Ok((Self::Json(patch), Vec::new()))
            }
            "application/merge-patch+json" => {
                let (patch, duplicates) = object(&payload.bytes)?;
                Ok((Self::Merge(patch), duplicates))
            }
            "application/strategic-merge-patch+json" if !custom => {
                let (patch, duplicates) = object(&payload.bytes)?;
                Ok((Self::Strategic(patch), duplicates))
            }
            "application/apply-patch+yaml" | "application/apply-patch+cbor" => {
                Err(ApiError::UnsupportedMediaType(format!(
                    "server-side apply is not supported by this server, use client-side apply or one of: {accepted}"
                )))
            }
            _ => Err(body::unsupported(accepted)),
        }
    }

    /// The object with the patch applied.
    pub(crate) fn apply(&self, kind: &Kind, object: &Value) -> Result<Value, ApiError> {
        let mut patched = object.clone();
        match self {
            Self::Json(patch) => json::apply(&mut patched, patch)
                .map_err(|error| ApiError::Unprocessable(error.to_string()))?,
            Self::Merge(patch) => merge::apply(&mut patched, patch),
            Self::Strategic(patch) => {
                patched = strategic_merge::apply(kind, object, patch)
                    .map_err(|error| ApiError::BadRequest(error.to_string()))?;
            }
        }
        Ok(patched)
    }
}

fn object(bytes: &[u8]) -> Result<(Value, Vec<String>), ApiError> {
    let (patch, duplicates) = body::json(bytes)?;
    if !patch.is_object() {
        return Err(ApiError::BadRequest("error decoding patch: it is not a JSON object".into()));
    }
    Ok((patch, duplicates))
}
