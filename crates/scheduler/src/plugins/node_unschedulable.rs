//! Cordoned nodes take only pods that tolerate it.

use k8s_openapi::api::core::v1::Taint;
use resources::taints;

use super::{Asks, unfit};
use crate::cycle::Cycle;
use crate::reasons::{Reason, Whole};

pub(super) fn filter<'c>(cycle: &'c Cycle<'c>) -> Result<Asks<'c>, Whole> {
    let cordon =
        Taint { key: taints::UNSCHEDULABLE.to_owned(), effect: "NoSchedule".to_owned(), ..Taint::default() };
    if taints::is_tolerated(&cordon, cycle.tolerations) {
        return Ok(Asks::Nothing);
    }
    Ok(Asks::Each(Box::new(|node| match node.node.spec.as_ref().and_then(|spec| spec.unschedulable) {
        Some(true) => unfit(Reason::Unschedulable),
        _ => Ok(()),
    })))
}
