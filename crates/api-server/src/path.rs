//! Where in an object one is, as messages name it: `spec.containers[0].name`.
//!
//! A path is a list on the stack, put into words only for a message: to write it out at every value of a long list below
//! a long key would take time by their product.

use std::fmt;

/// Characters of one key that are shown.
const MOST_SHOWN: usize = 128;

/// A place in an object.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Path<'a> {
    parent: Option<&'a Path<'a>>,
    part: Part<'a>,
}

#[derive(Debug, Clone, Copy)]
enum Part<'a> {
    /// Where the path begins; may be empty.
    Start(&'a str),
    Field(&'a str),
    Index(usize),
    /// `.properties[name]`
    Entry(&'a str, &'a str),
    /// `.allOf[0]`
    Item(&'a str, usize),
}

impl<'a> Path<'a> {
    /// The object itself.
    pub(crate) const ROOT: Path<'static> = Path { parent: None, part: Part::Start("") };

    pub(crate) fn start(text: &'a str) -> Path<'a> {
        Path { parent: None, part: Part::Start(text) }
    }

    pub(crate) fn field(&'a self, name: &'a str) -> Path<'a> {
        Path { parent: Some(self), part: Part::Field(name) }
    }

    pub(crate) fn index(&'a self, index: usize) -> Path<'a> {
        Path { parent: Some(self), part: Part::Index(index) }
    }

    pub(crate) fn entry(&'a self, field: &'a str, key: &'a str) -> Path<'a> {
        Path { parent: Some(self), part: Part::Entry(field, key) }
    }

    pub(crate) fn item(&'a self, field: &'a str, index: usize) -> Path<'a> {
        Path { parent: Some(self), part: Part::Item(field, index) }
    }

    pub(crate) fn is_root(&self) -> bool {
        matches!(self, Path { parent: None, part: Part::Start("") })
    }

    /// Whether the last part is this field.
    pub(crate) fn ends_with(&self, field: &str) -> bool {
        matches!(self.part, Part::Field(name) if name == field)
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(parent) = self.parent {
            parent.fmt(f)?;
        }
        let dot = if self.parent.is_none_or(Path::is_root) { "" } else { "." };
        match self.part {
            Part::Start(text) => f.write_str(text),
            Part::Field(name) => write!(f, "{dot}{}", Shown(name)),
            Part::Index(index) => write!(f, "[{index}]"),
            Part::Entry(field, key) => write!(f, "{dot}{field}[{}]", Shown(key)),
            Part::Item(field, index) => write!(f, "{dot}{field}[{index}]"),
        }
    }
}

impl From<&Path<'_>> for String {
    fn from(path: &Path<'_>) -> String {
        path.to_string()
    }
}

/// A key, cut where it would drown a message.
struct Shown<'a>(&'a str);

impl fmt::Display for Shown<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(MOST_SHOWN) {
            Some((end, _)) => write!(f, "{}…", &self.0[..end]),
            None => f.write_str(self.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_written_as_kubernetes_writes_them() {
        let spec = Path::ROOT.field("spec");
        let containers = spec.field("containers");
        assert_eq!(containers.index(0).field("name").to_string(), "spec.containers[0].name");
        assert_eq!(Path::ROOT.to_string(), "");
        let schema = Path::start("schema");
        assert_eq!(
            schema.entry("properties", "a").item("allOf", 1).to_string(),
            "schema.properties[a].allOf[1]"
        );
        assert_eq!(Path::ROOT.field(&"é".repeat(1000)).to_string().chars().count(), MOST_SHOWN + 1);
    }
}
