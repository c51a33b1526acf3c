//! Node selectors: which nodes a volume or a pod can be on.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm};

/// Whether any term of the selector holds for a node. No terms admit no node.
pub fn admits(selector: &NodeSelector, node_name: &str, labels: &BTreeMap<String, String>) -> bool {
    selector.node_selector_terms.iter().any(|term| term_admits(term, node_name, labels))
}

/// Whether every requirement of the term holds for a node. A term without requirements holds for none.
pub fn term_admits(term: &NodeSelectorTerm, node_name: &str, labels: &BTreeMap<String, String>) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|one| holds(one, labels.get(&one.key).map(String::as_str)))
        // A node's name is the only field that can be selected by.
        && fields.iter().all(|one| one.key == "metadata.name" && holds(one, Some(node_name)))
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = || value.is_some_and(|value| values.iter().any(|one| one == value));
    match requirement.operator.as_str() {
        "In" => listed(),
        "NotIn" => !listed(),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers(value, values).is_some_and(|(value, bound)| value > bound),
        "Lt" => numbers(value, values).is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

fn numbers(value: Option<&str>, values: &[String]) -> Option<(i64, i64)> {
    let [bound] = values else { return None };
    Some((value?.parse().ok()?, bound.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    type Requirement = (&'static str, &'static str, &'static [&'static str]);

    fn requirements(of: &[Requirement]) -> Option<Vec<NodeSelectorRequirement>> {
        let requirement = |(key, operator, values): &Requirement| NodeSelectorRequirement {
            key: (*key).to_owned(),
            operator: (*operator).to_owned(),
            values: Some(values.iter().map(|value| (*value).to_owned()).collect()),
        };
        Some(of.iter().map(requirement).collect())
    }

    #[test]
    fn terms_are_alternatives_and_requirements_add_up() {
        let labels: BTreeMap<String, String> =
            [("zone", "a"), ("cores", "8")].map(|(key, value)| (key.to_owned(), value.to_owned())).into();
        let cases: &[(&[&[Requirement]], bool)] = &[
            (&[], false),
            (&[&[]], false),
            (&[&[("zone", "In", &["a", "b"])]], true),
            (&[&[("zone", "In", &["b"])]], false),
            (&[&[("zone", "In", &["b"])], &[("cores", "Exists", &[])]], true),
            (&[&[("zone", "In", &["a"]), ("cores", "DoesNotExist", &[])]], false),
            (&[&[("zone", "NotIn", &["a"])]], false),
            (&[&[("disk", "NotIn", &["ssd"])]], true),
            (&[&[("disk", "DoesNotExist", &[])]], true),
            (&[&[("cores", "Gt", &["7"])]], true),
            (&[&[("cores", "Lt", &["8"])]], false),
            (&[&[("zone", "Gt", &["1"])]], false),
            (&[&[("zone", "Resembles", &["a"])]], false),
        ];
        for (terms, admitted) in cases {
            let node_selector_terms = terms
                .iter()
                .map(|term| NodeSelectorTerm { match_expressions: requirements(term), match_fields: None })
                .collect();
            assert_eq!(admits(&NodeSelector { node_selector_terms }, "n1", &labels), *admitted, "{terms:?}");
        }
    }

    #[test]
    fn a_node_can_be_selected_by_name() {
        for (field, name, admitted) in
            [("metadata.name", "n1", true), ("metadata.name", "n2", false), ("spec.podCIDR", "n1", false)]
        {
            let values = Some(vec![name.to_owned()]);
            let requirement =
                NodeSelectorRequirement { key: field.to_owned(), operator: "In".to_owned(), values };
            let term = NodeSelectorTerm { match_expressions: None, match_fields: Some(vec![requirement]) };
            assert_eq!(term_admits(&term, "n1", &BTreeMap::new()), admitted, "{field} {name}");
        }
    }
}
