//! What the store promises of a disk that keeps no promises.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::join_all;
use object_store::{Encode, Object, OpenError, Options, Precondition, Revision, Store, WriteError};

use crate::disk::{Dice, Disk, Fault};
use crate::{eventually, open, pod, run, stamped};

/// Every write that the writer ever numbered: the object's name, and its bytes unless it was deleted.
type Log = Arc<Mutex<BTreeMap<Revision, (String, Option<Bytes>)>>>;

/// One machine's life: it works, its disk fails, it starts again on what the disk has kept.
struct Life {
    seed: u64,
    dice: Dice,
    log: Log,
    /// The newest revision that any caller was told of.
    acknowledged: Revision,
}

impl Life {
    /// Some names written over and over, some bytes that fill more than a page.
    fn encode(&mut self, name: &str, deletes: bool) -> Encode {
        let (log, name, length) = (self.log.clone(), name.to_owned(), self.dice.roll(6000) as usize);
        Box::new(move |revision| {
            let value = Bytes::from(format!("{revision} {name} {}", "x".repeat(length)));
            log.lock().unwrap().insert(revision, (name, (!deletes).then(|| value.clone())));
            value
        })
    }

    /// Writes in bursts until the disk fails or the time is over.
    async fn work(&mut self, store: &Store) -> Result<(), WriteError> {
        for _ in 0..self.dice.roll(12) + 1 {
            let mut writes = Vec::new();
            for _ in 0..self.dice.roll(5) + 1 {
                let name = format!("p{}", self.dice.roll(8));
                let current = store.get(&pod(&name)).map(|object| object.revision);
                let deletes = current.is_some() && self.dice.roll(3) == 0;
                let encode = self.encode(&name, deletes);
                let store = store.clone();
                writes.push(async move {
                    match current {
                        None => store.put(pod(&name), Precondition::Absent, encode).await,
                        Some(at) if deletes => store.delete(pod(&name), at, encode).await,
                        Some(at) => store.put(pod(&name), Precondition::Revision(at), encode).await,
                    }
                });
            }
            for outcome in join_all(writes).await {
                match outcome {
                    Ok(object) => {
                        self.acknowledged = self.acknowledged.max(object.revision);
                        assert!(store.revision() >= object.revision, "an answered write can be read");
                    }
                    // Two writes of a burst were to the same object.
                    Err(WriteError::Exists { .. } | WriteError::Conflict { .. } | WriteError::Missing) => {}
                    Err(error) => return Err(error),
                }
            }
        }
        Ok(())
    }

    fn expected(&self, at: Revision) -> BTreeMap<String, Bytes> {
        let mut objects = BTreeMap::new();
        for (_, (name, value)) in self.log.lock().unwrap().range(..=at) {
            match value {
                Some(value) => objects.insert(name.clone(), value.clone()),
                None => objects.remove(name),
            };
        }
        objects
    }

    /// All that was acknowledged is there; of the rest, whole commits in order or nothing.
    fn check(&mut self, store: &Store, when: &str) {
        let revision = store.revision();
        assert!(
            revision >= self.acknowledged,
            "seed {} {when}: {revision} < {}",
            self.seed,
            self.acknowledged
        );
        let page = store.list("pods", None, None, None, 0, |_| true).unwrap();
        let text = |object: &Object| (object.key.name.to_string(), object.value.clone());
        let found: BTreeMap<_, _> = page.objects.iter().map(text).collect();
        assert!(found == self.expected(revision), "seed {} {when}: wrong objects at {revision}", self.seed);
    }

    async fn use_once(&mut self, store: &Store, disk: &Disk) {
        self.check(store, "after opening");
        // Numbers that were given but never became durable are given again.
        self.log.lock().unwrap().split_off(&(store.revision() + 1));
        self.acknowledged = store.revision();
        for round in 0.. {
            let Err(error) = self.work(store).await else { break };
            assert!(matches!(error, WriteError::Disk(_)), "seed {}: {error}", self.seed);
            self.check(store, "after the failure");
            if disk.is_off() || round == 3 {
                break;
            }
            // In some lives it is killed before it has come back.
            if self.dice.roll(3) == 0 {
                break;
            }
            eventually("writes are taken again", || store.health().is_ok()).await;
            self.check(store, "when it has come back");
            self.log.lock().unwrap().split_off(&(store.revision() + 1));
        }
        if self.dice.roll(3) == 0 {
            store.close().await;
        }
    }

    async fn live(&mut self) {
        let mut disk = Disk::default();
        for _ in 0..5 {
            let steps = self.dice.roll(60);
            match self.dice.roll(4) {
                0 => disk.set_fault(Fault::PowerCut(steps)),
                1 => disk.set_fault(Fault::Sync(steps / 8)),
                2 => disk.set_fault(Fault::Write(steps)),
                _ => {}
            }
            let opened = open(&disk, quick());
            if let Ok(store) = &opened {
                self.use_once(store, &disk).await;
            }
            // Taken while the store is open, in two of three lives: it is killed, not closed.
            disk = match self.dice.roll(2) {
                0 => disk.after_kill(&mut self.dice),
                _ => disk.after_power_cut(&mut self.dice),
            };
            match opened {
                Ok(store) => store.close().await,
                Err(OpenError::Disk(_)) => {}
                Err(error) => panic!("seed {}: a failing disk is no corrupt store: {error}", self.seed),
            }
        }
        let store = open(&disk, quick());
        let store = store.unwrap_or_else(|error| panic!("seed {}: {error}", self.seed));
        self.check(&store, "at the end");
        store.close().await;
    }
}

#[test]
fn acknowledged_writes_survive_every_fault() {
    let seeds = std::env::var("STORE_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(120);
    run(async {
        for seed in 0..seeds {
            let mut life = Life { seed, dice: Dice::new(seed), log: Log::default(), acknowledged: 1 };
            life.live().await;
        }
    });
}

/// Tries a failed disk again at once.
fn quick() -> Options {
    Options { retry: Duration::from_millis(1), ..Options::default() }
}

#[test]
fn a_failed_sync_shows_nothing_and_the_store_comes_back() {
    run(async {
        let disk = Disk::default();
        let store = open(&disk, quick()).unwrap();
        store.put(pod("a"), Precondition::Absent, stamped("kept")).await.unwrap();
        let mut watch = store.watch("pods", None, 2).unwrap();
        disk.set_fault(Fault::Sync(0));
        let failed = store.put(pod("a"), Precondition::Revision(2), stamped("lost")).await;
        assert!(matches!(failed, Err(WriteError::Disk(_))), "{failed:?}");
        let message = failed.unwrap_err().to_string();
        assert!(message.contains("simulated I/O error") && message.contains("free space"), "{message}");
        assert_eq!(&store.get(&pod("a")).unwrap().value[..], b"2:kept");
        assert_eq!((store.revision(), watch.try_next().unwrap()), (2, None));

        eventually("writes are taken again", || store.health().is_ok()).await;
        assert_eq!(&store.get(&pod("a")).unwrap().value[..], b"2:kept");
        store.put(pod("a"), Precondition::Revision(2), stamped("again")).await.unwrap();
        assert_eq!(&watch.next().await.unwrap().object.value[..], b"3:again", "what failed is not published");
        store.close().await;
        let store = open(&disk, quick()).unwrap();
        assert_eq!(&store.get(&pod("a")).unwrap().value[..], b"3:again");
    });
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_room() {
    run(async {
        let disk = Disk::default();
        let store = open(&disk, quick()).unwrap();
        store.put(pod("a"), Precondition::Absent, stamped("kept")).await.unwrap();
        let mut watch = store.watch("pods", None, 2).unwrap();
        disk.set_full(true);
        for _ in 0..3 {
            let refused = store.put(pod("b"), Precondition::Absent, stamped("lost")).await;
            assert!(matches!(refused, Err(WriteError::Disk(_))), "{refused:?}");
        }
        let tried = disk.opened();
        eventually("it is tried again and again", || disk.opened() > tried + 3).await;
        assert!(store.health().is_err());
        assert!(store.get(&pod("a")).is_some() && store.get(&pod("b")).is_none());

        disk.set_full(false);
        eventually("writes are taken again", || store.health().is_ok()).await;
        store.put(pod("c"), Precondition::Absent, stamped("new")).await.unwrap();
        assert_eq!(&*watch.next().await.unwrap().object.key.name, "c");
        disk.set_full(true);
        store.put(pod("d"), Precondition::Absent, stamped("lost")).await.unwrap_err();
        store.close().await;
        disk.set_full(false);
        let store = open(&disk, quick()).unwrap();
        let names: Vec<_> = ["a", "b", "c", "d"].map(|name| store.get(&pod(name)).is_some()).into();
        // The last write was under way when the process ended: it may be there.
        assert_eq!(names[..3], [true, false, true]);
    });
}
