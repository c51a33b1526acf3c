//! Who may hold a connection: many who have shown a credential, few who have not.
//!
//! Strangers never keep anybody out. There is always a place for one more, if need be that of the stranger who has
//! waited longest, of the peer address that has most of them; whoever has a credential shows it within moments and is
//! counted apart from then on.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// The places of a listener.
#[derive(Debug)]
pub(super) struct Places {
    most_known: usize,
    most_strangers: usize,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    next: u64,
    known: usize,
    strangers: usize,
    /// Those without a credential yet, by peer and in the order of their coming.
    by_peer: HashMap<IpAddr, BTreeMap<u64, CancellationToken>>,
}

impl Taken {
    fn remove(&mut self, peer: IpAddr, id: u64) -> Option<CancellationToken> {
        let of_peer = self.by_peer.get_mut(&peer)?;
        let removed = of_peer.remove(&id)?;
        if of_peer.is_empty() {
            self.by_peer.remove(&peer);
        }
        self.strangers -= 1;
        Some(removed)
    }

    /// Sends away the stranger who came first, of the peer that has most.
    fn push_out(&mut self) {
        let busiest = self.by_peer.iter().max_by_key(|(_, connections)| connections.len());
        let Some((peer, id)) = busiest.and_then(|(peer, of)| Some((*peer, *of.keys().next()?))) else {
            return;
        };
        if let Some(out) = self.remove(peer, id) {
            out.cancel();
        }
    }
}

impl Places {
    pub(super) fn new(most_known: usize, most_strangers: usize) -> Arc<Self> {
        Arc::new(Self { most_known, most_strangers, taken: Mutex::default() })
    }

    /// A place for a new connection, which may cost another stranger theirs.
    pub(super) fn enter(self: &Arc<Self>, peer: IpAddr) -> Place {
        let mut taken = self.taken.lock();
        while taken.strangers >= self.most_strangers.max(1) {
            taken.push_out();
        }
        let (id, out) = (taken.next, CancellationToken::new());
        taken.next += 1;
        taken.strangers += 1;
        taken.by_peer.entry(peer).or_default().insert(id, out.clone());
        Place { places: self.clone(), peer, id, out, known: Mutex::new(false) }
    }
}

/// The place of one connection, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    peer: IpAddr,
    id: u64,
    out: CancellationToken,
    known: Mutex<bool>,
}

impl Place {
    /// Counts the connection among those with a credential; whether there was room.
    pub(super) fn know(&self) -> bool {
        let mut known = self.known.lock();
        if *known {
            return true;
        }
        let mut taken = self.places.taken.lock();
        // Who was pushed out meanwhile is about to be closed.
        if taken.known >= self.places.most_known || taken.remove(self.peer, self.id).is_none() {
            return false;
        }
        taken.known += 1;
        *known = true;
        true
    }

    pub(super) fn is_known(&self) -> bool {
        *self.known.lock()
    }

    /// Returns when the place went to another.
    pub(super) async fn pushed_out(&self) {
        self.out.cancelled().await;
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.taken.lock();
        if *self.known.lock() {
            taken.known -= 1;
        } else {
            taken.remove(self.peer, self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(last: u8) -> IpAddr {
        [127, 0, 0, last].into()
    }

    #[test]
    fn strangers_push_out_the_oldest_of_the_busiest_peer_and_nobody_known() {
        let places = Places::new(2, 3);
        let known = places.enter(peer(1));
        assert!(known.know() && known.know() && known.is_known());
        let quiet = places.enter(peer(2));
        let crowd: Vec<Place> = (0..5).map(|_| places.enter(peer(1))).collect();
        let out: Vec<bool> = crowd.iter().map(|place| place.out.is_cancelled()).collect();
        assert_eq!(out, [true, true, true, false, false]);
        assert!(!quiet.out.is_cancelled() && !known.out.is_cancelled());
        assert!(!crowd[0].know(), "it lost its place");
        assert!(crowd[4].know());
        assert!(!crowd[3].know(), "no room among the known");
        drop(crowd);
        drop((quiet, known));
        let taken = places.taken.lock();
        assert_eq!((taken.known, taken.strangers, taken.by_peer.len()), (0, 0, 0));
    }
}
