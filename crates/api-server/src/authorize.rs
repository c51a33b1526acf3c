//! Who acts, and what they may do. There are no roles here: members of `system:masters` may do everything, all others
//! may read what the server says about itself and ask who they are, as everybody with a credential may in Kubernetes.

use http::HeaderMap;

use crate::error::{ApiError, ResourceName};
use crate::request::{ResourcePath, Verb};
use crate::user::User;

/// The group that may do everything.
const MASTERS: &str = "system:masters";
/// The group of everybody with a credential.
const AUTHENTICATED: &str = "system:authenticated";

const AS_USER: &str = "impersonate-user";
const AS_GROUP: &str = "impersonate-group";
const AS_UID: &str = "impersonate-uid";
const AS_EXTRA: &str = "impersonate-extra-";

/// Whether the user may do everything.
pub(crate) fn is_master(user: &User) -> bool {
    user.groups.iter().any(|group| group == MASTERS)
}

/// The user as whom the request shall be made: who sent it, or who its impersonation headers name.
///
/// # Errors
/// The sender may not act as others, or the headers name no user.
pub(crate) fn acting(sender: &User, headers: &HeaderMap) -> Result<User, ApiError> {
    let texts = |name: &str| -> Vec<String> {
        headers
            .get_all(name)
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect()
    };
    let user = texts(AS_USER).into_iter().next().unwrap_or_default();
    let groups = texts(AS_GROUP);
    let extra = headers.keys().any(|name| name.as_str().starts_with(AS_EXTRA));
    if user.is_empty() {
        if groups.is_empty() && !headers.contains_key(AS_UID) && !extra {
            return Ok(sender.clone());
        }
        return Err(ApiError::BadRequest(
            "the request impersonates groups or attributes without a user: add Impersonate-User (--as)"
                .into(),
        ));
    }
    if !is_master(sender) {
        let why = format!(
            "User {:?} cannot impersonate resource \"users\" in API group \"\" at the cluster scope",
            sender.name
        );
        let resource = ResourceName { group: String::new(), plural: "users".into() };
        return Err(ApiError::Forbidden { resource, name: user, why, cause: None });
    }
    let mut acting = User { name: user, groups };
    if !acting.groups.iter().any(|group| group == AUTHENTICATED) {
        acting.groups.push(AUTHENTICATED.to_owned());
    }
    Ok(acting)
}

/// Refuses what the user may not do, in the words of Kubernetes' RBAC.
pub(crate) fn check(user: &User, verb: Verb, path: &ResourcePath) -> Result<(), ApiError> {
    if is_master(user) {
        return Ok(());
    }
    let verb = match verb {
        Verb::Get => "get",
        Verb::List => "list",
        Verb::Watch => "watch",
        Verb::Create => "create",
        Verb::Update => "update",
        Verb::Patch => "patch",
        Verb::Delete => "delete",
        Verb::DeleteCollection => "deletecollection",
    };
    let resource = match &path.subresource {
        Some(subresource) => format!("{}/{subresource}", path.resource),
        None => path.resource.clone(),
    };
    let scope = match &path.namespace {
        Some(namespace) => format!("in the namespace {namespace:?}"),
        None => "at the cluster scope".to_owned(),
    };
    let why = format!(
        "User {:?} cannot {verb} resource {resource:?} in API group {:?} {scope}",
        user.name, path.group
    );
    let resource = ResourceName { group: path.group.clone(), plural: path.resource.clone() };
    Err(ApiError::Forbidden { resource, name: path.name.clone().unwrap_or_default(), why, cause: None })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::{Path, parse_path};

    fn user(name: &str, groups: &[&str]) -> User {
        User { name: name.to_owned(), groups: groups.iter().map(|&group| group.to_owned()).collect() }
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs
            .iter()
            .map(|(name, value)| (http::HeaderName::from_static(name), value.parse().unwrap()))
            .collect()
    }

    #[test]
    fn impersonation_is_obeyed_or_refused() {
        let admin = user("admin", &[MASTERS]);
        let acting_as = |sender: &User, pairs: &[(&'static str, &str)]| acting(sender, &headers(pairs));
        assert_eq!(acting_as(&admin, &[]).unwrap(), admin);
        assert_eq!(acting_as(&admin, &[(AS_USER, "bob")]).unwrap(), user("bob", &[AUTHENTICATED]));
        let with_groups =
            acting_as(&admin, &[(AS_USER, "bob"), (AS_GROUP, "dev"), (AS_GROUP, MASTERS)]).unwrap();
        assert_eq!(with_groups, user("bob", &["dev", MASTERS, AUTHENTICATED]));
        for lonely in [(AS_GROUP, MASTERS), (AS_UID, "7"), ("impersonate-extra-scopes", "x")] {
            assert!(matches!(acting_as(&admin, &[lonely]), Err(ApiError::BadRequest(_))), "{lonely:?}");
        }
        let refused =
            acting_as(&user("eve", &["dev"]), &[(AS_USER, "admin"), (AS_GROUP, MASTERS)]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            r#"users "admin" is forbidden: User "eve" cannot impersonate resource "users" in API group "" at the cluster scope"#
        );
    }

    #[test]
    fn only_masters_may_touch_objects() {
        for (path, verb, expected) in [
            (
                "/api/v1/namespaces/default/pods",
                Verb::List,
                r#"pods is forbidden: User "bob" cannot list resource "pods" in API group "" in the namespace "default""#,
            ),
            (
                "/api/v1/namespaces/default/pods/p/log",
                Verb::Get,
                r#"pods "p" is forbidden: User "bob" cannot get resource "pods/log" in API group "" in the namespace "default""#,
            ),
            (
                "/apis/storage.k8s.io/v1/storageclasses",
                Verb::Create,
                r#"storageclasses.storage.k8s.io is forbidden: User "bob" cannot create resource "storageclasses" in API group "storage.k8s.io" at the cluster scope"#,
            ),
        ] {
            let Some(Path::Resource(path)) = parse_path(path) else { panic!("{path}") };
            let refused = check(&user("bob", &[AUTHENTICATED]), verb, &path).unwrap_err();
            assert_eq!((refused.status_code().as_u16(), refused.to_string().as_str()), (403, expected));
            assert!(check(&user("bob", &[MASTERS]), verb, &path).is_ok());
        }
    }
}
