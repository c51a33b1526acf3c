//! `kill -9` of the driver at random moments, while many make, grow, mount and delete volumes.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::common::caller::{self, Caller, Running};
use crate::common::{Place, Random, seed};
use crate::tally::Tally;

const ROUNDS: usize = 25;
const CALLERS: usize = 6;

#[tokio::test(flavor = "multi_thread")]
#[ignore = "an attack: cargo xtask attack"]
async fn no_acknowledged_volume_is_lost_and_none_is_left_over() {
    let mut random = Random(seed());
    let place = Place::new();
    let mut tally = Tally::new("kills of the driver");
    // Names whose creation was acknowledged, and whose deletion was not asked for.
    let kept: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    // Names whose last call got no answer.
    let doubtful: Arc<Mutex<BTreeSet<String>>> = Arc::default();
    for round in 0..ROUNDS {
        let arguments: &[&str] =
            if round == 0 { &["--loop-drive", "2Gi", "--loop-drive", "2Gi"] } else { &[] };
        let running = Running::start(&place, arguments);
        let caller = Caller::connect(&caller::socket(&place), place.path()).await;
        let workers: Vec<_> = (0..CALLERS)
            .map(|worker| {
                let (caller, kept, doubtful) = (caller.clone(), kept.clone(), doubtful.clone());
                tokio::spawn(async move {
                    for number in 0.. {
                        let name = format!("r{round}-w{worker}-{number}");
                        doubtful.lock().insert(name.clone());
                        let Ok(volume) = caller.create(&name, 4 << 20).await else { return };
                        if number % 3 == 0 {
                            let Ok(()) = caller.delete(&volume).await else { return };
                            doubtful.lock().remove(&name);
                            continue;
                        }
                        doubtful.lock().remove(&name);
                        kept.lock().insert(name.clone());
                        if number % 5 == 0 && caller.expand(&volume, 8 << 20).await.is_err() {
                            return;
                        }
                    }
                })
            })
            .collect();
        tokio::time::sleep(Duration::from_millis(200 + random.below(1500))).await;
        running.kill();
        std::fs::remove_file(caller::socket(&place)).ok();
        for worker in workers {
            worker.await.expect("a worker");
        }
        tally.count("kills");
    }
    let running = Running::start(&place, &[]);
    let caller = Caller::connect(&caller::socket(&place), place.path()).await;
    let on_drives = caller.names().await;
    for name in kept.lock().iter() {
        assert!(on_drives.contains(name), "{name} was acknowledged and is lost");
        tally.count("acknowledged volumes found");
    }
    let expected: BTreeSet<String> = kept.lock().union(&doubtful.lock()).cloned().collect();
    assert!(
        on_drives.is_subset(&expected),
        "what nobody asked to keep is there: {:?}",
        on_drives.difference(&expected)
    );
    // Asked again, what is there is given and not made twice; then everything goes.
    for name in &on_drives {
        let volume = caller.create(name, 4 << 20).await.expect("the same volume");
        caller.delete(&volume).await.expect("deleted");
    }
    assert_eq!(caller.names().await, BTreeSet::new());
    running.stop();
    assert_eq!(place.leftovers(), Vec::<String>::new());
}
