//! Flushes that are shared. Whoever needs that what it did so far survives power loss waits for a flush that begins after
//! that; one is under way at a time, and all who come meanwhile wait for the next one together.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use linux::{Error, Result};
use parking_lot::{Condvar, Mutex};

/// How long somebody waits for a flush: less than the caller does for the whole change.
pub(crate) const DEADLINE: Duration = Duration::from_secs(90);

/// Failures that are remembered for those who wait: each waits for one of the next two flushes.
const REMEMBERED: usize = 8;

/// The flushes of one kind of one drive.
#[derive(Default)]
pub(crate) struct Flushes {
    turns: Mutex<Turns>,
    ended: Condvar,
}

/// Flushes are numbered from 1.
#[derive(Default)]
struct Turns {
    begun: u64,
    ended: u64,
    /// Those that failed. What a failed flush was to make durable no later one can be trusted with.
    failed: BTreeMap<u64, Error>,
}

impl Flushes {
    /// Returns once a flush has ended that began after this call. `flush` does one; it is called by one of those who
    /// wait, for all of them.
    ///
    /// # Errors
    /// When that flush failed, or there is no end of it (`TimedOut`).
    pub(crate) fn share(&self, flush: impl Fn() -> Result<()>) -> Result<()> {
        let until = Instant::now() + DEADLINE;
        let mut turns = self.turns.lock();
        let mine = turns.begun + 1;
        while turns.ended < mine {
            if turns.begun > turns.ended {
                if self.ended.wait_until(&mut turns, until).timed_out() {
                    return Err(Error::new("flush", "the drive", std::io::ErrorKind::TimedOut));
                }
                continue;
            }
            turns.begun += 1;
            let number = turns.begun;
            drop(turns);
            let under_way = UnderWay { flushes: self, number };
            let done = flush();
            turns = self.turns.lock();
            if let Err(error) = done {
                turns.failed.insert(number, error);
                while turns.failed.len() > REMEMBERED {
                    turns.failed.pop_first();
                }
            }
            under_way.end(&mut turns);
        }
        match turns.failed.range(mine..).next() {
            None => Ok(()),
            Some((_, error)) => Err(error.again()),
        }
    }
}

/// A flush; it has ended when this is dropped, as when the flush panics, or a next one would never begin.
struct UnderWay<'a> {
    flushes: &'a Flushes,
    number: u64,
}

impl UnderWay<'_> {
    fn end(self, turns: &mut Turns) {
        turns.ended = self.number;
        self.flushes.ended.notify_all();
        std::mem::forget(self);
    }
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        let mut turns = self.flushes.turns.lock();
        turns.ended = self.number;
        turns.failed.insert(self.number, Error::because("flush", "the drive", "whoever did it panicked"));
        self.flushes.ended.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
        mpsc,
    };

    use super::*;

    /// Those who come while a flush is under way are served by the one after it, all together.
    #[test]
    fn who_comes_while_a_flush_is_under_way_shares_the_next_one() {
        let (flushes, count) = (Flushes::default(), AtomicUsize::new(0));
        let (begun, is_begun) = mpsc::channel();
        let (go, may_go) = mpsc::channel::<()>();
        let may_go = Mutex::new(may_go);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                flushes.share(|| {
                    count.fetch_add(1, Ordering::SeqCst);
                    begun.send(()).expect("the test listens");
                    may_go.lock().recv().map_err(|error| Error::because("wait", "go", error.to_string()))
                })
            });
            is_begun.recv().expect("the first begins");
            let waiting = Arc::new(AtomicUsize::new(0));
            let others: Vec<_> = (0..16)
                .map(|_| {
                    let waiting = waiting.clone();
                    let (flushes, count) = (&flushes, &count);
                    scope.spawn(move || {
                        waiting.fetch_add(1, Ordering::SeqCst);
                        flushes.share(|| {
                            count.fetch_add(1, Ordering::SeqCst);
                            Ok(())
                        })
                    })
                })
                .collect();
            while waiting.load(Ordering::SeqCst) < 16 {
                std::thread::yield_now();
            }
            go.send(()).expect("the first waits");
            assert!(others.into_iter().all(|other| other.join().expect("no panic").is_ok()));
        });
        // A thread that had said that it waits may have been late.
        let count = count.load(Ordering::SeqCst);
        assert!((2..=17).contains(&count), "{count} flushes");
    }

    #[test]
    fn a_failure_is_told_to_all_who_waited_for_it_and_to_no_later_one() {
        let (flushes, fails) = (Flushes::default(), AtomicBool::new(true));
        let flush = || match fails.load(Ordering::SeqCst) {
            true => Err(Error::new("sync", "x", std::io::Error::from_raw_os_error(5))),
            false => Ok(()),
        };
        assert_eq!(flushes.share(flush).expect_err("it fails").errno(), Some(5));
        fails.store(false, Ordering::SeqCst);
        flushes.share(flush).expect("a later one");
        let panicked =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| flushes.share(|| panic!("in a flush"))));
        assert!(panicked.is_err());
        flushes.share(flush).expect("a panic keeps nobody waiting");
    }
}
