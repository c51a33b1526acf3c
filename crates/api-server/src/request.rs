//! A request as one value: what is asked of which resource, with which options. Parsing is pure.

use http::Method;

use crate::error::ApiError;
use crate::schema::FieldError;

/// What a path names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Path {
    /// Objects of a resource.
    Resource(ResourcePath),
    /// A document about the server itself.
    Document(Document),
}

/// Documents that the server writes about itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Document {
    /// `/version`
    Version,
    /// `/healthz`, `/livez`, `/readyz`
    Health,
    /// `/api`: versions of the core group.
    CoreVersions,
    /// `/apis`: groups.
    Groups,
    /// `/apis/GROUP`: versions of a group.
    Group(String),
    /// `/api/v1`, `/apis/GROUP/VERSION`: resources of a group version.
    Resources { group: String, version: String },
    /// `/openapi/v2`
    OpenApiV2,
    /// `/openapi/v3`
    OpenApiV3Index,
    /// `/openapi/v3/api/v1`, `/openapi/v3/apis/GROUP/VERSION`
    OpenApiV3 { group: String, version: String },
}

/// The path of a resource, of one object, or of a subresource of one object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ResourcePath {
    pub(crate) group: String,
    pub(crate) version: String,
    /// Absent for cluster-scoped resources and for lists over all namespaces.
    pub(crate) namespace: Option<String>,
    pub(crate) resource: String,
    pub(crate) name: Option<String>,
    pub(crate) subresource: Option<String>,
    /// What comes after `proxy`: the path of a page.
    pub(crate) page: Option<String>,
}

/// The path's meaning by Kubernetes' grammar; `None` for what the grammar doesn't know.
pub(crate) fn parse_path(path: &str) -> Option<Path> {
    let decoded: Vec<String> = path
        .split('/')
        .filter(|segment| !segment.is_empty())
        .map(|segment| percent_encoding::percent_decode_str(segment).decode_utf8().map(Into::into))
        .collect::<Result<_, _>>()
        .ok()?;
    let segments: Vec<&str> = decoded.iter().map(String::as_str).collect();
    let document = |document| Some(Path::Document(document));
    match segments.as_slice() {
        ["version"] => document(Document::Version),
        ["healthz" | "livez" | "readyz", ..] => document(Document::Health),
        ["api"] => document(Document::CoreVersions),
        ["apis"] => document(Document::Groups),
        ["apis", group] => document(Document::Group((*group).into())),
        ["api", version] => {
            document(Document::Resources { group: String::new(), version: (*version).into() })
        }
        ["apis", group, version] => {
            document(Document::Resources { group: (*group).into(), version: (*version).into() })
        }
        ["openapi", "v2"] => document(Document::OpenApiV2),
        ["openapi", "v3"] => document(Document::OpenApiV3Index),
        ["openapi", "v3", "api", version] => {
            document(Document::OpenApiV3 { group: String::new(), version: (*version).into() })
        }
        ["openapi", "v3", "apis", group, version] => {
            document(Document::OpenApiV3 { group: (*group).into(), version: (*version).into() })
        }
        ["api", version, rest @ ..] => parse_resource("", version, rest).map(Path::Resource),
        ["apis", group, version, rest @ ..] => parse_resource(group, version, rest).map(Path::Resource),
        _ => None,
    }
}

fn parse_resource(group: &str, version: &str, rest: &[&str]) -> Option<ResourcePath> {
    let (namespace, rest) = match rest {
        // A namespace's own subresources; no resource has these names.
        ["namespaces", _, "status" | "finalize"] => (None, rest),
        ["namespaces", namespace, rest @ ..] if !rest.is_empty() => (Some((*namespace).to_owned()), rest),
        _ => (None, rest),
    };
    let (resource, name, subresource, page) = match rest {
        [resource] => (resource, None, None, None),
        [resource, name] => (resource, Some(*name), None, None),
        [resource, name, "proxy", page @ ..] => (resource, Some(*name), Some("proxy"), Some(page.join("/"))),
        [resource, name, subresource] => (resource, Some(*name), Some(*subresource), None),
        _ => return None,
    };
    Some(ResourcePath {
        group: group.to_owned(),
        version: version.to_owned(),
        namespace,
        resource: (*resource).to_owned(),
        name: name.map(str::to_owned),
        subresource: subresource.map(str::to_owned),
        page,
    })
}

/// What is to be done with the resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

/// The verb of a method on a path.
pub(crate) fn verb(method: &Method, path: &ResourcePath, watch: bool) -> Result<Verb, ApiError> {
    match (method, path.name.is_some()) {
        (&Method::GET, false) if watch => Ok(Verb::Watch),
        (&Method::GET, false) => Ok(Verb::List),
        (&Method::GET, true) => Ok(Verb::Get),
        (&Method::POST, false) => Ok(Verb::Create),
        // Bindings and evictions are created under an object.
        (&Method::POST, true) if path.subresource.is_some() => Ok(Verb::Create),
        (&Method::PUT, true) => Ok(Verb::Update),
        (&Method::PATCH, true) => Ok(Verb::Patch),
        (&Method::DELETE, true) => Ok(Verb::Delete),
        (&Method::DELETE, false) => Ok(Verb::DeleteCollection),
        _ => Err(ApiError::MethodNotAllowed),
    }
}

/// Strictness about unknown and duplicate fields.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum FieldValidation {
    Ignore,
    #[default]
    Warn,
    Strict,
}

/// `resourceVersionMatch`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VersionMatch {
    Exact,
    NotOlderThan,
}

/// The options of all verbs; each verb reads those that concern it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Query {
    pub(crate) label_selector: String,
    pub(crate) field_selector: String,
    pub(crate) watch: bool,
    pub(crate) bookmarks: bool,
    pub(crate) send_initial_events: Option<bool>,
    pub(crate) timeout_seconds: Option<u64>,
    pub(crate) limit: usize,
    pub(crate) continue_token: String,
    pub(crate) resource_version: String,
    pub(crate) version_match: Option<VersionMatch>,
    pub(crate) dry_run: bool,
    pub(crate) field_validation: FieldValidation,
    pub(crate) include_object: String,
    pub(crate) grace_period_seconds: Option<i64>,
    pub(crate) propagation_policy: Option<String>,
    pub(crate) orphan_dependents: Option<bool>,
    pub(crate) log: LogOptions,
}

/// Options of `pods/log`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogOptions {
    /// Keep the stream open and send what is written later.
    pub follow: bool,
    /// The log of the container's previous run.
    pub previous: bool,
    /// Begin each line with its time.
    pub timestamps: bool,
    /// Only the last lines.
    pub tail_lines: Option<u64>,
    /// Only what is younger than this, in seconds.
    pub since_seconds: Option<u64>,
    /// Only what is younger than this time.
    pub since_time: Option<jiff::Timestamp>,
    /// At most so many bytes.
    pub limit_bytes: Option<u64>,
    /// The container; may be absent when the pod has only one.
    pub container: Option<String>,
}

impl Query {
    /// Reads a query string; unknown options are ignored, as in Kubernetes.
    pub(crate) fn parse(query: &str, method: &Method) -> Result<Self, ApiError> {
        let options = match *method {
            Method::POST => "CreateOptions",
            Method::PUT => "UpdateOptions",
            Method::PATCH => "PatchOptions",
            Method::DELETE => "DeleteOptions",
            _ => "ListOptions",
        };
        let mut parsed = Self::default();
        for (key, value) in form_urlencoded::parse(query.as_bytes()) {
            parsed.set(&key, &value, options)?;
        }
        Ok(parsed)
    }

    fn set(&mut self, key: &str, value: &str, options: &str) -> Result<(), ApiError> {
        let text = || value.to_owned();
        match key {
            "labelSelector" => self.label_selector = text(),
            "fieldSelector" => self.field_selector = text(),
            "watch" => self.watch = flag(key, value)?,
            "allowWatchBookmarks" => self.bookmarks = flag(key, value)?,
            "sendInitialEvents" => self.send_initial_events = Some(flag(key, value)?),
            "timeoutSeconds" => self.timeout_seconds = optional(key, value)?,
            // Less than nothing is no limit.
            "limit" => {
                let limit: i64 = optional(key, value)?.unwrap_or(0);
                self.limit = usize::try_from(limit).unwrap_or(0);
            }
            "continue" => self.continue_token = text(),
            "resourceVersion" => self.resource_version = text(),
            "resourceVersionMatch" => {
                self.version_match = match value {
                    "" => None,
                    "Exact" => Some(VersionMatch::Exact),
                    "NotOlderThan" => Some(VersionMatch::NotOlderThan),
                    _ => return Err(unsupported("ListOptions", key, value, &["Exact", "NotOlderThan", ""])),
                }
            }
            "dryRun" => match value {
                "All" => self.dry_run = true,
                "" => {}
                _ => return Err(unsupported(options, key, value, &["All"])),
            },
            "fieldValidation" => {
                self.field_validation = match value {
                    "" | "Warn" => FieldValidation::Warn,
                    "Ignore" => FieldValidation::Ignore,
                    "Strict" => FieldValidation::Strict,
                    _ => return Err(unsupported(options, key, value, &["", "Ignore", "Strict", "Warn"])),
                }
            }
            "includeObject" => self.include_object = text(),
            "gracePeriodSeconds" => self.grace_period_seconds = optional(key, value)?,
            "propagationPolicy" => self.propagation_policy = Some(text()),
            "orphanDependents" => self.orphan_dependents = Some(flag(key, value)?),
            "follow" => self.log.follow = flag(key, value)?,
            "previous" => self.log.previous = flag(key, value)?,
            "timestamps" => self.log.timestamps = flag(key, value)?,
            "tailLines" => self.log.tail_lines = optional(key, value)?,
            "sinceSeconds" => self.log.since_seconds = optional(key, value)?,
            "sinceTime" => self.log.since_time = optional(key, value)?,
            "limitBytes" => self.log.limit_bytes = optional(key, value)?,
            "container" if !value.is_empty() => self.log.container = Some(text()),
            _ => {}
        }
        Ok(())
    }
}

/// Booleans as Kubernetes reads them: everything but `false` and `0` is true, an empty value too.
fn flag(_key: &str, value: &str) -> Result<bool, ApiError> {
    Ok(!matches!(value.to_ascii_lowercase().as_str(), "false" | "0"))
}

fn optional<T: std::str::FromStr>(key: &str, value: &str) -> Result<Option<T>, ApiError> {
    if value.is_empty() {
        return Ok(None);
    }
    value
        .parse()
        .map(Some)
        .map_err(|_| ApiError::BadRequest(format!("invalid value {value:?} of the query option {key}")))
}

fn unsupported(options: &str, key: &str, value: &str, supported: &[&str]) -> ApiError {
    let error = FieldError::not_supported(key, value, supported.iter().copied());
    ApiError::invalid_options(options, error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resource(text: &str) -> (String, String, Option<String>, String, Option<String>, Option<String>) {
        match parse_path(text) {
            Some(Path::Resource(p)) => (p.group, p.version, p.namespace, p.resource, p.name, p.subresource),
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn paths_follow_the_grammar() {
        let some = |text: &str| Some(text.to_owned());
        for (path, group, version, namespace, name_of, name, subresource) in [
            ("/api/v1/pods", "", "v1", None, "pods", None, None),
            ("/api/v1/namespaces/a/pods", "", "v1", some("a"), "pods", None, None),
            ("/api/v1/namespaces/a/pods/b/log", "", "v1", some("a"), "pods", some("b"), some("log")),
            ("/api/v1/namespaces", "", "v1", None, "namespaces", None, None),
            ("/api/v1/namespaces/a", "", "v1", None, "namespaces", some("a"), None),
            ("/api/v1/namespaces/a/finalize", "", "v1", None, "namespaces", some("a"), some("finalize")),
            ("/apis/g.io/v2/things/x%3Ay", "g.io", "v2", None, "things", some("x:y"), None),
        ] {
            let expected =
                (group.to_owned(), version.to_owned(), namespace, name_of.to_owned(), name, subresource);
            assert_eq!(resource(path), expected, "{path}");
        }
        assert_eq!(parse_path("/apis/"), Some(Path::Document(Document::Groups)));
        assert_eq!(parse_path("/livez/ping"), Some(Path::Document(Document::Health)));
        assert_eq!(parse_path("/metrics"), None);
        assert_eq!(parse_path("/api/v1/namespaces/a/pods/b/c/d"), None);
    }

    #[test]
    fn options_are_read_and_bad_ones_refused() {
        let query =
            Query::parse("labelSelector=a%3Db&limit=5&watch=1&dryRun=All&tailLines=3", &Method::GET).unwrap();
        assert_eq!((query.label_selector.as_str(), query.limit, query.watch), ("a=b", 5, true));
        assert!(query.dry_run);
        assert_eq!(query.log.tail_lines, Some(3));
        for bad in ["limit=x", "dryRun=Some", "fieldValidation=loud", "resourceVersionMatch=Near"] {
            assert!(Query::parse(bad, &Method::GET).is_err(), "{bad}");
        }
    }
}
