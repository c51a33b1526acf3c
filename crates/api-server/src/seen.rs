//! What is found out about an object once, whoever watches: the facts that selectors ask for, and the lines that are sent.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use object_store::{Object, Revision};
use parking_lot::Mutex;
use serde_json::value::RawValue;

use crate::negotiate::Shape;
use crate::table::IncludeObject;

/// Objects that are remembered: watchers that keep up ask for the same ones at about the same time.
const RECENT: usize = 64;
/// What a larger object says is found out by each watcher, so that little memory is used.
const LARGEST: usize = 64 * 1024;
/// Forms of one event that are remembered.
const FORMS: usize = 8;

/// The newest objects that somebody asked about.
#[derive(Default)]
pub(crate) struct Seen(Mutex<Recent>);

#[derive(Default)]
struct Recent {
    facts: HashMap<Revision, Arc<Facts>>,
    order: VecDeque<Revision>,
}

impl Seen {
    /// What is known about an object as a write left it: each write has its own revision.
    pub(crate) fn facts(&self, object: &Object) -> Arc<Facts> {
        if object.value.len() > LARGEST {
            return Arc::new(Facts::of(&object.value));
        }
        let Recent { facts, order } = &mut *self.0.lock();
        if let Some(known) = facts.get(&object.revision) {
            return known.clone();
        }
        if order.len() == RECENT
            && let Some(oldest) = order.pop_front()
        {
            facts.remove(&oldest);
        }
        let new = Arc::new(Facts::of(&object.value));
        facts.insert(object.revision, new.clone());
        order.push_back(object.revision);
        new
    }
}

/// The form of a line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Form {
    /// `ADDED`, `MODIFIED` or `DELETED`.
    pub(crate) change: &'static str,
    pub(crate) api_version: String,
    pub(crate) shape: Shape,
    pub(crate) include: IncludeObject,
    /// Whether a Table names its columns.
    pub(crate) with_columns: bool,
}

/// What an object's bytes say, each thing looked up when it is asked for the first time.
pub(crate) struct Facts {
    object: Bytes,
    labels: OnceLock<HashMap<String, String>>,
    fields: Mutex<BTreeMap<Vec<String>, Arc<str>>>,
    lines: Mutex<Vec<(Form, Bytes)>>,
}

impl Facts {
    pub(crate) fn of(object: &Bytes) -> Self {
        Self {
            object: object.clone(),
            labels: OnceLock::new(),
            fields: Mutex::default(),
            lines: Mutex::default(),
        }
    }

    /// The labels; none of bytes that are no object.
    pub(crate) fn labels(&self) -> &HashMap<String, String> {
        #[derive(serde::Deserialize)]
        struct Labelled {
            metadata: Labels,
        }
        #[derive(serde::Deserialize)]
        struct Labels {
            labels: Option<HashMap<String, String>>,
        }
        self.labels.get_or_init(|| {
            let object = serde_json::from_slice::<Labelled>(&self.object).ok();
            object.and_then(|object| object.metadata.labels).unwrap_or_default()
        })
    }

    /// The text of one field, empty if absent.
    pub(crate) fn field(&self, path: &[String]) -> Arc<str> {
        let mut fields = self.fields.lock();
        match fields.get(path) {
            Some(known) => known.clone(),
            None => fields.entry(path.to_vec()).or_insert(field(&self.object, path).into()).clone(),
        }
    }

    /// The line of a form, made by the first who asks.
    pub(crate) fn line(&self, form: &Form, make: impl FnOnce() -> Bytes) -> Bytes {
        let mut lines = self.lines.lock();
        if let Some((_, line)) = lines.iter().find(|(known, _)| known == form) {
            return line.clone();
        }
        let line = make();
        if lines.len() < FORMS && self.object.len() <= LARGEST {
            lines.push((form.clone(), line.clone()));
        }
        line
    }
}

fn field(object: &[u8], path: &[String]) -> String {
    let mut at = match serde_json::from_slice::<&RawValue>(object) {
        Ok(at) => at,
        Err(_) => return String::new(),
    };
    for segment in path {
        let Ok(mut fields) = serde_json::from_str::<HashMap<std::borrow::Cow<'_, str>, &RawValue>>(at.get())
        else {
            return String::new();
        };
        match fields.remove(segment.as_str()) {
            Some(next) => at = next,
            None => return String::new(),
        }
    }
    match serde_json::from_str::<serde_json::Value>(at.get()) {
        Ok(serde_json::Value::String(text)) => text,
        Ok(serde_json::Value::Null) | Err(_) => String::new(),
        Ok(other) => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use object_store::Key;

    use super::*;

    fn object(revision: Revision, value: String) -> Object {
        Object { key: Key::new("pods", "default", "p"), revision, value: value.into() }
    }

    #[test]
    fn a_fact_and_a_line_are_found_out_once_for_all_watchers() {
        let seen = Seen::default();
        let pod = object(7, r#"{"metadata":{"labels":{"app":"db"}},"spec":{"nodeName":"n1"}}"#.into());
        let form = Form {
            change: "ADDED",
            api_version: "v1".into(),
            shape: Shape::Plain,
            include: IncludeObject::Metadata,
            with_columns: false,
        };
        let mut made = 0;
        for _ in 0..1000 {
            let facts = seen.facts(&pod);
            assert_eq!(facts.labels()["app"], "db");
            assert_eq!(&*facts.field(&["spec".to_owned(), "nodeName".to_owned()]), "n1");
            facts.line(&form, || {
                made += 1;
                Bytes::from_static(b"line")
            });
        }
        assert_eq!(made, 1);
        let other = Form { change: "MODIFIED", ..form };
        assert_eq!(seen.facts(&pod).line(&other, || Bytes::from_static(b"other")), "other");
        assert_eq!(seen.facts(&object(8, "{}".into())).labels().len(), 0, "of each write its own");
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let seen = Seen::default();
        for revision in 0..1000 {
            seen.facts(&object(revision, "{}".into()));
        }
        seen.facts(&object(1000, format!("\"{}\"", "x".repeat(LARGEST))));
        let recent = seen.0.lock();
        assert_eq!((recent.facts.len(), recent.order.len()), (RECENT, RECENT));
        assert!(!recent.facts.contains_key(&1000));
    }
}
