//! The secrets that a snapshot class names by templates.

use std::collections::BTreeMap;

const PREFIX: &str = "csi.storage.k8s.io/";

/// Name and namespace of the secret for a purpose, its templates filled in. In the name all of `common` and `names` can
/// be used, in the namespace `common` only.
///
/// # Errors
/// What is wrong with the parameters.
pub(super) fn reference(
    parameters: &BTreeMap<String, String>,
    purpose: &str,
    common: &[(&str, &str)],
    names: &[(&str, &str)],
) -> Result<Option<(String, String)>, String> {
    let [name_key, namespace_key] =
        ["name", "namespace"].map(|part| format!("{PREFIX}{purpose}-secret-{part}"));
    let all: Vec<_> = common.iter().chain(names).copied().collect();
    match (parameters.get(&name_key), parameters.get(&namespace_key)) {
        (None, None) => Ok(None),
        (Some(name), Some(namespace)) if !name.is_empty() && !namespace.is_empty() => {
            Ok(Some((resolve(&name_key, name, &all)?, resolve(&namespace_key, namespace, common)?)))
        }
        _ => Err(format!("the class names only one of {name_key} and {namespace_key}; give both")),
    }
}

fn resolve(key: &str, template: &str, values: &[(&str, &str)]) -> Result<String, String> {
    let mut resolved = template.to_owned();
    for (variable, value) in values {
        resolved = resolved.replace(&format!("${{{variable}}}"), value);
    }
    if resolved.contains("${") {
        let known: Vec<_> = values.iter().map(|(variable, _)| format!("${{{variable}}}")).collect();
        return Err(format!("{key}: {template} can't be resolved; templates there are {}", known.join(", ")));
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_are_filled_in_and_halves_refused() {
        for (name, namespace, expected) in [
            (Some("key"), Some("vault"), Ok(Some(("key", "vault")))),
            (Some("${snapshot.name}-key"), Some("${snapshot.namespace}"), Ok(Some(("s-key", "shop")))),
            (None, None, Ok(None)),
            (Some("key"), None, Err(())),
            (Some("key"), Some(""), Err(())),
            (Some("key"), Some("${snapshot.name}"), Err(())),
            (Some("${other}"), Some("vault"), Err(())),
        ] {
            let keys = ["name", "namespace"].map(|part| format!("{PREFIX}snapshotter-secret-{part}"));
            let pairs = keys.into_iter().zip([name, namespace]);
            let parameters =
                pairs.filter_map(|(key, value)| value.map(|value| (key, value.to_owned()))).collect();
            let found = reference(
                &parameters,
                "snapshotter",
                &[("snapshot.namespace", "shop")],
                &[("snapshot.name", "s")],
            );
            let found = found.map_err(drop);
            let expected =
                expected.map(|one| one.map(|(name, namespace)| (name.to_owned(), namespace.to_owned())));
            assert_eq!(found, expected, "{name:?} {namespace:?}");
        }
    }
}
