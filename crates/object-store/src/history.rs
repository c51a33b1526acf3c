//! The newest changes, bounded by count and bytes, found by resource and revision.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::{Event, Revision};

/// The changes of one resource that are still remembered, oldest first.
#[derive(Debug)]
pub(crate) struct Trail {
    events: VecDeque<Arc<Event>>,
    /// Every change of the resource after this revision is remembered.
    complete_after: Revision,
}

impl Trail {
    pub(crate) fn new(complete_after: Revision) -> Trail {
        Trail { events: VecDeque::new(), complete_after }
    }

    /// The oldest revision from which a watch can start, or at which a list can be answered.
    pub(crate) fn oldest(&self) -> Revision {
        self.complete_after
    }

    /// The changes after `revision`, oldest first.
    pub(crate) fn after(&self, revision: Revision) -> impl DoubleEndedIterator<Item = &Arc<Event>> {
        let start = self.events.partition_point(|event| event.revision <= revision);
        self.events.range(start..)
    }

    pub(crate) fn push(&mut self, event: Arc<Event>) {
        self.events.push_back(event);
    }

    pub(crate) fn forget_oldest(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.complete_after = event.revision;
        }
    }
}

/// Decides which changes are forgotten: the oldest of all resources, when there are too many or they are too heavy.
#[derive(Debug)]
pub(crate) struct Budget {
    /// Resource and weight of every remembered change, oldest first.
    order: VecDeque<(Arc<str>, usize)>,
    bytes: usize,
    max_events: usize,
    max_bytes: usize,
}

impl Budget {
    pub(crate) fn new(max_events: usize, max_bytes: usize) -> Budget {
        Budget { order: VecDeque::new(), bytes: 0, max_events, max_bytes }
    }

    pub(crate) fn charge(&mut self, event: &Event) {
        let weight = event.weight();
        self.order.push_back((event.object.key.resource.clone(), weight));
        self.bytes += weight;
    }

    /// The resource whose oldest change is to be forgotten now, if there is more than the bounds allow.
    pub(crate) fn take_excess(&mut self) -> Option<Arc<str>> {
        if self.order.len() <= self.max_events && self.bytes <= self.max_bytes {
            return None;
        }
        let (resource, weight) = self.order.pop_front()?;
        self.bytes -= weight;
        Some(resource)
    }
}
