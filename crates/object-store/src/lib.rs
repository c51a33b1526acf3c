//! A revisioned object store with watch history on redb: group commit, compaction.
//!
//! The rules that everything above relies on:
//!
//! - Every write gets its own [`Revision`], one higher than the last; revisions never go back, also not across
//!   restarts and deletions.
//! - A write is answered after it is on the disk (fsync). All writes that wait at the same time share one fsync.
//! - Reads are answered from memory, and show durable state only.
//! - A [`Watch`] delivers every change of its resource in order, or says that it can't ([`WatchEnd::Lagged`]).
//! - When the disk fails, the store refuses writes until the disk takes them again. After a failed fsync nobody knows
//!   what the disk holds: it is read anew and made to hold what was acknowledged, no more and no less.
//! - Every object carries a checksum: what is damaged on the disk is found when the store opens, and never served.
//!
//! The history of changes is kept in memory only: after a restart, a watch or list from a revision before the
//! restart gets `Expired`, and the client lists again.

mod device;
mod disk;
mod error;
mod header;
mod history;
mod list;
mod memory;
mod object;
mod opening;
mod record;
mod recover;
mod store;
mod upgrade;
mod watch;
mod writer;

pub use error::{DiskFailure, ListError, OpenError, WatchEnd, WatchError, WriteError};
pub use list::Page;
pub use object::{Encode, Event, EventKind, Key, Object, Precondition, Revision};
pub use store::{Options, Store};
pub use watch::Watch;
