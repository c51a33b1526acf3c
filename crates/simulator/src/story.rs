//! A course of deeds, and how it ends.

use std::time::Duration;

use tokio::time::sleep;

use crate::deeds::deed;
use crate::{Dice, Role, World, settled};

/// Writes that a deed may take on the average, retries in a storm included.
const MOST_WRITES: usize = 12;

/// Events that half an hour may bring at the end: what can't be is tried again every few minutes.
const MOST_EVENTS: usize = 20;

/// How much happens.
#[derive(Clone, Copy, Debug)]
pub struct Story {
    /// The seed: everything follows from it.
    pub seed: u64,
    /// How many things users do.
    pub deeds: usize,
}

/// How a story went.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What was wrong; nothing, if all went well.
    pub wrong: Vec<String>,
    /// What happened, with times.
    pub trace: Vec<String>,
    /// Writes of the processes.
    pub writes: usize,
}

impl Outcome {
    /// What to show of a story that went wrong.
    pub fn report(&self, seed: u64) -> String {
        let (wrong, trace) = (self.wrong.join("\n  "), self.trace.join("\n"));
        format!("{trace}\n\nseed {seed}: play it again with ORLOP_SEED={seed}\n  {wrong}")
    }
}

/// Plays a story to its end in a runtime of its own.
pub fn play(story: Story) -> Outcome {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let runtime = runtime.unwrap_or_else(|error| panic!("no runtime: {error}"));
    runtime.block_on(tell(story))
}

async fn tell(story: Story) -> Outcome {
    let mut dice = Dice::new(story.seed);
    let mut world = World::new(story.seed).await;
    world.define_attributes().await;
    world.define_snapshots().await;
    world.define_populators().await;
    for role in Role::ALL {
        world.start(role);
    }
    for _ in 0..story.deeds {
        Box::pin(deed(&mut world, &mut dice)).await;
        let pause = dice.pick(&[1, 5, 50, 300, 2000, 10_000]);
        sleep(dice.up_to(pause)).await;
        if dice.in_a_thousand(500) {
            world.tend().await;
        }
        if !world.network.ledger(|ledger| ledger.wrong.is_empty()) {
            break;
        }
    }
    world.network.note("all is well from now on");
    let calm = Box::pin(world.calm_down()).await;
    let mut wrong = world.network.ledger(|ledger| ledger.wrong.clone());
    if wrong.is_empty() {
        match calm {
            Err(never) => wrong.push(never),
            Ok(()) => {
                wrong.extend(settled(&world).await);
                let (reads, events) = (world.network.reads(), world.network.events());
                sleep(Duration::from_secs(1800)).await;
                let more = (world.network.reads() - reads, world.network.events() - events);
                if more.0 > 200 || more.1 > MOST_EVENTS {
                    wrong.push(format!("half an hour of rest took {} reads and {} events", more.0, more.1));
                }
            }
        }
    }
    if world.network.writes() > story.deeds * MOST_WRITES {
        wrong.push(format!("{} deeds took {} writes", story.deeds, world.network.writes()));
    }
    if !wrong.is_empty() {
        world.note_end().await;
    }
    Outcome { wrong, trace: world.network.trace(), writes: world.network.writes() }
}
