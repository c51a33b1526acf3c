//! Reviews, which are answered and never stored: what may I do, and who am I?

use http::StatusCode;
use serde_json::{Value, json};

use crate::answer::{self, Answer};
use crate::body::Payload;
use crate::error::ApiError;
use crate::request::ResourcePath;
use crate::server::User;

/// The reviews that are known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Review {
    /// `authorization.k8s.io/v1` SelfSubjectAccessReview
    Access,
    /// `authorization.k8s.io/v1` SelfSubjectRulesReview
    Rules,
    /// `authentication.k8s.io/v1` SelfSubjectReview
    Subject,
}

/// The review that a path asks for.
pub(crate) fn kind(path: &ResourcePath) -> Option<Review> {
    match (path.group.as_str(), path.version.as_str(), path.resource.as_str()) {
        ("authorization.k8s.io", "v1", "selfsubjectaccessreviews") => Some(Review::Access),
        ("authorization.k8s.io", "v1", "selfsubjectrulesreviews") => Some(Review::Rules),
        ("authentication.k8s.io", "v1", "selfsubjectreviews") => Some(Review::Subject),
        _ => None,
    }
}

/// Answers a review: whoever has a credential may do everything.
pub(crate) fn answer(review: Review, user: &User, payload: Payload) -> Result<Answer, ApiError> {
    let (mut body, _) = payload.value()?;
    if !body.is_object() {
        return Err(ApiError::BadRequest("the body is not a JSON object".into()));
    }
    body["status"] = match review {
        Review::Access => json!({"allowed": true}),
        Review::Rules => json!({
            "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}],
            "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            "incomplete": false,
        }),
        Review::Subject => {
            let mut groups: Vec<Value> = user.groups.iter().map(|group| group.as_str().into()).collect();
            groups.push("system:authenticated".into());
            json!({"userInfo": {"username": user.name, "groups": groups}})
        }
    };
    Ok(answer::json(StatusCode::CREATED, &body))
}
