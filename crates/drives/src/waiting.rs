//! Drives that another process holds: taken over once it has let them go, as when a new version takes its place while the
//! old one ends.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use tokio::{task::spawn_blocking, time::sleep};

use crate::{
    Source,
    drives::Inner,
    group, inventory,
    open::{self, Sighted},
    state::{Found, Slot},
};

/// How long after a try the next one comes.
const PAUSE: Duration = Duration::from_secs(2);

/// Tries to take over what others hold, as long as there is such a drive and the drives are open.
pub(crate) async fn watch(inner: Weak<Inner>) {
    loop {
        sleep(PAUSE).await;
        let Some(open) = inner.upgrade() else { return };
        let held = held(&open);
        if held.is_empty() {
            return;
        }
        let tried = spawn_blocking(move || held.iter().for_each(|source| take_over(&open, source))).await;
        if let Err(error) = tried {
            tracing::error!(%error, "drives that another process held are not tried any more; restart Orlop");
            return;
        }
    }
}

fn held(inner: &Inner) -> Vec<Source> {
    let state = inner.state.lock();
    let held = state.slots.iter().filter(|slot| matches!(slot.found, Found::Failed { held: true, .. }));
    held.map(|slot| slot.source.clone()).collect()
}

/// Opens the drive at a source, unless it is still held.
fn take_over(inner: &Arc<Inner>, source: &Source) {
    let (sighted, claim) = open::look(inner.host.as_ref(), &inner.root, source);
    let (found, mut removals) = match sighted {
        Sighted::Held(_) => return,
        Sighted::Drive { id, maker, backend, device } => {
            let is_other = |slot: &Slot| slot.source != *source && slot.found.id() == Some(&id);
            if inner.state.lock().slots.iter().any(is_other) {
                return;
            }
            inventory::open_one(&inner.host, &inner.root, source, (&id, maker), backend, &device)
        }
        Sighted::Blank => return,
        Sighted::Unusable(reason) => {
            (Some(Found::Failed { id: None, backend: None, reason, held: false }), Vec::new())
        }
    };
    let Some(found) = found.filter(|found| !matches!(found, Found::Failed { held: true, .. })) else {
        return;
    };
    inventory::announce(source, &found);
    let mut state = inner.state.lock();
    let Some(at) = state.slots.iter().position(|slot| slot.source == *source) else { return };
    if let Found::Serving(serving) = &found {
        state.out_of_reach.remove(&serving.id);
    }
    state.slots[at] = Slot { source: source.clone(), claim, found };
    removals.extend(group::broken(&mut state));
    drop(state);
    inner.finish(removals);
    inner.notify();
}
