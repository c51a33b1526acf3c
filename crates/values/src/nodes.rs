//! Node selectors: which nodes a volume can be used on, or a pod run on.

use std::collections::BTreeMap;

use crate::{FieldSelector, FieldTerm, Operator, Requirement, SelectorError};

/// Conditions on one node that must all hold. Without any, it matches no node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSelectorTerm {
    expressions: Vec<Requirement>,
    fields: FieldSelector,
}

impl NodeSelectorTerm {
    /// A term from `matchExpressions` and `matchFields`, each as key, operator and values.
    pub fn new<'a>(
        expressions: impl IntoIterator<Item = (&'a str, &'a str, &'a [String])>,
        fields: impl IntoIterator<Item = (&'a str, &'a str, &'a [String])>,
    ) -> Result<NodeSelectorTerm, SelectorError> {
        let expressions = expressions
            .into_iter()
            .map(|(key, operator, values)| Requirement::new(key, operator.parse()?, values));
        let fields = fields.into_iter().map(|(field, operator, values)| {
            let equal = match operator.parse()? {
                Operator::In => true,
                Operator::NotIn => false,
                _ => return Err(SelectorError::Operator(operator.into())),
            };
            let [value] = values else {
                return Err(SelectorError::Values { key: field.into(), reason: "must have one element" });
            };
            Ok(FieldTerm { field: field.into(), equal, value: value.clone() })
        });
        Ok(NodeSelectorTerm {
            expressions: expressions.collect::<Result<_, _>>()?,
            fields: FieldSelector::new(fields.collect::<Result<Vec<_>, _>>()?),
        })
    }

    /// Whether a node satisfies every condition. `metadata.name` is the only field that nodes are selected by.
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        if self.expressions.is_empty() && self.fields.is_empty() {
            return false;
        }
        let label = |key: &str| labels.get(key).map(String::as_str);
        self.expressions.iter().all(|requirement| requirement.matches(label(requirement.key())))
            && self.fields.matches(|field| (field == "metadata.name").then_some(name))
    }
}

/// Terms of which one must match. A term that can't be read matches nothing and counts only when no other matches, as
/// in Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeSelector {
    terms: Vec<Result<NodeSelectorTerm, SelectorError>>,
}

impl NodeSelector {
    /// A selector from its terms.
    pub fn new(terms: impl IntoIterator<Item = Result<NodeSelectorTerm, SelectorError>>) -> NodeSelector {
        NodeSelector { terms: terms.into_iter().collect() }
    }

    /// Whether some term matches the node.
    pub fn matches(&self, name: &str, labels: &BTreeMap<String, String>) -> Result<bool, SelectorError> {
        if self.terms.iter().flatten().any(|term| term.matches(name, labels)) {
            return Ok(true);
        }
        match self.terms.iter().find_map(|term| term.as_ref().err()) {
            Some(error) => Err(error.clone()),
            None => Ok(false),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn terms_are_alternatives_of_conditions() {
        let labels: BTreeMap<String, String> =
            [("zone", "a"), ("cpus", "8")].map(|(key, value)| (key.into(), value.into())).into();
        let values = |list: &[&str]| list.iter().map(|value| value.to_string()).collect::<Vec<_>>();
        let (a, b, four, node, two) =
            (values(&["a"]), values(&["b"]), values(&["4"]), values(&["n1"]), values(&["n1", "n2"]));
        type Row<'a> = (&'a str, &'a str, &'a [String]);
        let term =
            |labels: &[Row<'_>], fields: &[Row<'_>]| NodeSelectorTerm::new(labels.to_vec(), fields.to_vec());
        let in_a = term(&[("zone", "In", &a[..])], &[]);
        let in_b = term(&[("zone", "In", &b[..])], &[]);
        let broken = term(&[("zone", "Near", &a[..])], &[]);
        for (terms, expected) in [
            (vec![], Some(false)),
            (vec![term(&[], &[])], Some(false)),
            (vec![in_a.clone()], Some(true)),
            (vec![in_b.clone()], Some(false)),
            (vec![in_b.clone(), in_a.clone()], Some(true)),
            (vec![term(&[("zone", "In", &a[..]), ("cpus", "Gt", &four[..])], &[])], Some(true)),
            (vec![term(&[("zone", "In", &a[..]), ("cpus", "Lt", &four[..])], &[])], Some(false)),
            (vec![term(&[], &[("metadata.name", "In", &node[..])])], Some(true)),
            (vec![term(&[], &[("metadata.name", "NotIn", &node[..])])], Some(false)),
            (vec![term(&[], &[("metadata.name", "In", &two[..])])], None),
            (vec![term(&[], &[("metadata.name", "Exists", &[])])], None),
            (vec![broken.clone(), in_a], Some(true)),
            (vec![broken, in_b], None),
        ] {
            let selector = NodeSelector::new(terms);
            assert_eq!(selector.matches("n1", &labels).ok(), expected, "{selector:?}");
        }
    }
}
