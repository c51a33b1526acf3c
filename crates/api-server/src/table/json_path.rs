//! The JSONPath subset of `additionalPrinterColumns`: `.a.b`, `.a\.b`, `['a.b']`, `[0]`, `[-1]`, `[*]` and
//! `[?(@.type=="Ready")]`.

use serde_json::Value;

/// A parsed path.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct JsonPath(Vec<Step>);

#[derive(Debug, Clone, PartialEq)]
enum Step {
    Field(String),
    Index(i64),
    All,
    /// Items whose field at the path equals the value.
    Where(Vec<String>, Value),
}

/// Why a path can't be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}: must be a simple JSONPath such as .spec.size, ['a.b'], [0] or [?(@.type==\"Ready\")]")]
pub(crate) struct JsonPathError(String);

impl JsonPath {
    /// Parses `.spec.size`; the leading dot may be missing before a bracket only.
    pub(crate) fn parse(path: &str) -> Result<JsonPath, JsonPathError> {
        let error = |what: &str| JsonPathError(what.to_owned());
        let mut steps = Vec::new();
        let mut rest = path;
        while !rest.is_empty() {
            if let Some(inner) = rest.strip_prefix('[') {
                let (step, after) = bracket(inner).ok_or_else(|| error("malformed bracket"))?;
                steps.push(step);
                rest = after;
            } else if let Some(after) = rest.strip_prefix('.') {
                // `.foo.[0]` is a way to write `.foo[0]`.
                if after.starts_with('[') {
                    rest = after;
                    continue;
                }
                let (name, after) = field(after);
                if name.is_empty() && !(steps.is_empty() && after.is_empty()) {
                    return Err(error("empty field name"));
                }
                match name.as_str() {
                    "" => {}
                    "*" => steps.push(Step::All),
                    _ => steps.push(Step::Field(name)),
                }
                rest = after;
            } else {
                return Err(error("fields begin with a dot"));
            }
        }
        Ok(JsonPath(steps))
    }

    /// The first value at the path.
    pub(crate) fn first<'a>(&self, value: &'a Value) -> Option<&'a Value> {
        walk(&self.0, value)
    }
}

fn walk<'a>(steps: &[Step], value: &'a Value) -> Option<&'a Value> {
    let [step, rest @ ..] = steps else { return Some(value) };
    match step {
        Step::Field(name) => walk(rest, value.get(name)?),
        Step::Index(index) => {
            let items = value.as_array()?;
            let index = if *index < 0 { index + i64::try_from(items.len()).ok()? } else { *index };
            walk(rest, items.get(usize::try_from(index).ok()?)?)
        }
        Step::All => match value {
            Value::Array(items) => items.iter().find_map(|item| walk(rest, item)),
            Value::Object(fields) => fields.values().find_map(|field| walk(rest, field)),
            _ => None,
        },
        Step::Where(path, wanted) => {
            let matches =
                |item: &&Value| path.iter().try_fold(*item, |value, name| value.get(name)) == Some(wanted);
            value.as_array()?.iter().filter(matches).find_map(|item| walk(rest, item))
        }
    }
}

/// A field name up to the next unescaped dot or bracket.
fn field(text: &str) -> (String, &str) {
    let mut name = String::new();
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match c {
            '\\' => name.extend(chars.next().map(|(_, escaped)| escaped)),
            '.' | '[' => return (name, &text[at..]),
            _ => name.push(c),
        }
    }
    (name, "")
}

/// What is between `[` and `]`, and what comes after.
fn bracket(text: &str) -> Option<(Step, &str)> {
    if let Some(quote @ ('\'' | '"')) = text.chars().next() {
        let (name, after) = text[1..].split_once(quote)?;
        return Some((Step::Field(name.to_owned()), after.strip_prefix(']')?));
    }
    if let Some(filter) = text.strip_prefix("?(") {
        let (condition, after) = filter.split_once(")]")?;
        let (path, wanted) = condition.split_once("==")?;
        let path = path.trim().strip_prefix("@.")?.split('.').map(str::to_owned).collect();
        let wanted = wanted.trim();
        let wanted = match wanted.strip_prefix('\'').and_then(|text| text.strip_suffix('\'')) {
            Some(text) => Value::from(text),
            None => serde_json::from_str(wanted).ok()?,
        };
        return Some((Step::Where(path, wanted), after));
    }
    let (index, after) = text.split_once(']')?;
    let step = if index == "*" { Step::All } else { Step::Index(index.parse().ok()?) };
    Some((step, after))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_find_the_first_value() {
        let object = json!({
            "a": {"b": [1, 2], "x.y": "dotted"},
            "status": {"conditions": [{"type": "Old", "status": "False"}, {"type": "Ready", "status": "True"}]},
        });
        for (path, expected) in [
            (".a.b[0]", Some(json!(1))),
            (".a.b[-1]", Some(json!(2))),
            (".a.b[*]", Some(json!(1))),
            (".a.b[5]", None),
            (r".a.x\.y", Some(json!("dotted"))),
            (".a['x.y']", Some(json!("dotted"))),
            (r#".status.conditions[?(@.type=="Ready")].status"#, Some(json!("True"))),
            (".status.conditions[?(@.type=='Gone')].status", None),
            (".missing.more", None),
        ] {
            assert_eq!(JsonPath::parse(path).unwrap().first(&object), expected.as_ref(), "{path}");
        }
    }

    #[test]
    fn malformed_paths_are_refused() {
        for path in ["a.b", ".a..b", ".a[", ".a[x]", ".a[?(@.b>1)]"] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
    }
}
