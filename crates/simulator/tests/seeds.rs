//! Stories of many seeds. `ORLOP_SEED=7` plays one and tells it, `ORLOP_SEEDS=5000` plays as many as that.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use simulator::{Story, play};

/// What the tests take the time for.
const SEEDS: u64 = 8;
const DEEDS: usize = 60;

fn number(name: &str) -> Option<u64> {
    std::env::var(name)
        .ok()
        .map(|text| text.parse().unwrap_or_else(|_| panic!("{name} is a number, not {text:?}")))
}

#[test]
fn volumes_live_through_whatever_happens() {
    if let Some(seed) = number("ORLOP_SEED") {
        let outcome = play(Story { seed, deeds: DEEDS });
        println!("{}", outcome.trace.join("\n"));
        assert!(outcome.wrong.is_empty(), "{}", outcome.report(seed));
        return;
    }
    let seeds = number("ORLOP_SEEDS").unwrap_or(SEEDS);
    let (next, writes) = (AtomicU64::new(number("ORLOP_FIRST_SEED").unwrap_or(0)), AtomicU64::new(0));
    let end = next.load(Ordering::Relaxed) + seeds;
    let start = Instant::now();
    let wrong: Vec<_> = std::thread::scope(|scope| {
        let worker = || {
            let mut wrong = Vec::new();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= end {
                    return wrong;
                }
                let outcome = play(Story { seed, deeds: DEEDS });
                writes.fetch_add(outcome.writes as u64, Ordering::Relaxed);
                if !outcome.wrong.is_empty() {
                    eprintln!("seed {seed}: {:?}", outcome.wrong);
                    wrong.push((seed, outcome));
                }
            }
        };
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let (writes, took) = (writes.into_inner(), start.elapsed());
    eprintln!("{seeds} seeds, {writes} writes, {} wrong, in {took:?}", wrong.len());
    if let Some((seed, outcome)) = wrong.into_iter().min_by_key(|(seed, _)| *seed) {
        panic!("{}", outcome.report(seed));
    }
    assert!(writes > seeds * 20, "hardly anything happened: {writes} writes");
    assert!(took < Duration::from_secs(600) || seeds > SEEDS);
}

#[test]
fn a_seed_tells_the_same_story_again() {
    let first = number("ORLOP_FIRST_SEED").unwrap_or(0);
    let different = (first..first + number("ORLOP_SEEDS").unwrap_or(2)).filter(|&seed| {
        let told = || play(Story { seed, deeds: DEEDS }).trace;
        let (first, second) = (told(), told());
        if first != second {
            let same = first.iter().zip(&second).take_while(|(first, second)| first == second).count();
            eprintln!("seed {seed} differs from line {same} on, of {} and {}:", first.len(), second.len());
            let around = |told: &[String]| {
                told.iter().skip(same.saturating_sub(3)).take(6).cloned().collect::<Vec<_>>().join("\n  ")
            };
            eprintln!("  {}\n\n  {}", around(&first), around(&second));
        }
        first != second
    });
    assert_eq!(different.count(), 0, "these seeds can't be played again");
}
