//! Watches that keep up, fall behind, start late, and end.

use std::sync::Arc;
use std::time::Duration;

use object_store::{
    EventKind, Key, ListError, Options, Precondition, Store, WatchEnd, WatchError, WriteError,
};

use crate::disk::Disk;
use crate::{open, pod, run, stamped};

fn store(history_events: usize, history_bytes: usize) -> Store {
    let options = Options { history_events, history_bytes, ..Options::default() };
    open(&Disk::default(), options).unwrap()
}

async fn create(store: &Store, key: Key) -> u64 {
    store.put(key, Precondition::Absent, stamped("x")).await.unwrap().revision
}

#[test]
fn a_slow_reader_is_told_and_others_are_not_held_up() {
    run(async {
        let store = store(5, usize::MAX);
        let mut slow = store.watch("pods", None, 1).unwrap();
        let mut quick = store.watch("pods", None, 1).unwrap();
        let mut quiet = store.watch("nodes", None, 1).unwrap();
        for number in 0..20 {
            let revision = create(&store, pod(&format!("p{number}"))).await;
            assert_eq!(quick.next().await.unwrap().revision, revision);
        }
        assert_eq!(slow.next().await.unwrap_err(), WatchEnd::Lagged { oldest: 16 });
        assert_eq!(store.watch("pods", None, 15).unwrap_err(), WatchError::Expired { oldest: 16 });
        assert_eq!(store.watch("pods", None, 22).unwrap_err(), WatchError::Future { current: 21 });
        let mut late = store.watch("pods", None, 16).unwrap();
        assert_eq!(late.next().await.unwrap().revision, 17);
        assert_eq!(
            store.list("pods", None, Some(15), None, 0, |_| true),
            Err(ListError::Expired { oldest: 16 })
        );
        assert_eq!(store.list("pods", None, Some(16), None, 0, |_| true).unwrap().objects.len(), 15);

        // Nothing happened to nodes: a busy neighbour does not make their watchers start anew.
        create(&store, Key::new("nodes", "", "n")).await;
        assert_eq!(quiet.next().await.unwrap().revision, 22);
        assert!(store.watch("nodes", None, 1).is_ok());
    });
}

#[test]
fn history_is_bounded_by_bytes() {
    run(async {
        let store = store(usize::MAX, 3500);
        for name in ["a", "b", "c", "d", "e"] {
            store.put(pod(name), Precondition::Absent, stamped("x".repeat(998))).await.unwrap();
        }
        assert_eq!(store.watch("pods", None, 2).unwrap_err(), WatchError::Expired { oldest: 3 });
        assert!(store.watch("pods", None, 3).is_ok());
        store.put(pod("f"), Precondition::Absent, stamped("x".repeat(5000))).await.unwrap();
        assert_eq!(store.watch("pods", None, 6).unwrap_err(), WatchError::Expired { oldest: 7 });
    });
}

#[test]
fn a_watch_sees_its_namespace_and_moves_its_bookmark_past_the_rest() {
    run(async {
        let store = store(100, usize::MAX);
        let (page, mut watch) = store.list_and_watch("pods", Some("a"), |_| true).unwrap();
        assert_eq!((page.objects.len(), page.revision), (0, 1));
        create(&store, Key::new("pods", "b", "p")).await;
        create(&store, Key::new("nodes", "", "n")).await;
        assert_eq!(watch.try_next().unwrap(), None);
        assert_eq!(watch.revision(), 3);
        create(&store, Key::new("pods", "a", "p")).await;
        let event = watch.next().await.unwrap();
        assert_eq!((event.kind, event.revision, &event.previous), (EventKind::Created, 4, &None));
        store.delete(Key::new("pods", "a", "p"), 4, stamped("last")).await.unwrap();
        let event = watch.next().await.unwrap();
        assert_eq!((event.kind, &event.object.value[..]), (EventKind::Deleted, &b"5:last"[..]));
        assert_eq!(event.previous.as_ref().map(|object| object.revision), Some(4));
    });
}

#[test]
fn a_waiting_watch_wakes_and_ends() {
    run(async {
        let store = store(100, usize::MAX);
        let mut watch = store.watch("pods", None, 1).unwrap();
        let waiting =
            tokio::spawn(async move { (watch.next().await.map(|event| event.revision), watch.next().await) });
        create(&store, pod("a")).await;
        store.close().await;
        let (first, end) = tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap().unwrap();
        assert_eq!((first, end), (Ok(2), Err(WatchEnd::Closed)));
        assert!(matches!(
            store.put(pod("b"), Precondition::Absent, stamped("x")).await,
            Err(WriteError::Closed)
        ));
        assert!(store.get(&pod("a")).is_some(), "what was stored can still be read");
    });
}

#[test]
fn sizes_and_queues_are_bounded() {
    run(async {
        let options = Options { object_bytes: 100, queue: 2, ..Options::default() };
        let store = open(&Disk::default(), options).unwrap();
        let error = store.put(pod("a"), Precondition::Absent, stamped("x".repeat(100))).await.unwrap_err();
        assert!(matches!(error, WriteError::TooLarge { size: 102, limit: 100 }), "{error}");
        assert_eq!((store.revision(), store.get(&pod("a"))), (1, None));
        let store = Arc::new(store);
        let writes = (0..200).map(|number| {
            let store = store.clone();
            tokio::spawn(async move { create(&store, pod(&number.to_string())).await })
        });
        let mut revisions = Vec::new();
        for write in writes.collect::<Vec<_>>() {
            revisions.push(write.await.unwrap());
        }
        revisions.sort_unstable();
        assert_eq!(revisions, (2..202).collect::<Vec<_>>(), "each write has its own revision");
    });
}
