//! Field selectors, as in `?fieldSelector=spec.nodeName=a,status.phase!=Failed`.

use std::str::FromStr;

/// Why a text is not a field selector.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FieldSelectorError {
    /// A term without `=`, `==` or `!=`.
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Term {
        /// The whole selector.
        selector: String,
        /// The term.
        term: String,
    },
    /// A backslash before something that needs none, or at the end.
    #[error("invalid field selector: invalid escape sequence: {0}")]
    Escape(String),
    /// A `=` in a value without a backslash.
    #[error("invalid field selector: unescaped character in value: {0}")]
    Unescaped(char),
}

/// One comparison.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldTerm {
    /// Path of the field: `metadata.name`.
    pub field: String,
    /// Whether the field must have the value, or must not.
    pub equal: bool,
    /// The value.
    pub value: String,
}

/// Comparisons of fields that must all hold. Without any it matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<FieldTerm>,
}

impl FieldSelector {
    /// A selector from its terms.
    pub fn new(terms: impl IntoIterator<Item = FieldTerm>) -> FieldSelector {
        FieldSelector { terms: terms.into_iter().collect() }
    }

    /// The comparisons; whoever knows the kind checks that it can select by these fields.
    pub fn terms(&self) -> &[FieldTerm] {
        &self.terms
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The value that `field` must have, if there is one.
    pub fn required(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|term| term.equal && term.field == field).map(|term| &*term.value)
    }

    /// Whether the fields that `field` looks up satisfy every comparison. A missing field is empty.
    pub fn matches<V: AsRef<str>>(&self, field: impl Fn(&str) -> Option<V>) -> bool {
        self.terms.iter().all(|term| {
            let found = field(&term.field);
            (found.as_ref().map_or("", V::as_ref) == term.value) == term.equal
        })
    }
}

impl FromStr for FieldSelector {
    type Err = FieldSelectorError;

    fn from_str(text: &str) -> Result<FieldSelector, FieldSelectorError> {
        let terms = split_terms(text).into_iter().filter(|term| !term.is_empty());
        let terms = terms.map(|term| {
            let at = term.find(['=', '!']).and_then(|first| {
                // A `!` that no `=` follows belongs to the field's name, as far as the syntax goes.
                (first..term.len()).find(|at| term[*at..].starts_with('=') || term[*at..].starts_with("!="))
            });
            let Some(at) = at else {
                return Err(FieldSelectorError::Term { selector: text.into(), term: term.into() });
            };
            let (field, rest) = term.split_at(at);
            let operator =
                ["!=", "==", "="].into_iter().find(|operator| rest.starts_with(operator)).unwrap_or("=");
            let value = unescape(&rest[operator.len()..])?;
            Ok(FieldTerm { field: field.into(), equal: operator != "!=", value })
        });
        Ok(FieldSelector { terms: terms.collect::<Result<_, _>>()? })
    }
}

/// Splits at commas that no backslash precedes.
fn split_terms(text: &str) -> Vec<&str> {
    let (mut terms, mut start, mut escaped) = (Vec::new(), 0, false);
    for (at, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn unescape(value: &str) -> Result<String, FieldSelectorError> {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(escaped @ ('\\' | ',' | '=')) => plain.push(escaped),
                other => {
                    return Err(FieldSelectorError::Escape(std::iter::once('\\').chain(other).collect()));
                }
            },
            '=' => return Err(FieldSelectorError::Unescaped('=')),
            other => plain.push(other),
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parses_and_matches() {
        let fields = |field: &str| match field {
            "metadata.name" => Some("a"),
            "spec.nodeName" => Some("x=y,z"),
            _ => None,
        };
        for (text, expected) in [
            ("", true),
            (",,", true),
            ("metadata.name=a", true),
            ("metadata.name==a", true),
            ("metadata.name=b", false),
            ("metadata.name!=b", true),
            ("metadata.name!=a", false),
            ("metadata.name=a,spec.nodeName!=", true),
            ("status.phase=", true),
            ("status.phase!=Failed", true),
            (r"spec.nodeName=x\=y\,z", true),
        ] {
            let selector: FieldSelector = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            assert_eq!(selector.matches(fields), expected, "{text}");
        }
    }

    #[test]
    fn refuses() {
        use FieldSelectorError::*;
        let term = |selector: &str, term: &str| Term { selector: selector.into(), term: term.into() };
        for (text, error) in [
            ("x", term("x", "x")),
            ("a=b,x", term("a=b,x", "x")),
            ("x!y", term("x!y", "x!y")),
            ("x=a=b", Unescaped('=')),
            (r"x=a\b", Escape(r"\b".into())),
            (r"x=a\", Escape(r"\".into())),
        ] {
            assert_eq!(text.parse::<FieldSelector>(), Err(error), "{text}");
        }
        assert_eq!("a!=1,b=2".parse::<FieldSelector>().unwrap().required("b"), Some("2"));
    }
}
