//! Whether an answer is the expected one.

use serde_json::{Map, Value, json};

use crate::play::Answer;

/// # Errors
/// The first difference.
pub(crate) fn answer(expected: &Value, found: &Answer) -> Result<(), String> {
    if expected["code"] != json!(found.code) {
        let said = found.body["message"].as_str().unwrap_or(&found.text);
        let should = expected["message"].as_str().unwrap_or_default();
        return Err(format!("code {} ({said:.300}) and not {} ({should})", found.code, expected["code"]));
    }
    for warning in expected["warnings"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if !found.warnings.iter().any(|known| known == warning) {
            return Err(format!("no warning {warning:?}, but {:?}", found.warnings));
        }
    }
    if let Some(text) = expected["text"].as_str() {
        return if text == found.text { Ok(()) } else { Err(format!("{:?} and not {text:?}", found.text)) };
    }
    match expected.get("object") {
        Some(expected) => object(expected, &found.body),
        None => status(expected, &found.body),
    }
}

/// # Errors
/// The first difference.
pub(crate) fn object(expected: &Value, found: &Value) -> Result<(), String> {
    let comparable = |object: &Value| {
        let mut object = object.clone();
        forget(&mut object);
        object
    };
    same(&comparable(expected), &comparable(found), "")
}

/// Takes out what Orlop writes otherwise on purpose.
fn forget(object: &mut Value) {
    // Definitions are established, and get their finalizer, in the write that makes them.
    let definition = object["kind"] == "CustomResourceDefinition";
    if let Some(fields) = object.as_object_mut().filter(|_| definition) {
        fields.remove("status");
    }
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        // Nobody keeps account of managers yet.
        metadata.remove("managedFields");
        if definition {
            metadata.remove("finalizers");
        }
        // Lists of custom resources say that there is no more, all others leave it out.
        if metadata.get("continue").is_some_and(|token| token == "") {
            metadata.remove("continue");
        }
    }
    // The recorded server was run without admission of service accounts, so that pods named none.
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut)
        && spec.get("serviceAccountName").is_some_and(|name| name == "default")
    {
        spec.remove("serviceAccountName");
        spec.remove("serviceAccount");
    }
    for item in object.get_mut("items").and_then(Value::as_array_mut).into_iter().flatten() {
        forget(item);
        // Items of lists carry their type, as those of custom resources do everywhere.
        if let Some(fields) = item.as_object_mut() {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
    }
}

/// Words of Go's decoders, which nobody else has.
const GO: &[&str] = &[
    "json: ",
    "json parse error",
    "unexpected end of JSON input",
    "invalid character",
    "strconv.Parse",
    "pkg/runtime/scheme.go",
    "unknown conversion",
    "cannot restore map from slice",
    "StorageError: ",
];
/// Refusals that Kubernetes leaves at that, and after which Orlop says why.
const TERSE: &str = "the server rejected our request due to an error in our request";
/// The refused object stands here in full; Orlop does not repeat it.
const PATCHED: &str = " \"\" is invalid: patch: Invalid value: ";

fn status(expected: &Value, found: &Value) -> Result<(), String> {
    for field in ["status", "reason"] {
        if let Some(value) = expected.get(field) {
            same(value, &found[field], field)?;
        }
    }
    let (wanted, said) = (text(expected, "message"), text(found, "message"));
    if GO.iter().any(|words| wanted.contains(words)) && !wanted.starts_with(PATCHED) {
        return Ok(());
    }
    if wanted.starts_with(PATCHED) || wanted == TERSE {
        let start = if wanted == TERSE { TERSE } else { PATCHED };
        return if said.starts_with(start) {
            Ok(())
        } else {
            Err(format!("message {said:?} and not {wanted:?}"))
        };
    }
    // The server names several causes in any order.
    let mut causes: Vec<Value> = expected["causes"].as_array().cloned().unwrap_or_default();
    let bag = |text: &str| {
        let mut parts: Vec<char> = text.chars().collect();
        parts.sort_unstable();
        parts
    };
    let is_same = match causes.len() {
        0 | 1 => fits(&plain(&wanted), &plain(&said)),
        _ => bag(&plain(&wanted)) == bag(&plain(&said)) || wanted.contains("Invalid value: {"),
    };
    if !is_same {
        return Err(format!("message {said:?} and not {wanted:?}"));
    }
    let mut details = found["details"].clone();
    let mut found_causes: Vec<Value> =
        match details.as_object_mut().and_then(|details| details.remove("causes")) {
            Some(Value::Array(causes)) => causes,
            _ => Vec::new(),
        };
    if let Some(expected) = expected.get("details") {
        same(expected, &details, "details")?;
    }
    for cause in causes.iter_mut().chain(&mut found_causes) {
        if let Some(message) = cause["message"].as_str().map(plain) {
            cause["message"] = message.into();
        }
    }
    let order = |cause: &Value| (text(cause, "field"), text(cause, "reason"), text(cause, "message"));
    causes.sort_by_key(order);
    // Two parts of that server say the same of metadata.
    causes.dedup();
    found_causes.sort_by_key(order);
    same(&json!(causes), &json!(found_causes), "causes")
}

/// A message without what depends on how the server is written: structures as values, and differences of them.
fn plain(message: &str) -> String {
    let message = message.split('\n').next().unwrap_or_default();
    let Some((before, rest)) =
        ["Invalid value: {", "Invalid value: [{"].iter().find_map(|start| message.split_once(start))
    else {
        return message.to_owned();
    };
    let after = ["}]: ", "}: "].iter().find_map(|end| rest.rsplit_once(end)).map_or(rest, |(_, after)| after);
    format!("{before}Invalid value: {{…}}: {after}")
}

fn text(value: &Value, field: &str) -> String {
    value[field].as_str().unwrap_or_default().to_owned()
}

fn same(expected: &Value, found: &Value, path: &str) -> Result<(), String> {
    let differ = || Err(format!("{path}: {found:.600} and not {expected:.600}"));
    match (expected, found) {
        // What is not there is a null in Go's lists and pointers without `omitempty`.
        (Value::Null, Value::Array(items)) if items.is_empty() => Ok(()),
        (Value::Object(left), Value::Object(right)) => {
            for name in left.keys().chain(right.keys()) {
                let value = |fields: &Map<String, Value>| fields.get(name).cloned();
                match (value(left), value(right)) {
                    (Some(left), Some(right)) => same(&left, &right, &format!("{path}.{name}"))?,
                    (Some(Value::Null), None) => {}
                    (Some(left), None) => return Err(format!("{path}.{name} is missing ({left:.300})")),
                    (None, right) => {
                        return Err(format!(
                            "{path}.{name} is too much ({:.300})",
                            right.unwrap_or_default()
                        ));
                    }
                }
            }
            Ok(())
        }
        (Value::Array(left), Value::Array(right)) if left.len() == right.len() => {
            let mut pairs = left.iter().zip(right).enumerate();
            pairs.try_for_each(|(index, (left, right))| same(left, right, &format!("{path}[{index}]")))
        }
        (Value::String(pattern), Value::String(text)) if fits(pattern, text) => Ok(()),
        (left, right) if left == right => Ok(()),
        _ => differ(),
    }
}

/// Whether a text is as a pattern with placeholders says.
fn fits(pattern: &str, text: &str) -> bool {
    const PLACEHOLDERS: &[&str] = &["<uid>", "<rv>", "<time>", "<continue>", "<ip>", "<port>", "<5>"];
    let first = PLACEHOLDERS.iter().filter_map(|word| pattern.find(word).map(|at| (at, *word))).min();
    let Some((at, word)) = first else { return pattern == text };
    let (before, rest) = (&pattern[..at], &pattern[at + word.len()..]);
    let Some(after) = text.strip_prefix(before) else { return false };
    let ends = (0..=after.len()).filter(|end| after.is_char_boundary(*end));
    let good = |value: &str| match word {
        "<uid>" => uuid::Uuid::try_parse(value).is_ok(),
        "<rv>" | "<port>" => !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_digit()),
        "<time>" => value.parse::<jiff::Timestamp>().is_ok(),
        "<5>" => value.len() == 5,
        _ => !value.is_empty(),
    };
    ends.into_iter().any(|end| good(&after[..end]) && fits(rest, &after[end..]))
}
