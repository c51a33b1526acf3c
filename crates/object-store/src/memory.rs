//! The durable state, in memory: every object, and the newest changes.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use parking_lot::RwLock;
use tokio::sync::Notify;

use crate::history::{Budget, Trail};
use crate::{DiskFailure, Event, EventKind, Key, Object, Options, Revision};

/// Namespace and name.
pub(crate) type Name = (Arc<str>, Arc<str>);

/// What all handles, watches and the writer share.
#[derive(Debug)]
pub(crate) struct Memory {
    pub(crate) state: RwLock<State>,
}

#[derive(Debug)]
pub(crate) struct State {
    pub(crate) revision: Revision,
    /// No more writes happen, ever.
    pub(crate) closed: bool,
    /// Why no writes happen now.
    pub(crate) failing: Option<DiskFailure>,
    resources: HashMap<Arc<str>, Resource>,
    budget: Budget,
    /// The revision at which the store was opened: nothing before it is remembered.
    opened_at: Revision,
}

#[derive(Debug)]
pub(crate) struct Resource {
    pub(crate) objects: BTreeMap<Name, Object>,
    pub(crate) trail: Trail,
    /// Wakes watchers when there is something new for them, those first that have waited longest.
    pub(crate) published: Arc<Notify>,
}

impl State {
    pub(crate) fn new(revision: Revision, objects: Vec<Object>, options: &Options) -> State {
        let mut state = State {
            revision,
            closed: false,
            failing: None,
            resources: HashMap::new(),
            budget: Budget::new(options.history_events, options.history_bytes),
            opened_at: revision,
        };
        for object in objects {
            let name = (object.key.namespace.clone(), object.key.name.clone());
            state.resource_mut(&object.key.resource.clone()).objects.insert(name, object);
        }
        state
    }

    pub(crate) fn resource(&self, resource: &str) -> Option<&Resource> {
        self.resources.get(resource)
    }

    /// The resource, made when it is first asked for.
    pub(crate) fn resource_mut(&mut self, resource: &Arc<str>) -> &mut Resource {
        self.resources.entry(resource.clone()).or_insert_with(|| Resource {
            objects: BTreeMap::new(),
            trail: Trail::new(self.opened_at),
            published: Arc::default(),
        })
    }

    /// The oldest revision at which `resource` can be listed or watched.
    pub(crate) fn oldest(&self, resource: &str) -> Revision {
        self.resource(resource).map_or(self.opened_at, |resource| resource.trail.oldest())
    }

    pub(crate) fn get(&self, key: &Key) -> Option<&Object> {
        self.resource(&key.resource)?.objects.get(&(key.namespace.clone(), key.name.clone()))
    }

    /// The newest revision and every object, in the order of their records.
    pub(crate) fn everything(&self) -> (Revision, Vec<Object>) {
        let objects = self.resources.values().flat_map(|resource| resource.objects.values().cloned());
        let mut objects: Vec<Object> = objects.collect();
        objects.sort_by(|one, other| one.key.cmp(&other.key));
        (self.revision, objects)
    }

    fn apply(&mut self, event: Event) {
        self.revision = event.revision;
        self.budget.charge(&event);
        let resource = self.resource_mut(&event.object.key.resource);
        let name = (event.object.key.namespace.clone(), event.object.key.name.clone());
        match event.kind {
            EventKind::Created | EventKind::Updated => resource.objects.insert(name, event.object.clone()),
            EventKind::Deleted => resource.objects.remove(&name),
        };
        resource.trail.push(Arc::new(event));
    }
}

impl Memory {
    /// Takes over committed changes, in order, and wakes their watchers.
    pub(crate) fn publish(&self, events: Vec<Event>) {
        let mut touched = BTreeSet::new();
        let mut state = self.state.write();
        for event in events {
            touched.insert(event.object.key.resource.clone());
            state.apply(event);
        }
        while let Some(resource) = state.budget.take_excess() {
            state.resource_mut(&resource).trail.forget_oldest();
        }
        let wake: Vec<_> = touched
            .iter()
            .filter_map(|name| state.resource(name))
            .map(|found| found.published.clone())
            .collect();
        drop(state);
        for published in wake {
            published.notify_waiters();
        }
    }

    /// Ends writing, and with it every watch once it has delivered what is committed.
    pub(crate) fn close(&self) {
        let mut state = self.state.write();
        state.closed = true;
        for resource in state.resources.values() {
            resource.published.notify_waiters();
        }
    }

    /// The disk takes no writes.
    pub(crate) fn fails(&self, failure: DiskFailure) {
        self.state.write().failing = Some(failure);
    }

    /// The disk takes writes again.
    pub(crate) fn works(&self) {
        self.state.write().failing = None;
    }
}
