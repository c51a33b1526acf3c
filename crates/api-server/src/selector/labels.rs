//! The text form of a label selector, read as Kubernetes reads it, and refused in its words.

use std::collections::BTreeSet;

use values::names;

use super::{LabelRule, LabelTest};
use crate::error::ApiError;

/// `app=db,tier in (a, b),!old`.
pub(super) fn parse(text: &str) -> Result<Vec<LabelRule>, ApiError> {
    let mut reader = Reader { tokens: tokens(text), at: 0 };
    reader.rules().map_err(ApiError::BadRequest)
}

/// Operators and words; an empty one at the end.
fn tokens(text: &str) -> Vec<&str> {
    let special = |char: char| matches!(char, '=' | '!' | '(' | ')' | ',' | '<' | '>');
    let mut tokens = Vec::new();
    let mut rest = text.trim_start();
    while let Some(first) = rest.chars().next() {
        let length = if special(first) {
            ["==", "!="].iter().find(|pair| rest.starts_with(**pair)).map_or(1, |pair| pair.len())
        } else {
            rest.find(|char: char| special(char) || char.is_whitespace()).unwrap_or(rest.len())
        };
        let (token, after) = rest.split_at(length);
        tokens.push(token);
        rest = after.trim_start();
    }
    tokens.push("");
    tokens
}

struct Reader<'a> {
    tokens: Vec<&'a str>,
    at: usize,
}

/// Whether a token is a name or value.
fn is_word(token: &str) -> bool {
    !token.is_empty() && !matches!(token, "=" | "==" | "!=" | "!" | "(" | ")" | "," | "<" | ">")
}

fn unexpected(found: &str, expected: &str) -> String {
    format!("unable to parse requirement: found '{found}', expected: {expected}")
}

impl<'a> Reader<'a> {
    fn peek(&self) -> &'a str {
        self.tokens.get(self.at).copied().unwrap_or_default()
    }

    fn next(&mut self) -> &'a str {
        let token = self.peek();
        self.at += 1;
        token
    }

    fn rules(&mut self) -> Result<Vec<LabelRule>, String> {
        let mut rules = Vec::new();
        loop {
            match self.peek() {
                "" => return Ok(rules),
                "!" => {}
                word if is_word(word) => {}
                other => return Err(format!("found '{other}', expected: !, identifier, or 'end of string'")),
            }
            rules.push(self.rule()?);
            match self.next() {
                "" => return Ok(rules),
                "," if self.peek() == "!" || is_word(self.peek()) => {}
                "," => return Err(format!("found '{}', expected: identifier after ','", self.peek())),
                other => return Err(format!("found '{other}', expected: ',' or 'end of string'")),
            }
        }
    }

    fn rule(&mut self) -> Result<LabelRule, String> {
        let absent = self.peek() == "!";
        if absent {
            self.at += 1;
        }
        let key = self.next();
        if !is_word(key) {
            return Err(unexpected(key, "identifier"));
        }
        let broken = names::qualified_name(key);
        if !broken.is_empty() {
            return Err(format!(
                "unable to parse requirement: <nil>: Invalid value: {key:?}: {}",
                broken.join("; ")
            ));
        }
        let test = match self.peek() {
            _ if absent => LabelTest::Absent,
            "" | "," => LabelTest::Exists,
            _ => self.test(key)?,
        };
        Ok(LabelRule { key: key.to_owned(), test })
    }

    fn test(&mut self, key: &str) -> Result<LabelTest, String> {
        let operator = self.next();
        let values = match operator {
            "in" | "notin" => self.values()?,
            "=" | "==" | "!=" | "<" | ">" => BTreeSet::from([self.value()?]),
            other => return Err(unexpected(other, "in, notin, =, ==, !=, gt, lt")),
        };
        if matches!(operator, "<" | ">") {
            let value = values.iter().next().map_or("", String::as_str);
            let bound = value.parse().map_err(|_| {
                format!(
                    "unable to parse requirement: values[0]: Invalid value: {value:?}: for 'Gt', 'Lt' operators, the \
                     value must be an integer"
                )
            })?;
            return Ok(if operator == ">" { LabelTest::Greater(bound) } else { LabelTest::Less(bound) });
        }
        for (index, value) in values.iter().enumerate() {
            let broken = names::label_value(value);
            if !broken.is_empty() {
                return Err(format!(
                    "unable to parse requirement: values[{index}][{key}]: Invalid value: {value:?}: {}",
                    broken.join("; ")
                ));
            }
        }
        Ok(if matches!(operator, "!=" | "notin") { LabelTest::NotIn(values) } else { LabelTest::In(values) })
    }

    /// One value, which may be empty.
    fn value(&mut self) -> Result<String, String> {
        match self.peek() {
            "" | "," => Ok(String::new()),
            word if is_word(word) => Ok(self.next().to_owned()),
            other => Err(unexpected(other, "identifier")),
        }
    }

    /// `(a, b)`.
    fn values(&mut self) -> Result<BTreeSet<String>, String> {
        let open = self.next();
        if open != "(" {
            return Err(format!("unable to parse requirement: found '{open}' expected: '('"));
        }
        let mut values = BTreeSet::new();
        loop {
            let value = if is_word(self.peek()) { self.next() } else { "" };
            values.insert(value.to_owned());
            match self.next() {
                "," => {}
                ")" => return Ok(values),
                other => return Err(unexpected(other, "',' or ')'")),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_selector_is_refused_in_known_words() {
        for (text, refusal) in [
            ("t=x,", "found '', expected: identifier after ','"),
            ("=x", "found '=', expected: !, identifier, or 'end of string'"),
            ("t in x", "unable to parse requirement: found 'x' expected: '('"),
            ("t in (x", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("t=x y", "found 'y', expected: ',' or 'end of string'"),
            ("a===b", "unable to parse requirement: found '=', expected: identifier"),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), refusal, "{text}");
        }
        for text in ["-a=b", "t=v_", "k8s.io/=x", "n>x"] {
            assert!(parse(text).is_err(), "{text}");
        }
        for text in ["", "t=", "t==,a", "in in (in)", "a in (x,,y)", " a  notin ( b ) ,c"] {
            assert!(parse(text).is_ok(), "{text}: {:?}", parse(text));
        }
    }
}
