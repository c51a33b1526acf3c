//! Collecting broken rules.

use serde_json::Value;
use values::{Quantity, names};

use super::fields::{entries, items, same, text};
use crate::schema::FieldError;

/// Violations that are told of.
const MOST: usize = 100;

/// The rules that an object breaks.
#[derive(Debug, Default)]
pub(crate) struct Violations(Vec<FieldError>);

impl Violations {
    pub(super) fn into_vec(self) -> Vec<FieldError> {
        self.0
    }

    /// More than these help nobody.
    pub(super) fn add(&mut self, error: FieldError) {
        if !self.are_many() {
            self.0.push(error);
        }
    }

    /// Whether so much is wrong that one need not look any further.
    pub(super) fn are_many(&self) -> bool {
        self.0.len() >= MOST
    }

    pub(super) fn invalid(&mut self, field: impl Into<String>, value: &Value, detail: &str) {
        self.add(FieldError::invalid(field, value.clone(), detail));
    }

    pub(super) fn forbid(&mut self, field: impl Into<String>, detail: &str) {
        self.add(FieldError::forbidden(field, detail));
    }

    /// The value is there and not empty; otherwise that is the violation.
    pub(super) fn require(&mut self, field: impl Into<String>, value: &Value, detail: &str) -> bool {
        let there = match value {
            Value::Null => false,
            Value::String(text) => !text.is_empty(),
            Value::Array(items) => !items.is_empty(),
            Value::Object(fields) => !fields.is_empty(),
            _ => true,
        };
        if !there {
            self.add(FieldError::required(field, detail));
        }
        there
    }

    /// The value, if set, is one of these.
    pub(super) fn one_of(&mut self, field: impl Into<String>, value: &Value, supported: &[&str]) {
        if !value.is_null() && !supported.contains(&text(value)) {
            self.add(FieldError::not_supported(field, value.clone(), supported.iter().copied()));
        }
    }

    /// The value, if set, is a good name by `rule`.
    pub(super) fn named(&mut self, field: &str, value: &Value, rule: fn(&str) -> Vec<String>) {
        if let Some(name) = value.as_str() {
            for message in rule(name) {
                self.invalid(field, value, &message);
            }
        }
    }

    /// The value is there and a good name by `rule`.
    pub(super) fn require_named(&mut self, field: &str, value: &Value, rule: fn(&str) -> Vec<String>) {
        if self.require(field, value, "") {
            self.named(field, value, rule);
        }
    }

    pub(super) fn immutable(&mut self, field: impl Into<String>, new: &Value, old: &Value) {
        if !same(new, old) {
            self.invalid(field, new, "field is immutable");
        }
    }

    /// The quantity, which the schema already found well-formed, is above zero.
    pub(super) fn positive(&mut self, field: impl Into<String>, value: &Value) {
        if quantity(value).is_some_and(|quantity| quantity <= Quantity::zero()) {
            self.invalid(field, value, "must be greater than zero");
        }
    }

    /// The quantity is not negative.
    pub(super) fn not_negative(&mut self, field: impl Into<String>, value: &Value) {
        let negative = quantity(value).is_some_and(|quantity| quantity < Quantity::zero());
        if negative || value.as_i64().is_some_and(|number| number < 0) {
            self.invalid(field, value, "must be greater than or equal to 0");
        }
    }

    /// The path stays below where it starts.
    pub(super) fn no_backsteps(&mut self, field: impl Into<String>, value: &Value) {
        if text(value).split('/').any(|part| part == "..") {
            self.invalid(field, value, "must not contain '..'");
        }
    }

    /// A CSI driver's name.
    pub(super) fn driver_name(&mut self, field: &str, value: &Value) {
        if !self.require(field, value, "") {
            return;
        }
        if text(value).len() > 63 {
            self.add(FieldError::too_long(field, 63));
        }
        for message in names::dns_subdomain(&text(value).to_lowercase()) {
            self.invalid(field, value, &message);
        }
    }

    /// A `metav1.LabelSelector`.
    pub(super) fn label_selector(&mut self, field: &str, selector: &Value) {
        for (key, value) in entries(&selector["matchLabels"]) {
            let field = format!("{field}.matchLabels");
            self.named(&field, &Value::from(key.as_str()), names::qualified_name);
            self.named(&field, value, names::label_value);
        }
        for (index, requirement) in items(&selector["matchExpressions"]).iter().enumerate() {
            let field = format!("{field}.matchExpressions[{index}]");
            let values = items(&requirement["values"]);
            match text(&requirement["operator"]) {
                "In" | "NotIn" if values.is_empty() => {
                    let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                    self.add(FieldError::required(format!("{field}.values"), detail));
                }
                "Exists" | "DoesNotExist" if !values.is_empty() => {
                    let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                    self.forbid(format!("{field}.values"), detail);
                }
                "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
                _ => self.invalid(
                    format!("{field}.operator"),
                    &requirement["operator"],
                    "not a valid selector operator",
                ),
            }
            self.named(&format!("{field}.key"), &requirement["key"], names::qualified_name);
        }
    }

    /// A `core/v1 NodeSelector`.
    pub(super) fn node_selector(&mut self, field: &str, selector: &Value) {
        let terms = &selector["nodeSelectorTerms"];
        let field = format!("{field}.nodeSelectorTerms");
        self.require(&field, terms, "must have at least one node selector term");
        for (index, term) in items(terms).iter().enumerate() {
            for (at, requirement) in items(&term["matchExpressions"]).iter().enumerate() {
                self.node_requirement(&format!("{field}[{index}].matchExpressions[{at}]"), requirement);
            }
            for (at, requirement) in items(&term["matchFields"]).iter().enumerate() {
                if requirement["key"] != "metadata.name" {
                    let field = format!("{field}[{index}].matchFields[{at}].key");
                    self.invalid(field, &requirement["key"], "not a valid field selector key");
                }
            }
        }
    }

    fn node_requirement(&mut self, field: &str, requirement: &Value) {
        let values = items(&requirement["values"]);
        match text(&requirement["operator"]) {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                self.add(FieldError::required(format!("{field}.values"), detail));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                self.forbid(format!("{field}.values"), detail);
            }
            "Gt" | "Lt" if values.len() != 1 => {
                let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                self.add(FieldError::required(format!("{field}.values"), detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            _ => {
                self.invalid(
                    format!("{field}.operator"),
                    &requirement["operator"],
                    "not a valid selector operator",
                );
            }
        }
        self.named(&format!("{field}.key"), &requirement["key"], names::qualified_name);
    }
}

/// The quantity of a value, if it is one.
pub(super) fn quantity(value: &Value) -> Option<Quantity> {
    match value {
        Value::String(text) => text.parse().ok(),
        Value::Number(number) => number.to_string().parse().ok(),
        _ => None,
    }
}
