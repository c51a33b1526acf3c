//! Node selectors: which nodes a volume or a pod can be on.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};

/// A selector read for matching against many nodes.
pub fn selector(of: &NodeSelector) -> values::NodeSelector {
    values::NodeSelector::new(of.node_selector_terms.iter().map(term))
}

/// A term read for matching against many nodes.
pub fn term(of: &NodeSelectorTerm) -> Result<values::NodeSelectorTerm, values::SelectorError> {
    values::NodeSelectorTerm::new(rows(of.match_expressions.as_deref()), rows(of.match_fields.as_deref()))
}

fn rows(of: Option<&[NodeSelectorRequirement]>) -> impl Iterator<Item = (&str, &str, &[String])> {
    of.unwrap_or_default()
        .iter()
        .map(|one| (one.key.as_str(), one.operator.as_str(), one.values.as_deref().unwrap_or_default()))
}

/// Whether any term of the selector holds for a node. No terms, and terms that can't be read, admit no node.
pub fn admits(of: &NodeSelector, node_name: &str, labels: &BTreeMap<String, String>) -> bool {
    selector(of).matches(node_name, labels).unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_and_fields_reach_the_matcher() {
        let requirement = |key: &str, value: &str| NodeSelectorRequirement {
            key: key.to_owned(),
            operator: "In".to_owned(),
            values: Some(vec![value.to_owned()]),
        };
        let labels = BTreeMap::from([("zone".to_owned(), "a".to_owned())]);
        for (zone, name, admitted) in [("a", "n1", true), ("b", "n1", false), ("a", "n2", false)] {
            let term = NodeSelectorTerm {
                match_expressions: Some(vec![requirement("zone", zone)]),
                match_fields: Some(vec![requirement("metadata.name", name)]),
            };
            let of = NodeSelector { node_selector_terms: vec![NodeSelectorTerm::default(), term] };
            assert_eq!(admits(&of, "n1", &labels), admitted, "{zone} {name}");
        }
        assert!(!admits(&NodeSelector::default(), "n1", &labels));
    }
}
