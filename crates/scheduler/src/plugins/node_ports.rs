//! A port of the node is one pod's.

use super::{Asks, taken};
use crate::cycle::Cycle;
use crate::ports;
use crate::reasons::{Reason, Whole};

pub(super) fn filter<'c>(cycle: &'c Cycle<'c>) -> Result<Asks<'c>, Whole> {
    let wanted = ports::of_pod(cycle.pod);
    if wanted.is_empty() {
        return Ok(Asks::Nothing);
    }
    Ok(Asks::Each(Box::new(move |node| {
        let is_taken = |port| node.usage.ports.iter().any(|other| other.conflicts(port));
        if wanted.iter().any(is_taken) { taken(Reason::Ports) } else { Ok(()) }
    })))
}
