//! Cutting the guest's power while volumes are made, grown, copied and deleted, and looking at what is there afterwards.

use std::fmt::Write;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};

use super::{Bench, GIB, TEST};

/// How often.
#[derive(Clone, Copy)]
pub(super) enum Cuts {
    /// A taste.
    Few,
    /// As many as fit a quarter of an hour.
    Many,
}

const FEW: usize = 2;
const MANY: Duration = Duration::from_secs(900);
/// Long enough for some volumes to live and die.
const LONGEST: u64 = 6000;

/// Boots, lets work go on for a while, cuts the power, boots and checks, and so on with the same drive.
/// `$ORLOP_SEED` repeats a run as far as emulation repeats anything.
pub(super) fn cuts(bench: &Bench, backend: &str, cuts: Cuts) -> anyhow::Result<()> {
    let seed = match std::env::var("ORLOP_SEED") {
        Ok(seed) => seed.parse().context("$ORLOP_SEED is a number")?,
        Err(_) => SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_secs(),
    };
    println!("  ORLOP_SEED={seed}");
    let hardware = bench.hardware(&[GIB], None)?;
    let (mut journal, mut steps, mut done) = (String::new(), 0, 0);
    let end = Instant::now() + MANY;
    let go_on = |done: usize| match cuts {
        Cuts::Few => done < FEW,
        Cuts::Many => Instant::now() < end,
    };
    loop {
        let mut guest = bench.start(&hardware)?;
        let settings =
            format!("ORLOP_DEVICE=/dev/nvme0n1 ORLOP_BACKEND={backend} ORLOP_SEED={}", seed + done as u64);
        if done > 0 {
            std::fs::write(bench.share.join("journal"), &journal)?;
            let command =
                format!("ORLOP_JOURNAL=/host/journal {settings} /host/power --ignored what_was_announced");
            let mut output = String::new();
            let status = guest.follow(&command, TEST, &mut |line| {
                let _ = writeln!(output, "{line}");
            })?;
            ensure!(
                status == 0,
                "after power cut {done} (seed {seed}):\n{output}\nthe work had said:\n{journal}"
            );
            steps += journal.lines().count();
            journal.clear();
        }
        if !go_on(done) {
            println!("  {done} power cuts, {steps} steps of work, everything announced was there");
            return Ok(());
        }
        // Spread over the whole time, whatever the seed.
        let moment =
            300 + (seed.wrapping_add(done as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % LONGEST;
        guest.begin(&format!("{settings} /host/power --ignored churn"))?;
        let mut other = String::new();
        let ended = guest.watch(Instant::now() + Duration::from_millis(moment), &mut |line| {
            let (text, line) =
                line.split_once("@ ").map_or((&mut other, line), |(_, step)| (&mut journal, step));
            let _ = writeln!(text, "{line}");
        })?;
        ensure!(!ended, "the work ended by itself:\n{other}");
        guest.cut_power()?;
        done += 1;
    }
}
