//! Which representation a client wants, from its `Accept` header.

use http::{HeaderMap, header};

use crate::error::ApiError;

/// How objects are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Shape {
    /// As they are.
    #[default]
    Plain,
    /// As a `meta.k8s.io/v1` Table.
    Table,
    /// Their metadata only.
    Metadata,
    /// Discovery only: `APIGroupDiscoveryList`, with its version.
    Aggregated(&'static str),
}

/// The first acceptable shape; only JSON is spoken.
pub(crate) fn shape(headers: &HeaderMap) -> Result<Shape, ApiError> {
    let accept: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    if accept.iter().all(|value| value.trim().is_empty()) {
        return Ok(Shape::Plain);
    }
    accept.iter().flat_map(|value| value.split(',')).find_map(media_range).ok_or_else(|| {
        ApiError::NotAcceptable("only the following media types are accepted: application/json".into())
    })
}

fn media_range(range: &str) -> Option<Shape> {
    let mut parts = range.split(';').map(str::trim);
    let media = parts.next()?.to_ascii_lowercase();
    if !matches!(media.as_str(), "application/json" | "application/*" | "*/*") {
        return None;
    }
    let (mut group, mut version, mut kind) = ("", "", "");
    for (key, value) in parts.filter_map(|part| part.split_once('=')) {
        match key.trim() {
            "g" => group = value,
            "v" => version = value,
            "as" => kind = value,
            _ => {}
        }
    }
    match (group, version, kind) {
        (_, _, "") => Some(Shape::Plain),
        ("meta.k8s.io", "v1", "Table") => Some(Shape::Table),
        ("meta.k8s.io", "v1", "PartialObjectMetadata" | "PartialObjectMetadataList") => Some(Shape::Metadata),
        ("apidiscovery.k8s.io", "v2", "APIGroupDiscoveryList") => Some(Shape::Aggregated("v2")),
        ("apidiscovery.k8s.io", "v2beta1", "APIGroupDiscoveryList") => Some(Shape::Aggregated("v2beta1")),
        _ => None,
    }
}

/// What an OpenAPI document is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OpenApiForm {
    /// Both generations.
    Json,
    /// The older generation only.
    Protobuf,
}

/// The media type of the older generation in protobuf. Clients ask for it by its former name, which has an `@`, too;
/// an answer never carries that one, because no parser of media types takes it.
pub(crate) const OPENAPI_PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";

/// The first acceptable form of an OpenAPI document.
pub(crate) fn openapi(headers: &HeaderMap, has_protobuf: bool) -> Result<OpenApiForm, ApiError> {
    const FORMER: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
    let accept: Vec<&str> =
        headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok()).collect();
    if accept.iter().all(|value| value.trim().is_empty()) {
        return Ok(OpenApiForm::Json);
    }
    let form = |range: &str| match range
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase()
        .as_str()
    {
        "application/json" | "application/*" | "*/*" => Some(OpenApiForm::Json),
        OPENAPI_PROTOBUF | FORMER if has_protobuf => Some(OpenApiForm::Protobuf),
        _ => None,
    };
    accept.iter().flat_map(|value| value.split(',')).find_map(form).ok_or_else(|| {
        let protobuf = if has_protobuf { format!(", {OPENAPI_PROTOBUF}") } else { String::new() };
        ApiError::NotAcceptable(format!(
            "only the following media types are accepted: application/json{protobuf}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(accept: &str) -> Option<Shape> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, accept.parse().unwrap());
        shape(&headers).ok()
    }

    #[test]
    fn the_first_known_range_wins() {
        for (accept, expected) in [
            ("application/json", Some(Shape::Plain)),
            ("*/*", Some(Shape::Plain)),
            ("application/json;as=Table;v=v1;g=meta.k8s.io,application/json", Some(Shape::Table)),
            ("application/json;as=Table;v=v1beta1;g=meta.k8s.io,application/json", Some(Shape::Plain)),
            ("application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1", Some(Shape::Metadata)),
            (
                "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json",
                Some(Shape::Aggregated("v2")),
            ),
            ("application/vnd.kubernetes.protobuf,application/json", Some(Shape::Plain)),
            ("application/vnd.kubernetes.protobuf", None),
            ("", Some(Shape::Plain)),
        ] {
            assert_eq!(of(accept), expected, "{accept}");
        }
    }

    #[test]
    fn an_openapi_document_has_media_types_of_its_own() {
        const FORMER: &str = "application/com.github.proto-openapi.spec.v2@v1.0+protobuf";
        for (accept, v2, v3) in [
            ("", Some(OpenApiForm::Json), Some(OpenApiForm::Json)),
            ("application/json, */*", Some(OpenApiForm::Json), Some(OpenApiForm::Json)),
            (FORMER, Some(OpenApiForm::Protobuf), None),
            (OPENAPI_PROTOBUF, Some(OpenApiForm::Protobuf), None),
            ("application/com.github.proto-openapi.spec.v3.v1.0+protobuf", None, None),
            ("text/html", None, None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            assert_eq!((openapi(&headers, true).ok(), openapi(&headers, false).ok()), (v2, v3), "{accept}");
        }
    }
}
