//! Parameters of a StorageClass: those for the driver, and those under `csi.storage.k8s.io/` that are for us.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::SecretReference;

const PREFIX: &str = "csi.storage.k8s.io/";

/// What a class's parameters say for one claim.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Parameters {
    /// What the driver gets.
    pub(crate) driver: BTreeMap<String, String>,
    pub(crate) fs_type: Option<String>,
    pub(crate) secrets: Secrets,
}

/// The secrets for the calls of a volume's life.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Secrets {
    pub(crate) provisioner: Option<SecretReference>,
    pub(crate) controller_publish: Option<SecretReference>,
    pub(crate) node_stage: Option<SecretReference>,
    pub(crate) node_publish: Option<SecretReference>,
    pub(crate) controller_expand: Option<SecretReference>,
    pub(crate) node_expand: Option<SecretReference>,
    pub(crate) controller_modify: Option<SecretReference>,
}

/// What templates in names of secrets can refer to.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Subject<'a> {
    pub(crate) volume: &'a str,
    pub(crate) namespace: &'a str,
    pub(crate) claim: &'a str,
    pub(crate) annotations: &'a BTreeMap<String, String>,
}

/// Why a class's parameters can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// A key with the reserved prefix that means nothing.
    #[error(
        "found unknown parameter key \"{0}\" with reserved prefix {PREFIX}; remove it from the StorageClass"
    )]
    Unknown(String),
    /// A secret with only one half of its name.
    #[error(
        "the StorageClass names only one of {PREFIX}{0}-secret-name and {PREFIX}{0}-secret-namespace; give both"
    )]
    HalfSecret(&'static str),
    /// The file system is named more than once.
    #[error("the StorageClass names the file system by both {0} and {1}; leave one out")]
    TwoFileSystems(String, String),
    /// A template that can't be resolved.
    #[error("{key}: {template} can't be resolved; templates there are {allowed}")]
    Template {
        /// The parameter.
        key: String,
        /// What it says.
        template: String,
        /// What it may say.
        allowed: &'static str,
    },
}

/// The keys of a class that go to the driver, for calls that are about no claim.
pub(crate) fn for_driver(parameters: Option<&BTreeMap<String, String>>) -> BTreeMap<String, String> {
    let all = parameters.into_iter().flatten();
    all.filter(|(key, _)| !key.starts_with(PREFIX)).map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// The file-system type that a class names.
///
/// # Errors
/// It names it twice.
pub(crate) fn fs_type(parameters: &BTreeMap<String, String>) -> Result<Option<String>, ParameterError> {
    // Without the prefix, and in any case, as classes of long ago have it; the driver sees those too.
    let names_it = |key: &&String| {
        key.eq_ignore_ascii_case("fstype") || key.strip_prefix(PREFIX).is_some_and(|key| key == "fstype")
    };
    let mut file_systems = parameters.keys().filter(names_it);
    let file_system = file_systems.next();
    if let (Some(one), Some(other)) = (file_system, file_systems.next()) {
        return Err(ParameterError::TwoFileSystems(one.clone(), other.clone()));
    }
    Ok(file_system.and_then(|key| parameters.get(key)).filter(|kind| !kind.is_empty()).cloned())
}

/// Interprets a class's parameters. Reserved keys are for us alone, so an unknown one is refused, not passed on.
pub(crate) fn interpret(
    parameters: Option<&BTreeMap<String, String>>,
    subject: Subject<'_>,
) -> Result<Parameters, ParameterError> {
    let empty = BTreeMap::new();
    let parameters = parameters.unwrap_or(&empty);
    const PURPOSES: [&str; 7] = [
        "provisioner",
        "controller-publish",
        "node-stage",
        "node-publish",
        "controller-expand",
        "node-expand",
        "controller-modify",
    ];
    for key in parameters.keys().filter_map(|key| key.strip_prefix(PREFIX)) {
        let purpose = key.strip_suffix("-secret-name").or_else(|| key.strip_suffix("-secret-namespace"));
        if key != "fstype" && !purpose.is_some_and(|purpose| PURPOSES.contains(&purpose)) {
            return Err(ParameterError::Unknown(format!("{PREFIX}{key}")));
        }
    }
    let [
        provisioner,
        controller_publish,
        node_stage,
        node_publish,
        controller_expand,
        node_expand,
        controller_modify,
    ] = PURPOSES.map(|purpose| secret(parameters, purpose, subject));
    Ok(Parameters {
        driver: for_driver(Some(parameters)),
        fs_type: fs_type(parameters)?,
        secrets: Secrets {
            provisioner: provisioner?,
            controller_publish: controller_publish?,
            node_stage: node_stage?,
            node_publish: node_publish?,
            controller_expand: controller_expand?,
            node_expand: node_expand?,
            controller_modify: controller_modify?,
        },
    })
}

fn secret(
    parameters: &BTreeMap<String, String>,
    purpose: &'static str,
    subject: Subject<'_>,
) -> Result<Option<SecretReference>, ParameterError> {
    let [name_key, namespace_key] =
        ["name", "namespace"].map(|part| format!("{PREFIX}{purpose}-secret-{part}"));
    let (name, namespace) = match (parameters.get(&name_key), parameters.get(&namespace_key)) {
        (None, None) => return Ok(None),
        (Some(name), Some(namespace)) if !name.is_empty() && !namespace.is_empty() => (name, namespace),
        _ => return Err(ParameterError::HalfSecret(purpose)),
    };
    // The secret for provisioning is fixed before the claim's author can say anything about it.
    let annotations = (purpose != "provisioner").then_some(subject.annotations);
    Ok(Some(SecretReference {
        name: Some(resolve(&name_key, name, |variable| match variable {
            "pvc.name" => Some(subject.claim),
            variable => common(variable, subject).or_else(|| annotation(variable, annotations?)),
        })?),
        namespace: Some(resolve(&namespace_key, namespace, |variable| common(variable, subject))?),
    }))
}

fn common<'a>(variable: &str, subject: Subject<'a>) -> Option<&'a str> {
    match variable {
        "pv.name" => Some(subject.volume),
        "pvc.namespace" => Some(subject.namespace),
        _ => None,
    }
}

fn annotation<'a>(variable: &str, annotations: &'a BTreeMap<String, String>) -> Option<&'a str> {
    let key = variable.strip_prefix("pvc.annotations['")?.strip_suffix("']")?;
    annotations.get(key).map(String::as_str)
}

/// Replaces `${variable}` everywhere in a template.
fn resolve<'a>(
    key: &str,
    template: &str,
    value: impl Fn(&str) -> Option<&'a str>,
) -> Result<String, ParameterError> {
    let mut resolved = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("${") {
        resolved.push_str(before);
        let variable = after.split_once('}').and_then(|(variable, after)| Some((value(variable)?, after)));
        let Some((value, after)) = variable else {
            return Err(ParameterError::Template {
                key: key.to_owned(),
                template: template.to_owned(),
                allowed: if key.ends_with("namespace") {
                    "${pv.name} and ${pvc.namespace}"
                } else {
                    "${pv.name}, ${pvc.namespace}, ${pvc.name} and, except for provisioning, \
                     ${pvc.annotations['key']} of annotations that the claim has"
                },
            });
        };
        resolved.push_str(value);
        rest = after;
    }
    resolved.push_str(rest);
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    fn interpreted(pairs: &[(&str, &str)]) -> Result<Parameters, ParameterError> {
        let annotations = map(&[("team", "blue")]);
        let subject =
            Subject { volume: "pvc-7", namespace: "shop", claim: "data", annotations: &annotations };
        interpret(Some(&map(pairs)), subject)
    }

    #[test]
    fn reserved_keys_are_stripped_and_the_rest_is_the_drivers() {
        let parameters =
            interpreted(&[("tier", "fast"), ("csi.storage.k8s.io/fstype", "xfs")]).expect("valid");
        assert_eq!(parameters.driver, map(&[("tier", "fast")]));
        assert_eq!(parameters.fs_type.as_deref(), Some("xfs"));
        assert_eq!(parameters.secrets, Secrets::default());
    }

    #[test]
    fn secrets_are_resolved_from_templates() {
        for (purpose, name, namespace, resolved) in [
            ("node-stage", "key", "vault", Some(("key", "vault"))),
            ("node-stage", "${pvc.name}-${pv.name}", "${pvc.namespace}", Some(("data-pvc-7", "shop"))),
            ("node-publish", "${pvc.annotations['team']}", "vault", Some(("blue", "vault"))),
            ("node-publish", "${pvc.annotations['other']}", "vault", None),
            ("provisioner", "${pvc.annotations['team']}", "vault", None),
            ("provisioner", "${pvc.name}", "vault", Some(("data", "vault"))),
            ("provisioner", "key", "${pvc.name}", None),
            ("provisioner", "key", "${pvc.namespace", None),
            ("provisioner", "key", "", None),
        ] {
            let keys = ["name", "namespace"].map(|part| format!("{PREFIX}{purpose}-secret-{part}"));
            let found = interpreted(&[(&keys[0], name), (&keys[1], namespace)]).ok().and_then(|parameters| {
                let secrets = parameters.secrets;
                secrets.provisioner.or(secrets.node_stage).or(secrets.node_publish)
            });
            let expected = resolved.map(|(name, namespace)| SecretReference {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
            });
            assert_eq!(found, expected, "{purpose} {name} {namespace}");
        }
    }

    #[test]
    fn unknown_reserved_keys_and_half_secrets_are_refused() {
        for (pairs, error) in [
            (
                &[("csi.storage.k8s.io/fstyp", "xfs")],
                ParameterError::Unknown("csi.storage.k8s.io/fstyp".to_owned()),
            ),
            (
                &[("csi.storage.k8s.io/other-secret-name", "key")],
                ParameterError::Unknown("csi.storage.k8s.io/other-secret-name".to_owned()),
            ),
            (
                &[("csi.storage.k8s.io/node-stage-secret-name", "key")],
                ParameterError::HalfSecret("node-stage"),
            ),
        ] {
            assert_eq!(interpreted(pairs), Err(error));
        }
    }

    #[test]
    fn a_file_system_is_named_in_any_of_its_ways_and_once() {
        let named = |keys: &[&str]| {
            let parameters = keys.iter().map(|key| ((*key).to_owned(), "xfs".to_owned())).collect();
            let annotations = BTreeMap::new();
            let subject = Subject { volume: "", namespace: "", claim: "", annotations: &annotations };
            interpret(Some(&parameters), subject).map(|found| (found.fs_type, found.driver.len()))
        };
        let xfs = || Some("xfs".to_owned());
        assert_eq!(named(&["csi.storage.k8s.io/fstype"]), Ok((xfs(), 0)));
        // The driver sees it, too, as of any provisioner.
        assert_eq!(named(&["fstype"]), Ok((xfs(), 1)));
        assert_eq!(named(&["fsType"]), Ok((xfs(), 1)));
        assert_eq!(named(&[]), Ok((None, 0)));
        let twice = named(&["csi.storage.k8s.io/fstype", "fsType"]).expect_err("twice").to_string();
        assert!(twice.contains("both csi.storage.k8s.io/fstype and fsType"), "{twice}");
    }
}
