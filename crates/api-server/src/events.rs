//! Events expire: an hour after their last change, or earlier when there are too many, or too large ones.

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;
use object_store::{EventKind, Key, Object, Revision, WatchEnd};
use tokio::time::Instant;

use crate::context::Context;
use crate::kinds::EVENT;
use crate::{object, unreadable};

/// An event as it was at some change; a later change makes the entry stale.
struct Entry {
    dies: Instant,
    key: Key,
    revision: Revision,
    bytes: usize,
}

/// The events in the order of their last change, oldest first.
#[derive(Default)]
struct Line {
    entries: VecDeque<Entry>,
    bytes: usize,
}

impl Line {
    fn push(&mut self, at: &Object, dies: Instant) {
        let bytes = at.value.len();
        self.bytes += bytes;
        self.entries.push_back(Entry { dies, key: at.key.clone(), revision: at.revision, bytes });
    }

    fn pop(&mut self) -> Option<Entry> {
        let entry = self.entries.pop_front()?;
        self.bytes -= entry.bytes;
        Some(entry)
    }
}

/// The pause before the expiry begins anew that broke off.
const PAUSE: Duration = Duration::from_secs(5);

/// Removes events as they expire, until the server stops. Entries are in the order of their time, so only those that
/// are due are looked at.
pub(crate) async fn expire(context: Arc<Context>) {
    let shutdown = context.shutdown.clone();
    shutdown.run_until_cancelled(Box::pin(without_end(PAUSE, || expire_all(&context)))).await;
}

/// Does the work; if it panics, tells that and begins anew after a pause: without it the store would fill up unnoticed.
async fn without_end<F: Future<Output = ()>>(pause: Duration, work: impl Fn() -> F) {
    while AssertUnwindSafe(work()).catch_unwind().await.is_err() {
        tracing::error!(
            seconds = pause.as_secs(),
            "the expiry of events broke off at an error of the program; it begins anew"
        );
        tokio::time::sleep(pause).await;
    }
}

async fn expire_all(context: &Context) {
    let (ttl, most, bytes) =
        (context.options.event_ttl, context.options.max_events, context.options.max_event_bytes);
    loop {
        let Ok((page, mut changes)) = context.store.list_and_watch(EVENT.plural, None, |_| true) else {
            return;
        };
        let mut line = Line::default();
        for at in page.objects {
            line.push(&at, Instant::now() + ttl.saturating_sub(age(&at)));
        }
        line.entries.make_contiguous().sort_by_key(|entry| entry.dies);
        let end = loop {
            let due = line.entries.front().map(|entry| entry.dies);
            tokio::select! {
                biased;
                change = changes.next() => match change {
                    Ok(event) if event.kind == EventKind::Deleted => {}
                    Ok(event) => line.push(&event.object, Instant::now() + ttl),
                    Err(end) => break end,
                },
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    remove_first(context, &mut line).await;
                }
            }
            while line.entries.len() > most || line.bytes > bytes {
                remove_first(context, &mut line).await;
            }
        };
        if end == WatchEnd::Closed {
            return;
        }
        tracing::warn!("the expiry of events fell behind and begins anew");
    }
}

/// Removes the entry's event, if it was not changed since.
async fn remove_first(context: &Context, line: &mut Line) {
    let Some(entry) = line.pop() else { return };
    let Some(current) = context.store.get(&entry.key) else { return };
    if current.revision != entry.revision {
        return;
    }
    let last = object::decode(&current.value).ok().or_else(|| {
        let served = context.catalog.now().of(&EVENT)?;
        Some(unreadable::stand_in(&served, &current))
    });
    let Some(last) = last else { return };
    if let Err(error) = context.store.delete(current.key, current.revision, object::encode(&last)).await {
        tracing::debug!(%error, "an event was not expired");
    }
}

/// How long ago the event was last changed, as well as it tells.
fn age(stored: &Object) -> Duration {
    let Ok(event) = object::decode(&stored.value) else { return Duration::MAX };
    let last = ["lastTimestamp", "eventTime"].iter().find_map(|field| event[field].as_str());
    let last = last.unwrap_or_else(|| object::meta_str(&event, "creationTimestamp"));
    match last.parse::<Timestamp>() {
        Ok(last) => clock::now().duration_since(last).try_into().unwrap_or_default(),
        Err(_) => Duration::ZERO,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_expiry_that_breaks_off_begins_anew() {
        let times = std::cell::Cell::new(0);
        without_end(Duration::from_millis(1), || {
            times.set(times.get() + 1);
            let first = times.get() == 1;
            async move { assert!(!first, "it breaks off") }
        })
        .await;
        assert_eq!(times.get(), 2);
    }
}
