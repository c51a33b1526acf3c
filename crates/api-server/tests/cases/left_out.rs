//! What is not expected of Orlop, each with its reason.

use serde_json::Value;

/// Why a case is left out.
pub(crate) enum Reason {
    /// It is about something that is not served at all, or decided otherwise.
    Kind(&'static str),
    /// It is one difference among many cases that pass.
    Case(&'static str),
}

/// Parts of paths that belong to what is not served.
const PATHS: &[(&str, &str)] = &[
    ("/resourcequotas", "ResourceQuota is not served"),
    ("/limitranges", "LimitRange is not served"),
    ("/rbac.authorization.k8s.io/", "there are no roles: only the group system:masters may do anything"),
    ("/admissionregistration.k8s.io/", "admission policies are not served"),
    ("/apps/v1/namespaces/", "Deployments are not served"),
    ("/authentication.k8s.io/", "SelfSubjectReview is not served"),
    ("/replicationcontrollers", "ReplicationControllers are not served"),
];

const CLIENT: &str = "told as the client's mistake (400), not as an internal error";
const TYPES: &str = "the refusal names the media types that are accepted";
const WARNING: &str = "Kubernetes' warnings of old and doubtful fields are not given";
const ACCOUNTS: &str = "a pod that names no service account has the default one";
const TAINTS: &str = "new nodes get no taint: the node agent's first heartbeat comes with the node";
const FIRST_PAGE: &str = "a limit holds at resourceVersion 0, too";
const SCHEMAS: &str = "defaults and sets of a definition's schema are not checked against each other";

/// Single cases.
const CASES: &[(&str, &str)] = &[
    ("pa-034", "a JSON patch can't replace the whole object"),
    ("pa-079", "another apiVersion is a bad request for every kind"),
    ("pa-146", CLIENT),
    ("pa-160", "`$patch: merge` means what it says"),
    ("pa-161", CLIENT),
    ("pa-167", "the refusal names the field"),
    ("pa-170", "directives that nobody knows are dropped"),
    ("pa-173", "null is no strategic patch"),
    ("pa-179", "server-side apply is not served, so that it is not offered"),
    ("pa-181", "an empty state is left out of a status"),
    ("pa-182", "podIPs are patched as a list with keys"),
    ("pa-193", "a container in place of all others keeps the pod valid"),
    ("pa-197", "an order that lacks a patched item is filled up"),
    ("pa-205", "two sources of a volume are told in another order"),
    ("pa-211", WARNING),
    ("pa-217", TYPES),
    ("pa-218", TYPES),
    ("pa-220", TYPES),
    ("pa-328", "the scheduler writes the condition of gated pods"),
    ("ru-011", WARNING),
    ("ru-032", "claims may take their data from another namespace"),
    ("ru-044", WARNING),
    ("ru-053", WARNING),
    ("ru-082", WARNING),
    ("ru-083", WARNING),
    ("ru-088", WARNING),
    ("ru-091", "a refusal carries no warnings"),
    ("ru-136", WARNING),
    ("ru-196", ACCOUNTS),
    ("ru-208", WARNING),
    ("ru-217", "a mountPath with a colon is refused, as the field's documentation has it"),
    ("ru-259", WARNING),
    ("ru-307", "there are no pods of Windows"),
    ("ru-308", "resources of a whole pod are not served"),
    ("ru-313", "a set whose pods could never be made is refused at once"),
    ("ru-314", "the refusal names the claim's template"),
    ("ru-332", "maxUnavailable of a StatefulSet is served"),
    ("ru-454", SCHEMAS),
    ("ru-455", SCHEMAS),
    ("ru-460", SCHEMAS),
    ("ru-467", "that no version is stored is told once"),
    ("ru-472", "null and absence are told alike"),
    ("ru-475", "metadata of custom resources is checked with everything else (422)"),
    ("ru-481", TAINTS),
    ("ru-482", TAINTS),
    ("ru-499", "continue tokens are written otherwise"),
    ("ru-500", FIRST_PAGE),
    ("ru-505", FIRST_PAGE),
    ("ru-515", "a resourceVersion that is no number is the client's mistake (400)"),
];

pub(crate) fn reason(case: &Value) -> Option<Reason> {
    let id = case["id"].as_str().unwrap_or_default();
    if let Some((_, why)) = CASES.iter().find(|(known, _)| *known == id) {
        return Some(Reason::Case(why));
    }
    let steps = case["steps"].as_array()?;
    let in_path = |part: &str| {
        steps.iter().any(|step| {
            let path = step["path"].as_str().unwrap_or_default();
            path.contains(part) && !path.ends_with("/statefulsets") && !path.contains("/statefulsets/")
        })
    };
    if let Some((_, why)) = PATHS.iter().find(|(part, _)| in_path(part)) {
        return Some(Reason::Kind(why));
    }
    steps.iter().find_map(|step| {
        let patch = step["content_type"].as_str().unwrap_or_default();
        let impersonates = step["headers"]
            .as_object()
            .is_some_and(|headers| headers.keys().any(|name| name.starts_with("Impersonate-")));
        match () {
            () if patch == "application/apply-patch+yaml" => Some("server-side apply is not served"),
            () if impersonates => Some("users are not told apart"),
            () if step["body"].to_string().contains("x-kubernetes-validations") => {
                Some("CEL rules are stored, and a warning says that they are not evaluated")
            }
            () => None,
        }
        .map(Reason::Kind)
    })
}
