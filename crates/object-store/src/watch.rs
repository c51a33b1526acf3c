//! Watches: a cursor on the history, and a wake-up when it grows.

use std::pin::pin;
use std::sync::Arc;

use tokio::sync::Notify;

use crate::memory::Memory;
use crate::{Event, Revision, WatchEnd};

/// Every change of one resource, in order, from some revision on. Costs a cursor: an unread event is kept by the
/// store's history only, and a reader that is slower than the history is long gets [`WatchEnd::Lagged`].
#[derive(Debug)]
pub struct Watch {
    memory: Arc<Memory>,
    resource: Arc<str>,
    namespace: Option<Arc<str>>,
    /// Everything up to here is delivered, or not for this watch.
    cursor: Revision,
    published: Arc<Notify>,
}

impl Watch {
    pub(crate) fn new(
        memory: Arc<Memory>,
        resource: Arc<str>,
        namespace: Option<Arc<str>>,
        cursor: Revision,
        published: Arc<Notify>,
    ) -> Watch {
        Watch { memory, resource, namespace, cursor, published }
    }

    /// The next change; waits for it. Nothing is lost when the future is dropped before it is ready.
    pub async fn next(&mut self) -> Result<Arc<Event>, WatchEnd> {
        let published = Arc::clone(&self.published);
        loop {
            if let Some(event) = self.try_next()? {
                return Ok(event);
            }
            let mut news = pin!(published.notified());
            news.as_mut().enable();
            // What was published before the line above wakes nobody.
            if let Some(event) = self.try_next()? {
                return Ok(event);
            }
            news.await;
        }
    }

    /// The next change if there is one now.
    pub fn try_next(&mut self) -> Result<Option<Arc<Event>>, WatchEnd> {
        let state = self.memory.state.read();
        let Some(resource) = state.resource(&self.resource) else { return Ok(None) };
        if self.cursor < resource.trail.oldest() {
            return Err(WatchEnd::Lagged { oldest: resource.trail.oldest() });
        }
        let mut events = resource.trail.after(self.cursor);
        let wanted =
            |event: &&Arc<Event>| self.namespace.as_ref().is_none_or(|ns| *ns == event.object.key.namespace);
        match events.find(wanted) {
            Some(event) => {
                self.cursor = event.revision;
                Ok(Some(event.clone()))
            }
            None => {
                self.cursor = state.revision;
                if state.closed { Err(WatchEnd::Closed) } else { Ok(None) }
            }
        }
    }

    /// Every change up to this revision has been delivered. After [`Watch::try_next`] found nothing this is the
    /// store's newest revision, also when the writes were to other resources: what a bookmark carries.
    pub fn revision(&self) -> Revision {
        self.cursor
    }
}
