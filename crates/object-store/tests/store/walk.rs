//! The store as its callers use it.

use object_store::*;

use crate::{pod as key, stamped as text};

#[tokio::test]
async fn writes_are_read_listed_watched_and_survive() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store.redb");
    let store = Store::open(&path, Options::default()).unwrap();
    assert_eq!(store.revision(), 1);
    let mut watch = store.watch("pods", None, 1).unwrap();
    let a = store.put(key("a"), Precondition::Absent, text("one")).await.unwrap();
    assert_eq!((a.revision, &a.value[..]), (2, &b"2:one"[..]));
    assert!(matches!(
        store.put(key("a"), Precondition::Absent, text("x")).await,
        Err(WriteError::Exists { current: 2 })
    ));
    assert!(matches!(
        store.put(key("a"), Precondition::Revision(1), text("x")).await,
        Err(WriteError::Conflict { current: 2 })
    ));
    store.put(key("a"), Precondition::Revision(2), text("two")).await.unwrap();
    store.put(key("b"), Precondition::Absent, text("b")).await.unwrap();
    store.delete(key("a"), 3, text("gone")).await.unwrap();
    let kinds: Vec<_> = [watch.next().await, watch.next().await, watch.next().await, watch.next().await]
        .into_iter()
        .map(|event| event.unwrap().kind)
        .collect();
    assert_eq!(kinds, [EventKind::Created, EventKind::Updated, EventKind::Created, EventKind::Deleted]);
    let old = store.list("pods", None, Some(3), None, 0, |_| true).unwrap();
    assert_eq!(old.objects.iter().map(|o| &o.value[..]).collect::<Vec<_>>(), [b"3:two"]);
    assert!(matches!(Store::open(&path, Options::default()), Err(OpenError::Locked { .. })));
    store.close().await;
    assert!(matches!(watch.next().await, Err(WatchEnd::Closed)));

    let store = Store::open(&path, Options::default()).unwrap();
    assert_eq!(store.revision(), 5);
    assert_eq!(store.get(&key("a")), None);
    assert_eq!(store.get(&key("b")).unwrap().revision, 4);
    assert_eq!(store.watch("pods", None, 4).unwrap_err(), WatchError::Expired { oldest: 5 });
    assert!(store.watch("pods", None, 5).is_ok());
}
