//! Everything a request can be refused with, and the one place that turns it into a `metav1.Status`.

use http::StatusCode;
use object_store::{ListError, WatchError, WriteError};
use serde_json::{Value, json};

use crate::bounds::{DEEPEST, Exceeds, LARGEST};
use crate::kinds::Kind;
use crate::object::NotJson;
use crate::schema::FieldError;

/// A resource as messages and details name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResourceName {
    pub(crate) group: String,
    pub(crate) plural: String,
}

impl ResourceName {
    pub(crate) fn of(kind: &Kind) -> Self {
        Self { group: kind.group.to_string(), plural: kind.plural.to_string() }
    }
}

impl std::fmt::Display for ResourceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.group.as_str() {
            "" => f.write_str(&self.plural),
            group => write!(f, "{}.{group}", self.plural),
        }
    }
}

/// Why a request was refused; the texts are the ones that Kubernetes clients know.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ApiError {
    #[error("Unauthorized")]
    Unauthorized,
    #[error("{0}")]
    BadRequest(String),
    /// An object that can't be read as what it should be.
    #[error("{kind} in version {version:?} cannot be handled as a {kind}: {why}")]
    Undecodable { kind: String, version: String, why: String },
    /// Kubernetes calls this an internal error.
    #[error("resourceVersion should not be set on objects to be created")]
    VersionOnCreate,
    #[error("the server could not find the requested resource")]
    UnknownPath,
    /// A node has no such page.
    #[error("the server could not find the requested resource: {0}")]
    NoPage(String),
    #[error("the server does not allow this method on the requested resource")]
    MethodNotAllowed,
    #[error("{0} is not served by Orlop: containers can be read with logs, and changed by a new pod")]
    NotServed(&'static str),
    #[error("{resource} \"{name}\" not found")]
    NotFound { resource: ResourceName, name: String },
    #[error("{resource} \"{name}\" already exists")]
    AlreadyExists { resource: ResourceName, name: String },
    #[error("Operation cannot be fulfilled on {resource} \"{name}\": {why}")]
    Conflict { resource: ResourceName, name: String, why: String },
    #[error("{}", forbidden_text(resource, name, why))]
    Forbidden { resource: ResourceName, name: String, why: String, cause: Option<Box<Cause>> },
    #[error("{} \"{name}\" is invalid: {}", group_kind(group, kind), joined(errors))]
    Invalid { group: String, kind: String, name: String, errors: Vec<FieldError> },
    #[error("the server rejected our request due to an error in our request: {0}")]
    Unprocessable(String),
    #[error("{0}")]
    NotAcceptable(String),
    #[error("{0}")]
    UnsupportedMediaType(String),
    #[error("Request entity too large: limit is {0}")]
    RequestTooLarge(usize),
    #[error("Request entity too large: The allowed maximum operations in a JSON patch is {most}, got {got}")]
    TooManyOperations { most: usize, got: usize },
    #[error("{message}")]
    Expired { message: String, fresh_continue: Option<String> },
    #[error("Timeout: Too large resource version: {asked}, current: {current}")]
    TooLargeRevision { asked: u64, current: u64 },
    #[error("{0}")]
    TooManyRequests(String),
    #[error("Timeout: request did not complete within the allotted timeout")]
    Timeout,
    #[error("{0}")]
    Unavailable(String),
    #[error("Internal error occurred: {0}")]
    Internal(String),
    /// Kubernetes' code for an object that is there and can't be read.
    #[error(
        "{kind} {key} is stored but can't be read ({why}): delete it with `kubectl delete --raw {path}` or `orlop delete`"
    )]
    StoreRead { kind: String, key: String, why: String, path: String },
}

/// A cause that is no field error.
#[derive(Debug)]
pub(crate) struct Cause {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
    pub(crate) field: &'static str,
}

fn forbidden_text(resource: &ResourceName, name: &str, why: &str) -> String {
    if name.is_empty() {
        format!("{resource} is forbidden: {why}")
    } else {
        format!("{resource} \"{name}\" is forbidden: {why}")
    }
}

/// `Pod`, `StorageClass.storage.k8s.io`: a kind as Kubernetes names it in its texts.
fn group_kind(group: &str, kind: &str) -> String {
    if group.is_empty() { kind.to_owned() } else { format!("{kind}.{group}") }
}

fn joined(errors: &[FieldError]) -> String {
    let mut texts: Vec<String> =
        errors.iter().map(|error| format!("{}: {}", error.field, error.message)).collect();
    texts.dedup();
    match texts.len() {
        1 => texts.remove(0),
        _ => format!("[{}]", texts.join(", ")),
    }
}

impl ApiError {
    pub(crate) fn not_found(kind: &Kind, name: &str) -> Self {
        Self::NotFound { resource: ResourceName::of(kind), name: name.to_owned() }
    }

    pub(crate) fn already_exists(kind: &Kind, name: &str) -> Self {
        Self::AlreadyExists { resource: ResourceName::of(kind), name: name.to_owned() }
    }

    pub(crate) fn modified(kind: &Kind, name: &str) -> Self {
        let why =
            "the object has been modified; please apply your changes to the latest version and try again";
        Self::conflict(kind, name, why)
    }

    pub(crate) fn conflict(kind: &Kind, name: &str, why: impl Into<String>) -> Self {
        Self::Conflict { resource: ResourceName::of(kind), name: name.to_owned(), why: why.into() }
    }

    pub(crate) fn forbidden(kind: &Kind, name: &str, why: impl Into<String>) -> Self {
        Self::Forbidden {
            resource: ResourceName::of(kind),
            name: name.to_owned(),
            why: why.into(),
            cause: None,
        }
    }

    pub(crate) fn invalid(kind: &Kind, name: &str, errors: Vec<FieldError>) -> Self {
        Self::Invalid {
            group: kind.group.to_string(),
            kind: kind.kind.to_string(),
            name: name.to_owned(),
            errors,
        }
    }

    /// Options of a request that can't be: `options` is their kind, such as `ListOptions`.
    pub(crate) fn invalid_options(options: &str, error: FieldError) -> Self {
        Self::Invalid {
            group: "meta.k8s.io".into(),
            kind: options.to_owned(),
            name: String::new(),
            errors: vec![error],
        }
    }

    /// A failed write to the object `name`.
    pub(crate) fn from_write(kind: &Kind, name: &str, error: WriteError) -> Self {
        match error {
            WriteError::Exists { .. } => Self::already_exists(kind, name),
            WriteError::Missing => Self::not_found(kind, name),
            WriteError::Conflict { .. } => Self::modified(kind, name),
            WriteError::TooLarge { limit, .. } => Self::RequestTooLarge(limit),
            other => Self::Unavailable(format!("the object store can't take writes: {other}")),
        }
    }

    /// A list at a revision that the store can't show (any more, or yet).
    pub(crate) fn from_list(error: ListError, asked: u64) -> Self {
        match error {
            ListError::Expired { .. } => Self::Expired {
                message: format!("The resourceVersion for the provided list is too old: {asked}."),
                fresh_continue: None,
            },
            ListError::Future { current, .. } => Self::TooLargeRevision { asked, current },
        }
    }

    /// A watch from a revision that the store can't show (any more, or yet).
    pub(crate) fn from_watch(error: WatchError, asked: u64) -> Self {
        match error {
            WatchError::Expired { oldest, .. } => Self::Expired {
                message: format!("too old resource version: {asked} ({oldest})"),
                fresh_continue: None,
            },
            WatchError::Future { current } => Self::TooLargeRevision { asked, current },
        }
    }

    /// HTTP status and `reason`.
    fn code(&self) -> (StatusCode, &'static str) {
        match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "Unauthorized"),
            Self::BadRequest(_) | Self::Undecodable { .. } => (StatusCode::BAD_REQUEST, "BadRequest"),
            Self::UnknownPath | Self::NoPage(_) | Self::NotFound { .. } => {
                (StatusCode::NOT_FOUND, "NotFound")
            }
            Self::NotServed(_) => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            Self::MethodNotAllowed => (StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
            Self::AlreadyExists { .. } => (StatusCode::CONFLICT, "AlreadyExists"),
            Self::Conflict { .. } => (StatusCode::CONFLICT, "Conflict"),
            Self::Forbidden { .. } => (StatusCode::FORBIDDEN, "Forbidden"),
            Self::Invalid { .. } | Self::Unprocessable(_) => (StatusCode::UNPROCESSABLE_ENTITY, "Invalid"),
            Self::NotAcceptable(_) => (StatusCode::NOT_ACCEPTABLE, "NotAcceptable"),
            Self::UnsupportedMediaType(_) => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "UnsupportedMediaType"),
            Self::RequestTooLarge(_) | Self::TooManyOperations { .. } => {
                (StatusCode::PAYLOAD_TOO_LARGE, "RequestEntityTooLarge")
            }
            Self::Expired { .. } => (StatusCode::GONE, "Expired"),
            Self::TooLargeRevision { .. } | Self::Timeout => (StatusCode::GATEWAY_TIMEOUT, "Timeout"),
            Self::TooManyRequests(_) => (StatusCode::TOO_MANY_REQUESTS, "TooManyRequests"),
            Self::Unavailable(_) => (StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable"),
            Self::Internal(_) => (StatusCode::INTERNAL_SERVER_ERROR, "InternalError"),
            Self::VersionOnCreate => (StatusCode::INTERNAL_SERVER_ERROR, ""),
            Self::StoreRead { .. } => (StatusCode::INTERNAL_SERVER_ERROR, "StoreReadError"),
        }
    }

    /// HTTP status of the answer.
    pub(crate) fn status_code(&self) -> StatusCode {
        self.code().0
    }

    /// Seconds after which the same request may succeed.
    pub(crate) fn retry_after(&self) -> Option<u32> {
        match self {
            Self::TooLargeRevision { .. } | Self::TooManyRequests(_) => Some(1),
            _ => None,
        }
    }

    /// The `metav1.Status` that clients get.
    pub(crate) fn status(&self) -> Value {
        let (code, reason) = self.code();
        let mut status = json!({
            "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
            "message": self.to_string(), "reason": reason, "code": code.as_u16(),
        });
        if let Some(details) = self.details() {
            status["details"] = details;
        }
        if let Self::Expired { fresh_continue: Some(token), .. } = self {
            status["metadata"] = json!({"continue": token});
        }
        status
    }

    fn details(&self) -> Option<Value> {
        let of = |resource: &ResourceName, name: &str| named(&resource.group, &resource.plural, name);
        match self {
            Self::NotFound { resource, name }
            | Self::AlreadyExists { resource, name }
            | Self::Conflict { resource, name, .. } => Some(of(resource, name)),
            Self::Forbidden { resource, name, cause, .. } => {
                let mut details = of(resource, name);
                if let Some(Cause { reason, message, field }) = cause.as_deref() {
                    details["causes"] = json!([{"reason": reason, "message": message, "field": field}]);
                }
                Some(details)
            }
            Self::Invalid { group, kind, name, errors } => {
                let mut details = named(group, kind, name);
                details["causes"] = errors
                    .iter()
                    .map(|error| {
                        json!({"reason": error.reason.as_str(), "message": error.message, "field": error.field})
                    })
                    .collect();
                Some(details)
            }
            Self::TooLargeRevision { .. } => Some(json!({
                "causes": [{"reason": "ResourceVersionTooLarge", "message": "Too large resource version"}],
                "retryAfterSeconds": 1,
            })),
            Self::TooManyRequests(_) => Some(json!({"retryAfterSeconds": 1})),
            Self::UnknownPath | Self::MethodNotAllowed => Some(json!({})),
            _ => None,
        }
    }
}

impl From<NotJson> for ApiError {
    fn from(error: NotJson) -> Self {
        Self::Internal(error.to_string())
    }
}

impl From<Exceeds> for ApiError {
    fn from(exceeds: Exceeds) -> Self {
        match exceeds {
            Exceeds::Depth(deep) => Self::Unprocessable(format!(
                "the object would be nested {deep} levels deep, at most {DEEPEST} are allowed"
            )),
            Exceeds::Size => Self::RequestTooLarge(LARGEST),
        }
    }
}

fn named(group: &str, kind: &str, name: &str) -> Value {
    let mut details = json!({});
    for (key, value) in [("name", name), ("group", group), ("kind", kind)] {
        if !value.is_empty() {
            details[key] = value.into();
        }
    }
    details
}
