//! Label and field selectors of lists, watches and collections to delete.

mod labels;

use std::collections::{BTreeMap, BTreeSet};

use crate::error::ApiError;
use crate::kinds::Kind;
use crate::seen::Facts;

/// What a request selects: labels and fields, all of which must match.
#[derive(Debug, Clone, Default)]
pub(crate) struct Selection {
    labels: Vec<LabelRule>,
    /// By path: each is looked up once in an object, however many rules it has.
    fields: BTreeMap<Vec<String>, FieldValues>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct LabelRule {
    key: String,
    test: LabelTest,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum LabelTest {
    Exists,
    Absent,
    In(BTreeSet<String>),
    /// Also true without the label.
    NotIn(BTreeSet<String>),
    Greater(i64),
    Less(i64),
}

/// What a field must be, and must not be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct FieldValues {
    /// What the field counts as where it is not set.
    unset: &'static str,
    equal: BTreeSet<String>,
    unequal: BTreeSet<String>,
}

impl FieldValues {
    fn allow(&self, value: &str) -> bool {
        // Two different values at once are none.
        self.equal.iter().take(2).all(|wanted| wanted == value) && !self.unequal.contains(value)
    }
}

impl Selection {
    /// Parses both selectors; `selectable` are a custom kind's `selectableFields`, such as `.spec.node`.
    pub(crate) fn parse(
        kind: &Kind,
        labels: &str,
        fields: &str,
        selectable: &[String],
    ) -> Result<Self, ApiError> {
        Ok(Self { labels: labels::parse(labels)?, fields: parse_fields(kind, fields, selectable)? })
    }

    /// Whether everything matches, so that nothing has to be looked at.
    pub(crate) fn is_everything(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    /// The one name that can match, from `metadata.name=`.
    pub(crate) fn name(&self) -> Option<&str> {
        let values = self.fields.iter().find(|(path, _)| *path == &["metadata", "name"])?.1;
        values.equal.first().map(String::as_str)
    }

    /// Whether an object of this name can match at all.
    pub(crate) fn allows_name(&self, name: &str) -> bool {
        self.name().is_none_or(|wanted| wanted == name)
    }

    /// Whether an object matches. Only what is asked for is looked up in it.
    pub(crate) fn matches(&self, object: &Facts) -> bool {
        self.is_everything()
            || self.matches_labels(object)
                && self.fields.iter().all(|(path, values)| {
                    let found = object.field(path);
                    values.allow(if found.is_empty() { values.unset } else { &found })
                })
    }

    fn matches_labels(&self, object: &Facts) -> bool {
        self.labels.iter().all(|rule| {
            let value = object.labels().get(&rule.key);
            let number = || value.and_then(|value| value.parse::<i64>().ok());
            match &rule.test {
                LabelTest::Exists => value.is_some(),
                LabelTest::Absent => value.is_none(),
                LabelTest::In(set) => value.is_some_and(|value| set.contains(value)),
                LabelTest::NotIn(set) => value.is_none_or(|value| !set.contains(value)),
                LabelTest::Greater(bound) => number().is_some_and(|number| number > *bound),
                LabelTest::Less(bound) => number().is_some_and(|number| number < *bound),
            }
        })
    }
}

fn parse_fields(
    kind: &Kind,
    text: &str,
    selectable: &[String],
) -> Result<BTreeMap<Vec<String>, FieldValues>, ApiError> {
    let mut rules = BTreeMap::<_, FieldValues>::new();
    for term in split_escaped(text) {
        let (path, equal, value) = if let Some((path, value)) = term.split_once("!=") {
            (path, false, value)
        } else if let Some((path, value)) = term.split_once("==").or_else(|| term.split_once('=')) {
            (path, true, value)
        } else {
            return Err(ApiError::BadRequest(format!("invalid field selector: {term:?}")));
        };
        let own = kind.row.fields.iter().find(|field| field.label == path);
        if own.is_none() && !is_selectable(kind, path, selectable) {
            return Err(ApiError::BadRequest(match kind.row.fields.is_empty() && selectable.is_empty() {
                true => format!(
                    "{path:?} is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
                ),
                false => format!("field label not supported: {path}"),
            }));
        }
        let path = own.map_or(path, |field| field.path);
        let values = rules.entry(path.split('.').map(str::to_owned).collect()).or_default();
        values.unset = own.map_or("", |field| field.unset);
        let values = if equal { &mut values.equal } else { &mut values.unequal };
        values.insert(value.to_owned());
    }
    Ok(rules)
}

/// Splits at commas that no backslash escapes.
fn split_escaped(text: &str) -> Vec<String> {
    let mut terms = vec![String::new()];
    let mut chars = text.chars();
    while let Some(char) = chars.next() {
        match (char, terms.last_mut()) {
            ('\\', Some(term)) => term.extend(chars.next()),
            (',', _) => terms.push(String::new()),
            (char, Some(term)) => term.push(char),
            (_, None) => {}
        }
    }
    terms.retain(|term| !term.is_empty());
    terms
}

fn is_selectable(kind: &Kind, path: &str, selectable: &[String]) -> bool {
    if path == "metadata.name" || (path == "metadata.namespace" && kind.namespaced) {
        return true;
    }
    selectable.iter().any(|field| field.trim_start_matches('.') == path)
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::kinds::{self, builtin};

    fn selects(labels: &str, fields: &str) -> bool {
        let object =
            br#"{"metadata":{"name":"p","labels":{"app":"db","tier":"3"}},"spec":{"nodeName":"n1"}}"#;
        Selection::parse(builtin("Pod"), labels, fields, &[])
            .unwrap()
            .matches(&Facts::of(&Bytes::from_static(object)))
    }

    #[test]
    fn label_selectors_match_as_in_kubernetes() {
        for (selector, expected) in [
            ("", true),
            ("app=db", true),
            ("app==db", true),
            ("app=web", false),
            ("app!=web", true),
            ("absent!=x", true),
            ("app", true),
            ("!app", false),
            ("!absent", true),
            ("app in (db, web)", true),
            ("app in (web)", false),
            ("app notin (web),tier", true),
            ("absent notin (x)", true),
            ("tier>2", true),
            ("tier<3", false),
            ("app in (db),tier in (4)", false),
        ] {
            assert_eq!(selects(selector, ""), expected, "{selector}");
        }
        for bad in ["a b c", "in (x)", "a>b", "=x"] {
            assert!(labels::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn field_selectors_match_supported_fields_only() {
        for (selector, expected) in [
            ("metadata.name=p", true),
            ("metadata.name!=p", false),
            ("spec.nodeName=n1", true),
            ("spec.nodeName=", false),
            ("status.phase=", true),
            ("spec.nodeName==n1,metadata.name=q", false),
            ("spec.hostNetwork=false", true),
            ("spec.hostNetwork!=false", false),
            ("spec.hostNetwork=", false),
        ] {
            assert_eq!(selects("", selector), expected, "{selector}");
        }
        let refused = Selection::parse(builtin("ConfigMap"), "", "data.x=1", &[]);
        let known = r#""data.x" is not a known field selector: only "metadata.name", "metadata.namespace""#;
        assert_eq!(refused.unwrap_err().to_string(), known);
        let row = kinds::custom("g", "Drive");
        let custom = Kind { group: "g".into(), kind: "Drive".into(), row, ..builtin("Node").clone() };
        assert!(Selection::parse(&custom, "", "spec.node=a", &[".spec.node".to_owned()]).is_ok());
    }
}
