//! What every controller shares: informers, work queues, leases, events, metrics, health endpoints.
//!
//! A controller is a function from a key to the next thing to do, driven by a [`Queue`] that informers fill:
//!
//! ```ignore
//! let claims = context.informers.claims();
//! let queue = Queue::new("bind", &context.metrics);
//! claims.subscribe({ let queue = queue.clone(); move |change| queue.add(Key::of(change.object())) });
//! claims.synced().await;
//! work(queue, 16, context.shutdown.clone(), |key| reconcile(&context, key)).await;
//! ```

mod bucket;
mod context;
mod deadline;
mod failure;
pub mod health;
mod informer;
mod informers;
mod lease;
mod metrics;
mod parts;
mod queue;
mod recorder;
mod update;
mod work;

pub use context::Context;
pub use deadline::with_deadlines;
pub use failure::{explain, is_conflict};
pub use informer::{Change, Informer};
pub use informers::Informers;
pub use lease::{LeaseError, LeaseOptions, Term, TermOver, lead};
pub use metrics::Metrics;
pub use parts::{Outcome, PartEnded, Parts};
pub use queue::{Backoff, Queue};
pub use recorder::Recorder;
pub use update::{edit, update_if_changed, update_status_if_changed};
pub use work::{Key, Next, work};

/// The watch configuration that informers start with (label and field selectors, page size).
pub use kube::runtime::watcher::Config as WatchConfig;
