//! Cutting the guest's power while volumes are made, grown, copied and deleted, and looking at what is there afterwards.

use std::fmt::Write;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};

use super::machine::Machine;
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
const FORMATTING: Duration = Duration::from_secs(120);
const MANY: Duration = Duration::from_secs(900);
/// Milliseconds in which some volumes live and die; LVM's own programs take their time.
const LONGEST: u64 = 6000;
const LONGEST_ON_LVM: u64 = 20_000;

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
        let longest = if backend.starts_with("lvm") { LONGEST_ON_LVM } else { LONGEST };
        let moment =
            300 + (seed.wrapping_add(done as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 33) % longest;
        guest.begin(&format!("{settings} /host/power --ignored churn"))?;
        let mut other = String::new();
        // The first boot formats the drive before the work begins.
        let formatted = Instant::now() + FORMATTING;
        let mut ended = false;
        while done == 0 && journal.is_empty() && !ended && Instant::now() < formatted {
            ended = listen(&mut guest, Duration::from_millis(200), &mut journal, &mut other)?;
        }
        ended = ended || listen(&mut guest, Duration::from_millis(moment), &mut journal, &mut other)?;
        ensure!(!ended, "the work ended by itself:\n{other}");
        guest.cut_power()?;
        done += 1;
    }
}

/// Notes what the work says for a while; returns whether it ended. What is no step of it is something else.
fn listen(
    guest: &mut Machine<'_>,
    time: Duration,
    journal: &mut String,
    other: &mut String,
) -> anyhow::Result<bool> {
    let status = guest.watch(Instant::now() + time, &mut |line| {
        let (text, line) =
            line.split_once("@ ").map_or((&mut *other, line), |(_, step)| (&mut *journal, step));
        let _ = writeln!(text, "{line}");
    })?;
    Ok(status.is_some())
}
