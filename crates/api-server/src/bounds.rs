//! How deep and how large objects may be. Whatever is stored keeps within these, whichever way it came about, so that
//! it can be read, changed and deleted again.

use serde_json::Value;

/// Levels of lists and maps in an object. `serde_json` reads 127; the rest is left for what lists, watches and Tables
/// put around an object.
pub(crate) const DEEPEST: usize = 120;

/// Bytes of an object as a client may make it. The store takes 1.5 MiB, as etcd does; the rest is left for what the
/// server adds when such an object is deleted.
pub(crate) const LARGEST: usize = (3 << 19) - 4096;

/// What an object has too much of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Exceeds {
    /// It has so many levels.
    Depth(usize),
    /// It has more bytes than [`LARGEST`].
    Size,
}

/// Levels of lists and maps in a value: 0 for a scalar, 1 for `{}`.
pub(crate) fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(fields) => 1 + fields.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}

/// Bytes of a value as JSON, but for escapes in texts, which are counted as what they stand for.
pub(crate) fn size(value: &Value) -> usize {
    match value {
        Value::Null | Value::Bool(true) => 4,
        Value::Bool(false) => 5,
        Value::Number(number) => digits(number),
        Value::String(text) => text.len() + 2,
        Value::Array(items) => 2 + items.iter().map(|item| size(item) + 1).sum::<usize>(),
        Value::Object(fields) => {
            2 + fields.iter().map(|(name, value)| name.len() + size(value) + 4).sum::<usize>()
        }
    }
}

fn digits(number: &serde_json::Number) -> usize {
    match number.as_u64() {
        Some(number) => number.checked_ilog10().map_or(1, |log| log as usize + 1),
        None => number.to_string().len(),
    }
}

/// Refuses an object that is too deep or too large to be stored. What was stored before with more may keep it, so that
/// it can be made smaller and let go.
pub(crate) fn check(new: &Value, old: Option<&Value>) -> Result<(), Exceeds> {
    let deep = depth(new);
    if deep > DEEPEST && old.is_none_or(|old| deep > depth(old)) {
        return Err(Exceeds::Depth(deep));
    }
    let large = size(new);
    if large > LARGEST && old.is_none_or(|old| large > size(old)) {
        return Err(Exceeds::Size);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn sizes_and_depths_are_those_of_the_json() {
        for (value, levels) in [
            (json!(null), 0),
            (json!(-1.5), 0),
            (json!(1234567), 0),
            (json!(0), 0),
            (json!([]), 1),
            (json!({"a": {"b": [1, 22, true, false]}, "c": "text"}), 3),
        ] {
            assert_eq!(depth(&value), levels, "{value}");
            let written = value.to_string().len();
            // A comma is counted for the last item too.
            assert!((written..=written + 4).contains(&size(&value)), "{value}: {} {written}", size(&value));
        }
    }

    #[test]
    fn what_is_too_large_already_may_only_shrink() {
        let nested = |levels| (0..levels).fold(json!("x"), |inner, _| json!({ "a": inner }));
        assert!(check(&nested(DEEPEST), None).is_ok());
        assert!(check(&nested(DEEPEST + 1), None).is_err());
        assert!(check(&nested(DEEPEST + 1), Some(&nested(DEEPEST + 2))).is_ok());
        assert!(check(&nested(DEEPEST + 2), Some(&nested(DEEPEST + 1))).is_err());
        let sized = |bytes| json!({"data": "x".repeat(bytes)});
        assert!(check(&sized(LARGEST - 20), None).is_ok());
        assert!(check(&sized(LARGEST), None).is_err());
        assert!(check(&sized(LARGEST), Some(&sized(LARGEST + 1))).is_ok());
    }
}
