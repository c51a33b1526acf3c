//! Which names, label keys and label values Kubernetes takes. Each check returns what is wrong in Kubernetes' words;
//! nothing means valid.

const LABEL: usize = 63;
const SUBDOMAIN: usize = 253;

const DNS_LABEL_SHAPE: &str = "[a-z0-9]([-a-z0-9]*[a-z0-9])?";
const DNS_SUBDOMAIN_SHAPE: &str = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*";
const KEY_SHAPE: &str = "([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]";

/// A lowercase RFC 1123 label: names of namespaces, volumes in pods, containers.
pub fn dns_label(value: &str) -> Vec<String> {
    let mut wrong = too_long(value, LABEL);
    if !is_dns_label(value) {
        wrong.push(match is_dns_subdomain(value) {
            true => "must not contain dots".into(),
            false => shape(
                "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character",
                DNS_LABEL_SHAPE,
                "'my-name',  or '123-abc', ",
            ),
        });
    }
    wrong
}

/// A lowercase RFC 1123 subdomain: names of most objects.
pub fn dns_subdomain(value: &str) -> Vec<String> {
    let mut wrong = too_long(value, SUBDOMAIN);
    if !is_dns_subdomain(value) {
        wrong.push(shape(
            "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character",
            DNS_SUBDOMAIN_SHAPE,
            "'example.com', ",
        ));
    }
    wrong
}

/// A label key, annotation key, finalizer or resource name: an optional DNS subdomain and `/`, then a name.
pub fn qualified_name(value: &str) -> Vec<String> {
    const MUST: &str = "must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character";
    const EXAMPLES: &str = "'MyName',  or 'my.name',  or '123-abc', ";
    let mut wrong = Vec::new();
    let parts: Vec<&str> = value.split('/').collect();
    let name = match parts[..] {
        [name] => name,
        [prefix, name] => {
            let reasons = match prefix {
                "" => vec!["must be non-empty".into()],
                prefix => dns_subdomain(prefix),
            };
            wrong.extend(reasons.into_iter().map(|reason| format!("prefix part {reason}")));
            name
        }
        _ => {
            let shape = shape(MUST, KEY_SHAPE, EXAMPLES);
            return vec![format!(
                "a valid label key {shape} with an optional DNS subdomain prefix and '/' (e.g. 'example.com/MyName')"
            )];
        }
    };
    match name.len() {
        0 => wrong.push("name part must be non-empty".into()),
        _ => wrong.extend(too_long(name, LABEL).into_iter().map(|reason| format!("name part {reason}"))),
    }
    if !is_key(name) {
        wrong.push(format!("name part {}", shape(MUST, KEY_SHAPE, EXAMPLES)));
    }
    wrong
}

/// The value of a label; may be empty.
pub fn label_value(value: &str) -> Vec<String> {
    let mut wrong = too_long(value, LABEL);
    if !value.is_empty() && !is_key(value) {
        wrong.push(shape(
            "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character",
            "(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?",
            "'MyValue',  or 'my_value',  or '12345', ",
        ));
    }
    wrong
}

/// A key of a ConfigMap or Secret, which becomes a file name.
pub fn config_key(value: &str) -> Vec<String> {
    let mut wrong = too_long(value, SUBDOMAIN);
    if value.is_empty() || !value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte)) {
        wrong.push(shape(
            "a valid config key must consist of alphanumeric characters, '-', '_' or '.'",
            "[-._a-zA-Z0-9]+",
            "'key.name',  or 'KEY_NAME',  or 'key-name', ",
        ));
    }
    match value {
        "." => wrong.push("must not be '.'".into()),
        ".." => wrong.push("must not be '..'".into()),
        _ if value.starts_with("..") => wrong.push("must not start with '..'".into()),
        _ => {}
    }
    wrong
}

fn is_dns_label(value: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = (value.bytes().next(), value.bytes().next_back());
    matches!(ends, (Some(first), Some(last)) if inner(first) && inner(last))
        && value.bytes().all(|byte| inner(byte) || byte == b'-')
}

fn is_dns_subdomain(value: &str) -> bool {
    value.split('.').all(is_dns_label)
}

fn is_key(value: &str) -> bool {
    let ends = (value.bytes().next(), value.bytes().next_back());
    matches!(ends, (Some(first), Some(last)) if first.is_ascii_alphanumeric() && last.is_ascii_alphanumeric())
        && value.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn too_long(value: &str, most: usize) -> Vec<String> {
    match value.len() > most {
        true => vec![format!("must be no more than {most} characters")],
        false => Vec::new(),
    }
}

fn shape(rule: &str, shape: &str, examples: &str) -> String {
    format!("{rule} (e.g. {examples}regex used for validation is '{shape}')")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_good_names_from_bad() {
        type Check = fn(&str) -> Vec<String>;
        let long = |length: usize| "a".repeat(length);
        let cases: [(&str, Check, Vec<String>, Vec<String>); 5] = [
            (
                "label",
                dns_label,
                vec!["a".into(), "a-b".into(), "0".into(), "1-2--3".into(), long(63)],
                ["", "-a", "a-", "A", "a_b", "a.b", "ä", "a b"]
                    .map(String::from)
                    .into_iter()
                    .chain([long(64)])
                    .collect(),
            ),
            (
                "subdomain",
                dns_subdomain,
                vec!["a".into(), "a.b-c.0".into(), long(253)],
                ["", ".", "a..b", ".a", "a.", "a.-b", "A.b"]
                    .map(String::from)
                    .into_iter()
                    .chain([long(254)])
                    .collect(),
            ),
            (
                "qualified",
                qualified_name,
                vec![
                    "simple".into(),
                    "1.2.3.4/5678".into(),
                    "Uppercase_1.x".into(),
                    "a.b/C".into(),
                    long(63),
                ],
                ["", "/a", "a/", "a/b/c", "A/b", "-a", "a-", "a b", "a/-b"]
                    .map(String::from)
                    .into_iter()
                    .chain([long(64)])
                    .collect(),
            ),
            (
                "value",
                label_value,
                vec!["".into(), "1".into(), "A_b.c-D".into(), long(63)],
                ["-a", "a-", "a/b", "a b"].map(String::from).into_iter().chain([long(64)]).collect(),
            ),
            (
                "config key",
                config_key,
                vec!["a".into(), ".a".into(), "A_b-.c".into(), "-".into()],
                ["", ".", "..", "..a", "a/b"].map(String::from).to_vec(),
            ),
        ];
        for (what, check, good, bad) in cases {
            for name in good {
                assert_eq!(check(&name), Vec::<String>::new(), "{what} {name}");
            }
            for name in bad {
                assert_ne!(check(&name), Vec::<String>::new(), "{what} {name}");
            }
        }
    }

    #[test]
    fn words_refusals_as_kubernetes_does() {
        assert_eq!(
            dns_subdomain("A"),
            [
                r"a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
            ]
        );
        assert_eq!(dns_label("a.b"), ["must not contain dots"]);
        assert_eq!(
            qualified_name("a_"),
            [
                "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')"
            ]
        );
        assert_eq!(label_value(&"a".repeat(64)), ["must be no more than 63 characters"]);
    }
}
