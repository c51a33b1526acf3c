//! Waiting for the watches to show what was written, so that no write is decided upon what is not so any more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use kube::Resource;
use parking_lot::Mutex;
use runtime::Key;
use tokio::time::Instant;

/// How long news of a write may take; then what the watches show is believed, whatever became of them meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// The kinds that are written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    Set,
    Pod,
    Claim,
    Revision,
}

type Versions = [u64; 4];

/// The newest version of each kind that the watches showed, and the newest that was written for each set.
#[derive(Clone, Default)]
pub(super) struct Seen(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    shown: Versions,
    written: HashMap<Key, (Versions, Instant)>,
    /// UIDs of sets that are gone, and still shown.
    gone: HashMap<Key, String>,
}

/// Versions are numbers that grow over all objects of a kind, as Kubernetes promises since 1.35.
fn version(object: &impl Resource) -> Option<u64> {
    object.meta().resource_version.as_ref()?.parse().ok()
}

impl Seen {
    pub(super) fn shown(&self, kind: Kind, object: &impl Resource) {
        if let Some(version) = version(object) {
            let shown = &mut self.0.lock().shown[kind as usize];
            *shown = version.max(*shown);
        }
    }

    pub(super) fn wrote(&self, set: &Key, kind: Kind, object: &impl Resource) {
        if let Some(version) = version(object) {
            let mut state = self.0.lock();
            let (written, at) = state.written.entry(set.clone()).or_insert(([0; 4], Instant::now()));
            written[kind as usize] = version.max(written[kind as usize]);
            *at = Instant::now();
        }
    }

    /// How long to wait at most for news of what was written for a set.
    pub(super) fn wait(&self, set: &Key) -> Option<Duration> {
        let mut state = self.0.lock();
        let shown = state.shown;
        let (written, at) = state.written.get(set)?;
        let is_shown = written.iter().zip(shown).all(|(written, shown)| *written <= shown);
        let left = PATIENCE.saturating_sub(at.elapsed());
        if is_shown || left.is_zero() {
            state.written.remove(set);
            return None;
        }
        Some(left)
    }

    /// A write found the set gone. What is made for it from now on would be collected, and made again, until the watch
    /// tells.
    pub(super) fn found_gone(&self, set: &Key, uid: Option<String>) {
        self.0.lock().gone.extend(uid.map(|uid| (set.clone(), uid)));
    }

    pub(super) fn is_gone(&self, set: &Key, uid: Option<&str>) -> bool {
        uid.is_some() && self.0.lock().gone.get(set).map(String::as_str) == uid
    }

    pub(super) fn forget(&self, set: &Key) {
        let mut state = self.0.lock();
        state.written.remove(set);
        state.gone.remove(set);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_that_is_gone_is_left_alone_and_its_successor_is_not() {
        let (seen, set) = (Seen::default(), Key { namespace: "n".to_owned(), name: "s".to_owned() });
        seen.found_gone(&set, Some("first".to_owned()));
        assert!(seen.is_gone(&set, Some("first")));
        assert!(!seen.is_gone(&set, Some("second")));
        seen.forget(&set);
        assert!(!seen.is_gone(&set, Some("first")));
    }
}
