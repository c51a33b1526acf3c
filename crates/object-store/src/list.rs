//! Lists: a page of one resource, as it is now or as it was at a revision.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use crate::memory::{Name, Resource, State};
use crate::{Event, ListError, Object, Revision};

/// A part of a list, consistent at one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// In order of namespace and name.
    pub objects: Vec<Object>,
    /// The revision that the page shows. Later pages of the same list ask for it.
    pub revision: Revision,
    /// Objects after the last one of this page that were not looked at, whether they would be kept or not.
    pub remaining: usize,
}

impl Page {
    /// Whether a further page may hold something.
    pub fn more(&self) -> bool {
        self.remaining > 0
    }
}

/// What a list needs from the state, taken in one short hold of its lock.
pub(crate) struct Cut {
    pub(crate) revision: Revision,
    objects: Vec<Object>,
    /// Changes after `revision`, oldest first; undone by [`Cut::page`].
    undo: Vec<Arc<Event>>,
}

impl Cut {
    pub(crate) fn take(
        state: &State,
        resource: &str,
        namespace: Option<&str>,
        at: Option<Revision>,
        after: Option<(&str, &str)>,
    ) -> Result<Cut, ListError> {
        let revision = at.unwrap_or(state.revision);
        if revision > state.revision {
            return Err(ListError::Future { current: state.revision });
        }
        if revision < state.oldest(resource) && revision < state.revision {
            return Err(ListError::Expired { oldest: state.oldest(resource) });
        }
        let Some(found) = state.resource(resource) else {
            return Ok(Cut { revision, objects: Vec::new(), undo: Vec::new() });
        };
        let within = |name: &Name| namespace.is_none_or(|namespace| *name.0 == *namespace);
        let objects = Self::range(found, namespace, after).map(|(_, object)| object.clone()).collect();
        let undo = (found.trail.after(revision))
            .filter(|event| {
                let name = (event.object.key.namespace.clone(), event.object.key.name.clone());
                within(&name)
                    && after.is_none_or(|(namespace, after)| (&*name.0, &*name.1) > (namespace, after))
            })
            .cloned()
            .collect();
        Ok(Cut { revision, objects, undo })
    }

    fn range<'a>(
        resource: &'a Resource,
        namespace: Option<&'a str>,
        after: Option<(&str, &str)>,
    ) -> impl Iterator<Item = (&'a Name, &'a Object)> {
        let first = namespace.map(|namespace| (namespace, ""));
        let start = match (first, after) {
            (Some(first), Some(after)) if after < first => Bound::Included(first),
            (_, Some(after)) => Bound::Excluded(after),
            (Some(first), None) => Bound::Included(first),
            (None, None) => Bound::Unbounded,
        };
        let start = start.map(|(namespace, name)| (Arc::from(namespace), Arc::from(name)));
        (resource.objects.range::<Name, _>((start, Bound::Unbounded)))
            .take_while(move |(name, _)| namespace.is_none_or(|namespace| *name.0 == *namespace))
    }

    /// The first `limit` objects that `keep` wants; a limit of 0 means all.
    pub(crate) fn page(self, limit: usize, mut keep: impl FnMut(&Object) -> bool) -> Page {
        let objects = if self.undo.is_empty() { self.objects } else { undone(self.objects, &self.undo) };
        let total = objects.len();
        let mut page = Page { objects: Vec::new(), revision: self.revision, remaining: 0 };
        for (index, object) in objects.into_iter().enumerate() {
            if limit > 0 && page.objects.len() == limit {
                page.remaining = total - index;
                break;
            }
            if keep(&object) {
                page.objects.push(object);
            }
        }
        page
    }
}

/// The objects as they were before the first of `events`.
fn undone(objects: Vec<Object>, events: &[Arc<Event>]) -> Vec<Object> {
    let name = |object: &Object| (object.key.namespace.clone(), object.key.name.clone());
    let mut objects: BTreeMap<Name, Object> =
        objects.into_iter().map(|object| (name(&object), object)).collect();
    for event in events.iter().rev() {
        match &event.previous {
            Some(previous) => objects.insert(name(previous), previous.clone()),
            None => objects.remove(&name(&event.object)),
        };
    }
    objects.into_values().collect()
}
