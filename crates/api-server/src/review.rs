//! Reviews, which are answered and never stored: what may I do, and who am I?

use http::StatusCode;
use serde_json::{Value, json};

use crate::answer::{self, Answer};
use crate::authorize;
use crate::error::ApiError;
use crate::request::{ResourcePath, Verb};
use crate::user::User;

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
pub(crate) fn find(path: &ResourcePath) -> Option<Review> {
    match (path.group.as_str(), path.version.as_str(), path.resource.as_str()) {
        ("authorization.k8s.io", "v1", "selfsubjectaccessreviews") => Some(Review::Access),
        ("authorization.k8s.io", "v1", "selfsubjectrulesreviews") => Some(Review::Rules),
        ("authentication.k8s.io", "v1", "selfsubjectreviews") => Some(Review::Subject),
        _ => None,
    }
}

/// Answers a review. A user may do everything or nothing, so what exactly was asked does not matter, and clients that
/// ask in protobuf are answered too.
pub(crate) fn answer(review: Review, verb: Verb, user: &User) -> Result<Answer, ApiError> {
    if verb != Verb::Create {
        return Err(ApiError::MethodNotAllowed);
    }
    let body = match review {
        Review::Access => json!({
            "kind": "SelfSubjectAccessReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {}, "spec": {},
            "status": {"allowed": authorize::is_master(user)},
        }),
        Review::Rules => {
            let (resources, others) = match authorize::is_master(user) {
                true => (
                    json!([{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"]}]),
                    json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]),
                ),
                false => (json!([]), json!([{"verbs": ["get"], "nonResourceURLs": ["*"]}])),
            };
            json!({
                "kind": "SelfSubjectRulesReview", "apiVersion": "authorization.k8s.io/v1", "metadata": {}, "spec": {},
                "status": {"resourceRules": resources, "nonResourceRules": others, "incomplete": false},
            })
        }
        Review::Subject => {
            let mut groups: Vec<Value> = user.groups.iter().map(|group| group.as_str().into()).collect();
            if !groups.contains(&"system:authenticated".into()) {
                groups.push("system:authenticated".into());
            }
            json!({
                "kind": "SelfSubjectReview", "apiVersion": "authentication.k8s.io/v1", "metadata": {},
                "status": {"userInfo": {"username": user.name, "groups": groups}},
            })
        }
    };
    Ok(answer::json(StatusCode::CREATED, &body))
}
