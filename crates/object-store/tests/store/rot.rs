//! Bits that flip on the disk.

use std::time::{Duration, Instant};

use object_store::{Object, OpenError, Options, Precondition, Store};

use crate::disk::{Dice, Disk};
use crate::{open, pod, run, stamped};

const NAMES: usize = 24;

/// A store with objects of several sizes, some of them written over, some deleted: as it is while a process has it open,
/// and after it was closed. And what it holds after each of its last writes.
fn images() -> (Vec<u8>, Vec<u8>, Vec<Vec<Object>>) {
    let disk = Disk::default();
    run(async {
        let store = open(&disk, Options::default()).unwrap();
        let mut states = Vec::new();
        for round in 0..3 {
            for number in 0..NAMES {
                let key = pod(&format!("p{number}"));
                let value = stamped(format!("{number} ").repeat(40 * number + 1));
                match (round, store.get(&key)) {
                    (2, Some(current)) if number % 5 == 0 => {
                        store.delete(key, current.revision, stamped("gone")).await.unwrap();
                    }
                    (_, Some(current)) => {
                        store.put(key, Precondition::Revision(current.revision), value).await.unwrap();
                    }
                    (_, None) => _ = store.put(key, Precondition::Absent, value).await.unwrap(),
                }
                states.push(objects(&store));
            }
        }
        let open = disk.image();
        store.close().await;
        (open, disk.image(), states)
    })
}

fn objects(store: &Store) -> Vec<Object> {
    store.list("pods", None, None, None, 0, |_| true).unwrap().objects
}

/// What came of opening a damaged file.
#[derive(Default, Debug)]
struct Tally {
    whole: usize,
    contained: usize,
    refused: usize,
}

/// Everything is right, or refused, or told to be damaged; within a deadline.
fn examine(image: Vec<u8>, states: &[Vec<Object>], closed: bool, what: &str, tally: &mut Tally) {
    let began = Instant::now();
    let disk = Disk::from_image(image);
    match open(&disk, Options::default()) {
        Ok(store) => {
            let found = objects(&store);
            let (damaged, whole): (Vec<_>, Vec<_>) = found.into_iter().partition(Object::is_damaged);
            let last = states.last().unwrap();
            let mut possible: Box<dyn Iterator<Item = &Vec<Object>>> = match closed {
                true => Box::new(std::iter::once(last)),
                // What was written last looks like a write that was cut off.
                false => Box::new(states.iter().rev().take(2)),
            };
            let right = |state: &Vec<Object>| match damaged.is_empty() {
                true => *state == whole,
                // A bit of where one ends and the next begins is of both.
                false => whole.iter().all(|object| state.contains(object)) && whole.len() + 2 >= state.len(),
            };
            assert!(
                possible.any(right),
                "{what}: wrong objects: {} whole, {} damaged, {} expected",
                whole.len(),
                damaged.len(),
                last.len()
            );
            if damaged.is_empty() {
                tally.whole += 1
            } else {
                tally.contained += 1
            }
            // It takes writes, damaged objects can be deleted, and both is there after another start.
            run(async {
                for object in &damaged {
                    store.delete(object.key.clone(), object.revision, stamped("gone")).await.unwrap();
                }
                store.put(pod("new"), Precondition::Absent, stamped("new")).await.unwrap();
                store.close().await;
            });
            let store =
                open(&disk, Options::default()).unwrap_or_else(|error| panic!("{what}, again: {error}"));
            assert!(
                store.get(&pod("new")).is_some() && objects(&store).len() == whole.len() + 1,
                "{what}, again"
            );
            run(store.close());
        }
        Err(error) => {
            assert!(
                matches!(error, OpenError::Corrupt { .. } | OpenError::NewerFormat { .. }),
                "{what}: {error:?}"
            );
            tally.refused += 1;
        }
    }
    assert!(began.elapsed() < Duration::from_secs(60), "{what} took {:?}", began.elapsed());
}

#[test]
fn flipped_bits_are_found_and_never_served() {
    let (open, closed, states) = images();
    let flips = std::env::var("STORE_FLIPS").ok().and_then(|flips| flips.parse().ok()).unwrap_or(300);
    let mut tally = Tally::default();
    let first = std::env::var("STORE_FLIP").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + flips {
        let mut dice = Dice::new(seed);
        let is_closed = dice.roll(3) > 0;
        let mut image = if is_closed { closed.clone() } else { open.clone() };
        // Where there is something, or else most bits would be in free space; sometimes in the heads.
        let at = loop {
            let at = match dice.roll(5) {
                0 => dice.roll(2) * 4096 + dice.roll(320),
                _ => dice.roll(image.len() as u64),
            } as usize;
            if image[at & !511..][..512].iter().any(|byte| *byte != 0) {
                break at;
            }
        };
        let bit = dice.roll(8);
        image[at] ^= 1 << bit;
        examine(
            image,
            &states,
            is_closed,
            &format!("seed {seed}: bit {bit} of byte {at}, closed: {is_closed}"),
            &mut tally,
        );
    }
    println!("{flips} flipped bits: {tally:?}");
}

/// A flip in an object's bytes costs that object, whichever it is, and no other.
#[test]
fn damage_is_contained_to_its_object() {
    let (_, closed, states) = images();
    let last = states.last().unwrap();
    for object in last {
        let mut image = closed.clone();
        let places = image.windows(object.value.len()).enumerate();
        let places: Vec<_> = places.filter(|(_, bytes)| *bytes == &*object.value).map(|(at, _)| at).collect();
        assert!(!places.is_empty(), "{} is in the file", object.key);
        // Copies of it that older commits left are hit as well.
        places.iter().for_each(|at| image[at + object.value.len() / 2] ^= 0x10);
        let store = open(&Disk::from_image(image), Options::default()).unwrap();
        for stored in objects(&store) {
            assert_eq!(stored.is_damaged(), stored.key == object.key, "{}", stored.key);
        }
        assert_eq!((objects(&store).len(), store.revision()), (last.len(), states.len() as u64 + 1));
        run(store.close());
    }
}
