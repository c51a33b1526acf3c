//! Limits that change: how many volumes of a driver a node can have attached.
//!
//! A driver whose CSIDriver object has `nodeAllocatableUpdatePeriodSeconds` is asked again after that period, and at
//! once when a volume could not be attached for want of room (KEP-4876). The scheduler reads the answer in the CSINode.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::storage::v1::CSIDriver;
use parking_lot::Mutex;
use resources::attachment;
use runtime::{Change, Context};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::{DIAL, Endpoint, RegisterError, Registrar, node};

/// How often a driver is to be asked.
fn period(driver: &CSIDriver) -> Option<Duration> {
    let seconds = driver.spec.node_allocatable_update_period_seconds?;
    u64::try_from(seconds).ok().filter(|seconds| *seconds > 0).map(Duration::from_secs)
}

impl Registrar {
    /// Keeps the limits of registered drivers up to date, for ever.
    pub(super) async fn refresh(&self, context: &Context) {
        let (wake, full) = (Arc::new(Notify::new()), Arc::new(Mutex::new(HashSet::<String>::new())));
        let drivers = context.informers.csi_drivers();
        drivers.subscribe({
            let wake = wake.clone();
            move |change| {
                let is_new = match change {
                    Change::Applied { old, new } => old.as_deref().and_then(period) != period(new),
                    Change::Deleted(last) => period(last).is_some(),
                };
                if is_new {
                    wake.notify_one();
                }
            }
        });
        context.informers.attachments().subscribe({
            let (wake, full, here) = (wake.clone(), full.clone(), self.node.clone());
            move |change| {
                let Change::Applied { old, new } = change else { return };
                let error = attachment::out_of_room(new);
                let is_news = error.is_some() && old.as_deref().and_then(attachment::out_of_room) != error;
                if new.spec.node_name == here && is_news {
                    full.lock().insert(new.spec.attacher.clone());
                    wake.notify_one();
                }
            }
        });
        let mut registered = self.drivers.changed();
        let mut asked = HashMap::<String, Instant>::new();
        loop {
            let endpoints = registered.borrow_and_update().clone();
            let full = std::mem::take(&mut *full.lock());
            let mut next = None::<Instant>;
            asked.retain(|name, _| endpoints.contains_key(name));
            for (name, endpoint) in endpoints {
                let Some(period) = drivers.get("", &name).and_then(|driver| period(&driver)) else {
                    asked.remove(&name);
                    continue;
                };
                let last = *asked.entry(name.clone()).or_insert_with(Instant::now);
                let mut due = last + period;
                if due <= Instant::now() || full.contains(&name) {
                    if let Err(error) = self.ask_again(&endpoint).await {
                        let error = runtime::explain(&error);
                        tracing::warn!(driver = name, error, "can't bring the driver's limit up to date");
                    }
                    asked.insert(name, Instant::now());
                    due = Instant::now() + period;
                }
                next = Some(next.map_or(due, |next| next.min(due)));
            }
            let until = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                () = until => {}
                () = wake.notified() => {}
                changed = registered.changed() => if changed.is_err() { return },
            }
        }
    }

    async fn ask_again(&self, endpoint: &Arc<Endpoint>) -> Result<(), RegisterError> {
        let channel = csi::connect_within(&endpoint.socket, DIAL).await?;
        let facts = self.ask(&endpoint.socket, channel).await?;
        let _turn = self.commit.lock().await;
        if self.drivers.get(&endpoint.name).is_some_and(|known| Arc::ptr_eq(&known, endpoint)) {
            node::announce(&self.client, &self.node, &endpoint.name, &facts).await?;
        }
        Ok(())
    }
}
