//! Label selectors: `matchLabels`, `matchExpressions`, and what node selector terms share with them.

use std::collections::BTreeMap;
use std::str::FromStr;

use crate::{label_syntax, names};

/// How a requirement relates a label to its values.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operator {
    /// The label is there and has one of the values; also `=` and `==`.
    In,
    /// The label is not there, or has none of the values; also `!=`.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
    /// The label is an integer above the value.
    Gt,
    /// The label is an integer below the value.
    Lt,
}

impl FromStr for Operator {
    type Err = SelectorError;

    fn from_str(name: &str) -> Result<Operator, SelectorError> {
        Ok(match name {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            "Gt" => Operator::Gt,
            "Lt" => Operator::Lt,
            other => return Err(SelectorError::Operator(other.into())),
        })
    }
}

/// Why a selector can't be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// The text is not a selector.
    #[error("{0}")]
    Syntax(String),
    /// A key that no label has.
    #[error("key: Invalid value: \"{key}\": {reason}")]
    Key {
        /// The key.
        key: String,
        /// Why it is none.
        reason: String,
    },
    /// A value that no label has.
    #[error("values[{key}]: Invalid value: \"{value}\": {reason}")]
    Value {
        /// The label's key.
        key: String,
        /// The value.
        value: String,
        /// Why it is none.
        reason: String,
    },
    /// Too many or too few values for the operator.
    #[error("values of \"{key}\": Invalid value: {reason}")]
    Values {
        /// The label's key.
        key: String,
        /// What the operator wants.
        reason: &'static str,
    },
    /// There is no such operator here.
    #[error("\"{0}\" is not a valid label selector operator")]
    Operator(String),
}

/// One condition on labels.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

impl Requirement {
    /// Checks key, values and their number as Kubernetes does.
    pub fn new(
        key: impl Into<String>,
        operator: Operator,
        values: impl IntoIterator<Item = impl Into<String>>,
    ) -> Result<Requirement, SelectorError> {
        let key = key.into();
        let values: Vec<String> = values.into_iter().map(Into::into).collect();
        let reasons = names::qualified_name(&key);
        if !reasons.is_empty() {
            return Err(SelectorError::Key { key, reason: reasons.join("; ") });
        }
        let wrong = match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                Some("for 'in', 'notin' operators, values set can't be empty")
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                Some("values set must be empty for exists and does not exist")
            }
            Operator::Gt | Operator::Lt if values.len() != 1 => {
                Some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
            Operator::Gt | Operator::Lt if values[0].parse::<i64>().is_err() => {
                Some("for 'Gt', 'Lt' operators, the value must be an integer")
            }
            _ => None,
        };
        if let Some(reason) = wrong {
            return Err(SelectorError::Values { key, reason });
        }
        for value in &values {
            let reasons = names::label_value(value);
            if !reasons.is_empty() {
                return Err(SelectorError::Value { key, value: value.clone(), reason: reasons.join("; ") });
            }
        }
        Ok(Requirement { key, operator, values })
    }

    /// The label's key.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// How the values relate to the label.
    pub fn operator(&self) -> Operator {
        self.operator
    }

    /// The values, in the order written.
    pub fn values(&self) -> &[String] {
        &self.values
    }

    /// Whether a label value, or the label's absence, satisfies this.
    pub fn matches(&self, label: Option<&str>) -> bool {
        let number = |text: &str| text.parse::<i64>().ok();
        match (self.operator, label) {
            (Operator::In, Some(label)) => self.values.iter().any(|value| value == label),
            (Operator::NotIn, Some(label)) => self.values.iter().all(|value| value != label),
            (Operator::Gt, Some(label)) => {
                number(label).is_some_and(|label| Some(label) > number(&self.values[0]))
            }
            (Operator::Lt, Some(label)) => {
                number(label).is_some_and(|label| Some(label) < number(&self.values[0]))
            }
            (Operator::Exists, label) => label.is_some(),
            (Operator::DoesNotExist, label) => label.is_none(),
            (Operator::NotIn, None) => true,
            (Operator::In | Operator::Gt | Operator::Lt, None) => false,
        }
    }
}

/// Conditions on labels that must all hold. Without any it matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
}

impl LabelSelector {
    /// A selector from an object's `matchLabels` and `matchExpressions` (key, operator, values).
    pub fn new<'a>(
        labels: impl IntoIterator<Item = (&'a str, &'a str)>,
        expressions: impl IntoIterator<Item = (&'a str, &'a str, &'a [String])>,
    ) -> Result<LabelSelector, SelectorError> {
        let labels = labels.into_iter().map(|(key, value)| Requirement::new(key, Operator::In, [value]));
        let expressions = expressions.into_iter().map(|(key, operator, values)| match operator.parse()? {
            Operator::Gt | Operator::Lt => Err(SelectorError::Operator(operator.into())),
            operator => Requirement::new(key, operator, values),
        });
        Ok(LabelSelector { requirements: labels.chain(expressions).collect::<Result<_, _>>()? })
    }

    /// A selector from the text form, as in `?labelSelector=app=web,tier in (front,back),!legacy`.
    pub fn parse(text: &str) -> Result<LabelSelector, SelectorError> {
        Ok(LabelSelector { requirements: label_syntax::parse(text)? })
    }

    /// Whether it matches everything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// The conditions.
    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether the labels that `label` looks up satisfy every condition.
    pub fn matches<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.requirements.iter().all(|requirement| requirement.matches(label(&requirement.key)))
    }

    /// Whether an object's labels satisfy every condition.
    pub fn matches_labels(&self, labels: Option<&BTreeMap<String, String>>) -> bool {
        self.matches(|key| labels?.get(key).map(String::as_str))
    }
}

impl FromIterator<Requirement> for LabelSelector {
    fn from_iter<I: IntoIterator<Item = Requirement>>(requirements: I) -> LabelSelector {
        LabelSelector { requirements: requirements.into_iter().collect() }
    }
}

impl FromStr for LabelSelector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<LabelSelector, SelectorError> {
        LabelSelector::parse(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        let pairs = text.split(',').filter_map(|pair| pair.split_once('='));
        pairs.map(|(key, value)| (key.into(), value.into())).collect()
    }

    #[test]
    fn matches_as_kubernetes_does() {
        for (selector, object, expected) in [
            ("", "x=y", true),
            ("", "", true),
            ("x=y", "x=y", true),
            ("x==y", "x=y", true),
            ("x=y,z=w", "x=y,z=w", true),
            ("x=y,z=w", "x=y", false),
            ("x!=y,z!=w", "x=z,z=a", true),
            ("x!=y", "", true),
            ("x=", "x=", true),
            ("x=", "", false),
            ("x", "x=z", true),
            ("x", "y=z", false),
            ("!x", "y=z", true),
            ("!x", "x=z", false),
            ("! x , y", "y=z", true),
            ("x in (a,b)", "x=b", true),
            ("x in (a,b)", "x=c", false),
            ("x in (a,b)", "y=a", false),
            ("x notin (a,b)", "x=c", true),
            ("x notin (a,b)", "y=a", true),
            ("x notin (a,b)", "x=a", false),
            ("x in (,a)", "x=", true),
            ("x in ()", "x=", true),
            ("x in (in)", "x=in", true),
            ("in in (in)", "in=in", true),
            ("notin=in", "notin=in", true),
            ("x>1", "x=2", true),
            ("x>1", "x=1", false),
            ("x<7", "x=6", true),
            ("x<7", "x=z", false),
            ("x>1", "", false),
            ("example.com/a.b_c=D", "example.com/a.b_c=D", true),
        ] {
            let parsed = LabelSelector::parse(selector).unwrap_or_else(|error| panic!("{selector}: {error}"));
            assert_eq!(parsed.matches_labels(Some(&labels(object))), expected, "{selector} on {object}");
        }
        assert!(LabelSelector::parse("!x").unwrap().matches_labels(None));
    }

    #[test]
    fn refuses_what_kubernetes_refuses() {
        for (selector, error) in [
            (",", "found ',', expected: !, identifier, or 'end of string'"),
            ("x=a,", "found '', expected: identifier after ','"),
            ("x=a||y=b", "values[x]: Invalid value"),
            ("x==a==b", "found '==', expected: ',' or 'end of string'"),
            ("!x=a", "found '=', expected: ',' or 'end of string'"),
            ("x in a", "found 'a' expected: '('"),
            ("x in (a", "found '', expected: ',' or ')'"),
            ("x a", "found 'a', expected: in, notin, =, ==, !=, >, <"),
            ("x>a", "the value must be an integer"),
            ("-x=a", "key: Invalid value: \"-x\""),
            ("x=a b", "found 'b', expected: ',' or 'end of string'"),
            ("x=(", "found '(', expected: identifier"),
        ] {
            let found = LabelSelector::parse(selector).expect_err(selector).to_string();
            assert!(found.contains(error), "{selector}: {found}");
        }
    }

    #[test]
    fn reads_objects() {
        let values = ["a".to_string(), "b".to_string()];
        let selector =
            LabelSelector::new([("app", "web")], [("tier", "In", &values[..]), ("old", "DoesNotExist", &[])]);
        let selector = selector.unwrap();
        assert!(selector.matches_labels(Some(&labels("app=web,tier=b"))));
        assert!(!selector.matches_labels(Some(&labels("app=web,tier=b,old=1"))));
        assert!(LabelSelector::new([], [("a", "Gt", &["1".to_string()][..])]).is_err());
        assert!(LabelSelector::new([], [("a", "In", &[][..])]).is_err());
    }
}
