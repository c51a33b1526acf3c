//! The store against what it should be: a map, and the list of all that happened to it.

use std::collections::BTreeMap;

use object_store::{
    EventKind, Key, ListError, Object, Options, Precondition, Revision, Store, Watch, WatchEnd, WatchError,
    WriteError,
};
use proptest::prelude::*;

use crate::disk::Disk;
use crate::{run, stamped};

const HISTORY: usize = 6;
const RESOURCES: [&str; 2] = ["pods", "nodes"];
const NAMESPACES: [&str; 3] = ["", "a", "b"];

#[derive(Clone, Copy, Debug)]
enum At {
    Absent,
    Current,
    Stale,
}

#[derive(Clone, Debug)]
enum Step {
    Put(usize, At),
    Delete(usize, At),
    Get(usize),
    List { resource: usize, namespace: usize, back: u64, limit: usize, even: bool },
    Watch { resource: usize, namespace: usize, back: u64 },
    Drain(usize),
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let at = prop_oneof![4 => Just(At::Absent), 6 => Just(At::Current), 1 => Just(At::Stale)];
    let select = (0..2usize, 0..4usize, 0..12u64);
    prop_oneof![
        10 => (0..12usize, at.clone()).prop_map(|(key, at)| Step::Put(key, at)),
        4 => (0..12usize, at).prop_map(|(key, at)| Step::Delete(key, at)),
        1 => (0..12usize).prop_map(Step::Get),
        4 => (select.clone(), 0..4usize, any::<bool>()).prop_map(|((resource, namespace, back), limit, even)| {
            Step::List { resource, namespace, back, limit, even }
        }),
        3 => select.prop_map(|(resource, namespace, back)| Step::Watch { resource, namespace, back }),
        3 => (0..8usize).prop_map(Step::Drain),
        1 => Just(Step::Reopen),
    ]
}

/// Twelve keys over two resources and three namespaces.
fn key(number: usize) -> Key {
    Key::new(RESOURCES[number % 2], NAMESPACES[number / 2 % 3], format!("n{}", number / 6))
}

#[derive(Clone)]
struct Happening {
    kind: EventKind,
    object: Object,
    previous: Option<Object>,
}

#[derive(Default)]
struct Model {
    /// Event `i` has revision `i + 2`.
    happened: Vec<Happening>,
    opened_at: Revision,
}

impl Model {
    fn revision(&self) -> Revision {
        self.happened.len() as Revision + 1
    }

    fn state(&self, at: Revision) -> BTreeMap<Key, Object> {
        let mut state = BTreeMap::new();
        for happening in &self.happened[..at as usize - 1] {
            match happening.kind {
                EventKind::Deleted => state.remove(&happening.object.key),
                _ => state.insert(happening.object.key.clone(), happening.object.clone()),
            };
        }
        state
    }

    /// The oldest revision that the store must still know of a resource.
    fn oldest(&self, resource: &str) -> Revision {
        let since_open = &self.happened[self.opened_at as usize - 1..];
        let forgotten = &since_open[..since_open.len().saturating_sub(HISTORY)];
        let newest = forgotten.iter().rev().find(|happening| &*happening.object.key.resource == resource);
        newest.map_or(self.opened_at, |happening| happening.object.revision)
    }

    fn after(&self, resource: &str, namespace: Option<&str>, after: Revision) -> Vec<&Happening> {
        let wanted = |happening: &&Happening| {
            let key = &happening.object.key;
            &*key.resource == resource && namespace.is_none_or(|namespace| namespace == &*key.namespace)
        };
        self.happened[after as usize - 1..].iter().filter(wanted).collect()
    }
}

struct Watcher {
    watch: Watch,
    resource: &'static str,
    namespace: Option<&'static str>,
    cursor: Revision,
}

struct Test {
    disk: Disk,
    store: Store,
    model: Model,
    watchers: Vec<Watcher>,
}

impl Test {
    fn open(disk: &Disk) -> Store {
        let options = Options { history_events: HISTORY, ..Options::default() };
        crate::open(disk, options).unwrap()
    }

    async fn write(&mut self, number: usize, at: At, deletes: bool) {
        let key = key(number);
        let current = self.model.state(self.model.revision()).remove(&key);
        let at = match (at, current.as_ref().map(|object| object.revision)) {
            (At::Absent, _) => None,
            (At::Current, current) => Some(current.unwrap_or(1)),
            (At::Stale, current) => Some(current.map_or(1, |current| current - 1)),
        };
        let outcome = match (deletes, at) {
            (true, at) => self.store.delete(key.clone(), at.unwrap_or(0), stamped("gone")).await,
            (false, None) => self.store.put(key.clone(), Precondition::Absent, stamped("new")).await,
            (false, Some(at)) => {
                self.store.put(key.clone(), Precondition::Revision(at), stamped("again")).await
            }
        };
        let (kind, text) = match (deletes, at, current.as_ref().map(|object| object.revision)) {
            (false, None, None) => (EventKind::Created, "new"),
            (false, None, Some(now)) => {
                assert!(
                    matches!(outcome, Err(WriteError::Exists { current }) if current == now),
                    "{outcome:?}"
                );
                return;
            }
            (_, _, None) => {
                assert!(matches!(outcome, Err(WriteError::Missing)), "{outcome:?}");
                return;
            }
            (_, at, Some(now)) if at != Some(now) => {
                assert!(
                    matches!(outcome, Err(WriteError::Conflict { current }) if current == now),
                    "{outcome:?}"
                );
                return;
            }
            (true, ..) => (EventKind::Deleted, "gone"),
            (false, ..) => (EventKind::Updated, "again"),
        };
        let revision = self.model.revision() + 1;
        let object = Object { key, revision, value: format!("{revision}:{text}").into() };
        assert_eq!(outcome.unwrap(), object);
        self.model.happened.push(Happening { kind, object, previous: current });
    }

    /// Reads a whole list page by page at one revision.
    fn list(&self, resource: &'static str, namespace: Option<&str>, back: u64, limit: usize, even: bool) {
        let at = self.model.revision().saturating_sub(back).max(1);
        let keep = |object: &Object| !even || object.revision.is_multiple_of(2);
        let mut pages = Vec::new();
        let mut after: Option<(String, String)> = None;
        loop {
            let from = after.as_ref().map(|(namespace, name)| (&**namespace, &**name));
            let page = match self.store.list(resource, namespace, Some(at), from, limit, keep) {
                Ok(page) => page,
                Err(error) => {
                    let oldest = self.model.oldest(resource);
                    assert_eq!(error, ListError::Expired { oldest });
                    assert!(at < oldest);
                    return;
                }
            };
            assert_eq!(page.revision, at);
            assert!(limit == 0 || page.objects.len() <= limit);
            let more = page.more();
            if let Some(last) = page.objects.last() {
                after = Some((last.key.namespace.to_string(), last.key.name.to_string()));
            }
            pages.extend(page.objects);
            if !more {
                break;
            }
        }
        let within = |key: &Key| {
            &*key.resource == resource && namespace.is_none_or(|namespace| namespace == &*key.namespace)
        };
        let expected: Vec<Object> =
            self.model.state(at).into_values().filter(|object| within(&object.key) && keep(object)).collect();
        assert_eq!(pages, expected, "{resource} {namespace:?} at {at}");
    }

    fn watch(&mut self, resource: &'static str, namespace: Option<&'static str>, back: u64) {
        let after = self.model.revision().saturating_sub(back).max(1);
        let oldest = self.model.oldest(resource);
        match self.store.watch(resource, namespace, after) {
            Ok(watch) => {
                assert!(after >= oldest);
                self.watchers.push(Watcher { watch, resource, namespace, cursor: after });
                self.watchers.truncate(8);
            }
            Err(error) => {
                assert_eq!(error, WatchError::Expired { oldest });
                assert!(after < oldest);
            }
        }
    }

    fn drain(&mut self, index: usize) {
        let Some(mut watcher) = (index < self.watchers.len()).then(|| self.watchers.swap_remove(index))
        else {
            return;
        };
        let oldest = self.model.oldest(watcher.resource);
        if watcher.cursor < oldest {
            assert_eq!(watcher.watch.try_next(), Err(WatchEnd::Lagged { oldest }));
            return;
        }
        for happening in self.model.after(watcher.resource, watcher.namespace, watcher.cursor) {
            let event = watcher.watch.try_next().unwrap().expect("an event");
            assert_eq!(
                (event.kind, &event.object, &event.previous),
                (happening.kind, &happening.object, &happening.previous)
            );
            assert_eq!(event.revision, happening.object.revision);
        }
        assert_eq!(watcher.watch.try_next().unwrap(), None);
        watcher.cursor = self.model.revision();
        assert_eq!(watcher.watch.revision(), watcher.cursor);
        self.watchers.push(watcher);
    }

    async fn run(steps: Vec<Step>) {
        let disk = Disk::default();
        let model = Model { opened_at: 1, ..Model::default() };
        let mut test = Test { store: Test::open(&disk), disk, model, watchers: Vec::new() };
        let namespace = |index: usize| NAMESPACES.get(index).copied();
        for step in steps {
            match step {
                Step::Put(key, at) => test.write(key, at, false).await,
                Step::Delete(key, at) => test.write(key, at, true).await,
                Step::Get(number) => {
                    let expected = test.model.state(test.model.revision()).remove(&key(number));
                    assert_eq!(test.store.get(&key(number)), expected);
                }
                Step::List { resource, namespace: index, back, limit, even } => {
                    test.list(RESOURCES[resource], namespace(index), back, limit, even);
                }
                Step::Watch { resource, namespace: index, back } => {
                    test.watch(RESOURCES[resource], namespace(index), back);
                }
                Step::Drain(index) => test.drain(index),
                Step::Reopen => {
                    test.store.close().await;
                    test.watchers.clear();
                    test.store = Test::open(&test.disk);
                    test.model.opened_at = test.model.revision();
                }
            }
            assert_eq!(test.store.revision(), test.model.revision());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, ..ProptestConfig::default() })]

    #[test]
    fn behaves_as_the_model(steps in proptest::collection::vec(step(), 1..80)) {
        run(Test::run(steps));
    }
}
