//! Stored objects that can't be read: damaged on the disk, or put there by another hand. They are found when their
//! resource begins to be served, left out of lists and watches, told of by name, and can be deleted.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use object_store::{Key, Object, Revision, Store};
use parking_lot::RwLock;
use serde_json::{Value, json};

use crate::catalog::Served;
use crate::error::ApiError;

/// Levels of lists and maps that `serde_json` reads.
const READ: usize = 127;

/// The objects that can't be read, as of the revision at which they were found.
#[derive(Debug, Default)]
pub(crate) struct Unreadable(RwLock<Found>);

#[derive(Debug, Default)]
struct Found {
    examined: HashSet<Arc<str>>,
    objects: BTreeMap<Key, (Revision, String)>,
}

impl Unreadable {
    /// Looks at every object of a resource, once: what is written later was made by this server. Blocks for as long as
    /// it takes to read them.
    pub(crate) fn examine(&self, store: &Store, resource: &Arc<str>) {
        if !self.0.write().examined.insert(resource.clone()) {
            return;
        }
        let Ok(page) = store.list(resource, None, None, None, 0, |_| true) else { return };
        for found in page.objects {
            if let Err(why) = readable(&found) {
                tracing::error!(
                    key = %found.key, why,
                    "a stored object can't be read: it is left out of lists and watches, and can only be deleted"
                );
                self.0.write().objects.insert(found.key, (found.revision, why));
            }
        }
    }

    /// Whether the object, as it is stored, can be read.
    pub(crate) fn allows(&self, stored: &Object) -> bool {
        self.why(stored).is_none()
    }

    /// Refuses to show an object that can't be read.
    pub(crate) fn check(&self, served: &Served, stored: &Object) -> Result<(), ApiError> {
        self.why(stored).map_or(Ok(()), |why| Err(refused(served, &stored.key, &why)))
    }

    fn why(&self, stored: &Object) -> Option<String> {
        let found = self.0.read();
        let (revision, why) = found.objects.get(&stored.key)?;
        (*revision == stored.revision).then(|| why.clone())
    }

    /// Those that `wanted` picks and that are still there.
    pub(crate) fn picked(&self, store: &Store, wanted: impl Fn(&Key) -> bool) -> Vec<Object> {
        let keys: Vec<Key> = self.0.read().objects.keys().filter(|key| wanted(key)).cloned().collect();
        keys.iter().filter_map(|key| store.get(key)).filter(|stored| !self.allows(stored)).collect()
    }

    /// Those of a resource that are still there, in one namespace or in all.
    pub(crate) fn of(&self, store: &Store, resource: &str, namespace: Option<&str>) -> Vec<Object> {
        self.picked(store, |key| {
            *key.resource == *resource && namespace.is_none_or(|namespace| *key.namespace == *namespace)
        })
    }
}

/// The refusal that Kubernetes knows for it.
pub(crate) fn refused(served: &Served, key: &Key, why: &str) -> ApiError {
    ApiError::StoreRead {
        kind: served.kind.kind.to_string(),
        key: key.to_string(),
        why: why.to_owned(),
        path: path(served, key),
    }
}

/// Where the API has the object.
fn path(served: &Served, key: &Key) -> String {
    let root = if served.kind.group.is_empty() { "/api" } else { "/apis" };
    let namespace = match &*key.namespace {
        "" => String::new(),
        namespace => format!("/namespaces/{namespace}"),
    };
    format!("{root}/{}{namespace}/{}/{}", served.api_version, served.kind.plural, key.name)
}

/// What is known of an object that can't be read, so that it can be deleted by the rules of its kind: a namespace is
/// emptied first, and so is a definition.
pub(crate) fn stand_in(served: &Served, stored: &Object) -> Value {
    let key = &stored.key;
    let mut object = json!({
        "apiVersion": served.api_version, "kind": served.kind.kind,
        "metadata": {"name": &*key.name, "resourceVersion": stored.revision.to_string()},
    });
    if served.kind.namespaced {
        object["metadata"]["namespace"] = (&*key.namespace).into();
    }
    (served.kind.row.hooks.stand_in)(&mut object);
    object
}

/// Whether stored bytes are an object of that name.
fn readable(stored: &Object) -> Result<(), String> {
    #[derive(serde::Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Head<'a> {
        #[serde(borrow, rename = "apiVersion")]
        _api_version: Cow<'a, str>,
        #[serde(borrow, rename = "kind")]
        _kind: Cow<'a, str>,
        #[serde(borrow)]
        metadata: Metadata<'a>,
    }
    #[derive(serde::Deserialize)]
    struct Metadata<'a> {
        #[serde(borrow)]
        name: Cow<'a, str>,
        #[serde(borrow)]
        namespace: Option<Cow<'a, str>>,
    }
    if stored.is_damaged() {
        return Err("it is damaged on the disk".to_owned());
    }
    let text = std::str::from_utf8(&stored.value).map_err(|_| "it is no text".to_owned())?;
    let levels = levels(text);
    if levels > READ {
        return Err(format!("it is nested {levels} levels deep"));
    }
    let head: Head<'_> = serde_json::from_str(text).map_err(|error| format!("it is no object: {error}"))?;
    let namespace = head.metadata.namespace.unwrap_or_default();
    if (&*head.metadata.name, &*namespace) != (&*stored.key.name, &*stored.key.namespace) {
        return Err(format!("it calls itself {:?}", format!("{namespace}/{}", head.metadata.name)));
    }
    Ok(())
}

/// Levels of lists and maps, found without recursion.
fn levels(text: &str) -> usize {
    let (mut now, mut most, mut in_text, mut escaped) = (0_usize, 0, false, false);
    for byte in text.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_text => escaped = true,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => {
                now += 1;
                most = most.max(now);
            }
            b'}' | b']' if !in_text => now = now.saturating_sub(1),
            _ => {}
        }
    }
    most
}

#[cfg(test)]
mod tests {
    use super::*;

    fn why(text: &str) -> Option<String> {
        let value = text.to_owned().into();
        readable(&Object { key: Key::new("configmaps", "a", "b"), revision: 1, value }).err()
    }

    #[test]
    fn what_is_no_object_of_that_name_is_found() {
        let whole = r#"{"apiVersion":"v1","kind":"ConfigMap","metadata":{"namespace":"a","name":"b"},"data":{"x":"[{\"["}}"#;
        assert_eq!(why(whole), None);
        assert_eq!(why(&whole.replace("\"b\"", "\"c\"")).unwrap(), r#"it calls itself "a/c""#);
        for bad in [&whole[..40], "", "[]", "5", r#"{"metadata":{"name":"b","namespace":"a"}}"#] {
            assert!(why(bad).is_some_and(|why| why.starts_with("it is no object")), "{bad}");
        }
        let nested = format!("{}1{}", "{\"x\":".repeat(200), "}".repeat(200));
        let deep = whole.replace("\"data\":", &format!("\"deep\":{nested},\"data\":"));
        assert_eq!(why(&deep).unwrap(), "it is nested 201 levels deep");
    }
}
