//! Regular expressions mean in schemas what they mean to Go, where `\w`, `\d`, `\s` and `\b` are of ASCII only. In the
//! regex crate they are of Unicode: other texts would match, and `\w{1,63}` would take megabytes.

/// The expression with those classes written out.
pub(super) fn translated(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 16);
    let mut chars = text.chars().peekable();
    // How many characters of the class at hand came before: a `]` that comes first is a member.
    let mut in_class: Option<usize> = None;
    while let Some(char) = chars.next() {
        match (char, in_class) {
            ('\\', _) => {
                let escaped = chars.next();
                match (escaped, in_class) {
                    (Some('w'), None) => out.push_str("[0-9A-Za-z_]"),
                    (Some('d'), None) => out.push_str("[0-9]"),
                    (Some('s'), None) => out.push_str(r"[\t\n\f\r\x20]"),
                    (Some('W'), _) => out.push_str("[^0-9A-Za-z_]"),
                    (Some('D'), _) => out.push_str("[^0-9]"),
                    (Some('S'), _) => out.push_str(r"[^\t\n\f\r\x20]"),
                    (Some('b'), None) => out.push_str(r"(?-u:\b)"),
                    (Some('w'), Some(_)) => out.push_str("0-9A-Za-z_"),
                    (Some('d'), Some(_)) => out.push_str("0-9"),
                    (Some('s'), Some(_)) => out.push_str(r"\t\n\f\r\x20"),
                    (escaped, _) => {
                        out.push('\\');
                        out.extend(escaped);
                    }
                }
                in_class = in_class.map(|before| before + 1);
            }
            ('[', None) => {
                out.push('[');
                out.extend(chars.next_if_eq(&'^'));
                in_class = Some(0);
            }
            ('[', Some(before)) if chars.peek() == Some(&':') => {
                // `[:alpha:]`, up to its own bracket.
                out.push('[');
                for char in chars.by_ref() {
                    out.push(char);
                    if char == ']' {
                        break;
                    }
                }
                in_class = Some(before + 1);
            }
            (']', Some(before)) if before > 0 => {
                out.push(']');
                in_class = None;
            }
            (char, before) => {
                out.push(char);
                in_class = before.map(|before| before + 1);
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn classes_are_of_ascii() {
        for (pattern, good, bad) in [
            (r"^\w+$", "a_9", "é"),
            (r"^\d$", "7", "٣"),
            (r"^\s\S$", " x", "\u{a0}x"),
            (r"^[\w.-]+$", "a.b-c", "é"),
            (r"^[^\w]$", "é", "a"),
            (r"^\W\D$", "éa", "a1"),
            (r"^[]\d]+$", "]1", "a"),
            (r"^[[:alpha:]\d]+$", "a1", "_"),
            (r"^\[\w\]\\w$", r"[a]\w", "a"),
            (r"^a\b.c$", "a c", "abc"),
        ] {
            let regex =
                regex::Regex::new(&translated(pattern)).unwrap_or_else(|error| panic!("{pattern}: {error}"));
            assert!(regex.is_match(good) && !regex.is_match(bad), "{pattern} is {regex}");
        }
    }
}
