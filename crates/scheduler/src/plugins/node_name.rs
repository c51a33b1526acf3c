//! A pod that names its node goes nowhere else.

use super::{Asks, unfit};
use crate::cycle::Cycle;
use crate::reasons::{Reason, Whole};
use crate::world::node_of;

pub(super) fn filter<'c>(cycle: &'c Cycle<'c>) -> Result<Asks<'c>, Whole> {
    let Some(wanted) = node_of(cycle.pod) else { return Ok(Asks::Nothing) };
    Ok(Asks::Each(Box::new(move |node| match node.name == wanted {
        true => Ok(()),
        false => unfit(Reason::OtherNode),
    })))
}
