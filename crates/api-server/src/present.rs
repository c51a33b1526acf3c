//! Stored bytes as a client wants to see them: plain, as a Table, or metadata only.

use bytes::Bytes;
use http::StatusCode;
use object_store::Object;
use serde_json::{Value, json};

use crate::answer::{self, Answer, AnswerBody};
use crate::catalog::Served;
use crate::context::Target;
use crate::error::ApiError;
use crate::negotiate::Shape;
use crate::object;
use crate::request::Query;
use crate::table::{self, IncludeObject};

/// How one request wants its objects: the served version, the shape, and what rows of Tables include.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View<'a> {
    pub(crate) served: &'a Served,
    pub(crate) shape: Shape,
    pub(crate) include: IncludeObject,
}

/// `includeObject`.
pub(crate) fn include_object(text: &str) -> Result<IncludeObject, ApiError> {
    match text {
        "None" => Ok(IncludeObject::None),
        "" | "Metadata" => Ok(IncludeObject::Metadata),
        "Object" => Ok(IncludeObject::Object),
        _ => Err(ApiError::BadRequest(format!(
            "includeObject: Invalid value: {text:?}: must be 'Metadata', 'Object', 'None', or empty"
        ))),
    }
}

impl View<'_> {
    /// One object.
    pub(crate) fn one(&self, stored: &Bytes) -> Result<Bytes, ApiError> {
        let plain = object::with_api_version(stored, &self.served.api_version);
        match self.shape {
            Shape::Plain | Shape::Aggregated(_) => Ok(plain),
            Shape::Metadata => metadata_only(&plain),
            Shape::Table => {
                let value = object::decode(&plain)?;
                let revision = object::meta_str(&value, "resourceVersion").to_owned();
                let mut table = self.table(&[value]);
                table["metadata"] = json!({"resourceVersion": revision});
                Ok(table.to_string().into())
            }
        }
    }

    /// A Table of the objects, without list metadata.
    pub(crate) fn table(&self, objects: &[Value]) -> Value {
        let columns = self.served.custom.as_ref().and_then(|custom| custom.columns.as_ref());
        table::render(&self.served.kind, objects, columns, self.include, clock::now())
    }

    /// Everything before the items of a list, given the list's metadata.
    pub(crate) fn list_head(&self, metadata: &Value) -> String {
        let (kind, api_version) = match self.shape {
            Shape::Metadata => ("PartialObjectMetadataList", "meta.k8s.io/v1"),
            _ => (self.served.kind.list_kind.as_ref(), self.served.api_version.as_str()),
        };
        format!(
            "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{metadata},\"items\":[",
            json!(kind),
            json!(api_version)
        )
    }

    /// A whole list as a Table.
    pub(crate) fn list_table(&self, objects: &[Object], metadata: &Value) -> Result<Value, ApiError> {
        let values = objects
            .iter()
            .map(|stored| object::decode(&object::with_api_version(&stored.value, &self.served.api_version)))
            .collect::<Result<Vec<_>, _>>()?;
        let mut table = self.table(&values);
        table["metadata"] = metadata.clone();
        Ok(table)
    }
}

/// An answer to a write: what is stored now, in the client's shape.
pub(crate) fn written(
    target: &Target,
    shape: Shape,
    query: &Query,
    status: StatusCode,
    stored: &Bytes,
    warnings: &[String],
) -> Result<Answer, ApiError> {
    let include = include_object(&query.include_object)?;
    let view = View { served: &target.served, shape, include };
    let mut answer = answer::with_type(status, "application/json", AnswerBody::whole(view.one(stored)?));
    answer::warn(&mut answer, warnings);
    Ok(answer)
}

fn metadata_only(plain: &Bytes) -> Result<Bytes, ApiError> {
    #[derive(serde::Deserialize)]
    struct Stored<'a> {
        #[serde(borrow)]
        metadata: &'a serde_json::value::RawValue,
    }
    let stored: Stored<'_> =
        serde_json::from_slice(plain).map_err(|error| ApiError::Internal(error.to_string()))?;
    let text = format!(
        "{{\"kind\":\"PartialObjectMetadata\",\"apiVersion\":\"meta.k8s.io/v1\",\"metadata\":{}}}",
        stored.metadata.get()
    );
    Ok(text.into())
}
