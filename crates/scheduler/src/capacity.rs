//! Free storage by CSIStorageCapacity, less what was promised to pods in flight.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::Duration;

use k8s_openapi::api::storage::v1::CSIStorageCapacity;
use kube::ResourceExt;
use kube::core::{Selector, SelectorExt};
use resources::annotations::NO_CAPACITY;
use runtime::Key;
use tokio::time::Instant;

use crate::world::Labels;

/// How long a volume that was made may stay unaccounted for. Its driver has published its capacity by then, unless the
/// volume came out of another pool than the promise was held against.
const SETTLED: Duration = Duration::from_secs(5);

/// Storage that a driver offers for a class in one topology segment.
#[derive(Clone)]
pub struct Pool {
    /// The object that says so.
    pub name: Key,
    /// Bytes free.
    pub free: u64,
    /// Bytes of the largest volume that can be made.
    pub largest: u64,
    /// Why nothing can be made of the class there, if the driver says so.
    why_none: Option<String>,
    /// The nodes from which it can be used.
    topology: Selector,
    /// One label that all of those nodes have, to find the pool by.
    label: Option<(String, String)>,
}

impl Pool {
    /// What a capacity object says, if it says enough.
    pub fn of(object: &CSIStorageCapacity) -> Option<Self> {
        let bytes = |quantity: &Option<k8s_openapi::apimachinery::pkg::api::resource::Quantity>| {
            quantity.as_ref()?.0.parse::<values::Quantity>().ok()?.ceil_bytes()
        };
        let largest = bytes(&object.maximum_volume_size);
        let free = bytes(&object.capacity);
        let topology = object.node_topology.as_ref()?;
        let label = topology.match_labels.as_ref().and_then(|labels| labels.first_key_value());
        Some(Self {
            name: Key::of(object),
            // A driver that says both may hand out more than it has: the largest volume is what it vouches for.
            free: free.max(largest)?,
            largest: largest.or(free)?,
            why_none: object.annotations().get(NO_CAPACITY).cloned(),
            topology: Selector::try_from(topology.clone()).ok()?,
            label: label.map(|(key, value)| (key.clone(), value.clone())),
        })
    }

    /// Whether the pool can be used from a node.
    pub fn reaches(&self, labels: &Labels) -> bool {
        self.topology.matches(labels)
    }

    /// Whether volumes of these sizes fit beside what is promised already.
    ///
    /// How the free bytes spread over drives is not known. What is promised may be taken from the largest drive: the
    /// rest of that one is all that is certain until the driver publishes again. With nothing promised, each volume
    /// must fit the largest drive, and all together the pool.
    pub fn holds(&self, promised: u64, sizes: &[u64]) -> bool {
        let total: u64 = sizes.iter().fold(0, |sum, size| sum.saturating_add(*size));
        let each_fits = sizes.iter().all(|size| *size <= self.largest);
        let certain = promised.saturating_add(total) <= self.largest;
        each_fits && total <= self.free && (promised == 0 || certain)
    }
}

/// Space that a claim was promised on a node, until the driver's published capacity shows the volume made of it.
#[derive(Clone, Debug)]
pub struct Promise {
    /// The node.
    pub node: String,
    /// The driver that makes the volume.
    pub driver: String,
    /// The pod for which it was promised.
    pub pod: Option<Key>,
    /// The version at which the claim carried the node's name.
    pub written: Option<u64>,
    made: Option<Instant>,
    /// The pools that it may be taken from.
    pools: Vec<Key>,
    sequence: u64,
}

/// What a pool owes to promises: bytes that its published capacity doesn't show yet, the oldest promise first.
#[derive(Default)]
struct Debts {
    by_promise: BTreeMap<u64, u64>,
    total: u64,
}

impl Debts {
    fn owe(&mut self, promise: u64, bytes: u64) {
        self.by_promise.insert(promise, bytes);
        self.total = self.total.saturating_add(bytes);
    }

    fn to(&self, promise: u64) -> u64 {
        self.by_promise.get(&promise).copied().unwrap_or_default()
    }

    fn forget(&mut self, promise: u64) {
        self.total = self.total.saturating_sub(self.by_promise.remove(&promise).unwrap_or_default());
    }

    fn pay(&mut self, mut bytes: u64) {
        while bytes > 0
            && let Some(mut oldest) = self.by_promise.first_entry()
        {
            let paid = bytes.min(*oldest.get());
            bytes -= paid;
            self.total -= paid;
            *oldest.get_mut() -= paid;
            if *oldest.get() == 0 {
                oldest.remove();
            }
        }
    }
}

/// The pools of one class.
#[derive(Default)]
struct Pools {
    all: BTreeMap<Key, Pool>,
    /// Pools by a label that their nodes have.
    by_label: HashMap<String, HashMap<String, BTreeSet<Key>>>,
    /// Pools that no single label leads to.
    others: BTreeSet<Key>,
}

impl Pools {
    fn index(&mut self, pool: &Pool) -> &mut BTreeSet<Key> {
        match &pool.label {
            Some((key, value)) => {
                self.by_label.entry(key.clone()).or_default().entry(value.clone()).or_default()
            }
            None => &mut self.others,
        }
    }

    fn insert(&mut self, pool: Pool) {
        self.index(&pool).insert(pool.name.clone());
        self.all.insert(pool.name.clone(), pool);
    }

    fn remove(&mut self, name: &Key) -> Option<Pool> {
        let pool = self.all.remove(name)?;
        self.index(&pool).remove(name);
        Some(pool)
    }

    fn reaching<'a>(&'a self, labels: &'a Labels) -> impl Iterator<Item = &'a Pool> {
        let led = labels.iter().filter_map(|(key, value)| self.by_label.get(key)?.get(value)).flatten();
        let pools = led.chain(&self.others).filter_map(|name| self.all.get(name));
        pools.filter(|pool| pool.reaches(labels))
    }
}

/// All pools and promises.
#[derive(Default)]
pub struct Ledger {
    pools: HashMap<String, Pools>,
    classes: HashMap<Key, String>,
    promises: HashMap<Key, Promise>,
    /// By pool.
    debts: HashMap<Key, Debts>,
    next: u64,
    swept: Option<Instant>,
}

impl Ledger {
    /// Files what a driver published. A drop of free bytes pays off promises, the oldest first.
    pub fn publish(&mut self, object: &CSIStorageCapacity) {
        let name = Key::of(object);
        let before = self.withdraw(object);
        let Some(pool) = Pool::of(object) else { return };
        let drop = before.map_or(0, |before| before.free.saturating_sub(pool.free));
        if let Some(debts) = self.debts.get_mut(&name) {
            debts.pay(drop);
        }
        self.classes.insert(name, object.storage_class_name.clone());
        self.pools.entry(object.storage_class_name.clone()).or_default().insert(pool);
    }

    /// Forgets a capacity object.
    pub fn withdraw(&mut self, object: &CSIStorageCapacity) -> Option<Pool> {
        let name = Key::of(object);
        let class = self.classes.remove(&name)?;
        self.pools.get_mut(&class)?.remove(&name)
    }

    /// A class's pools that a node reaches.
    pub fn pools<'a>(&'a self, class: &str, labels: &'a Labels) -> impl Iterator<Item = &'a Pool> {
        self.pools.get(class).into_iter().flat_map(|pools| pools.reaching(labels))
    }

    /// Why nothing can be made of a class, where no pool says anything else.
    pub fn why_none(&self, class: &str) -> Option<&str> {
        let pools = &self.pools.get(class)?.all;
        let mut why = pools.values().map(|pool| pool.why_none.as_deref());
        why.clone().all(|why| why.is_some()).then(|| why.next())??
    }

    /// Bytes promised out of a pool, to claims other than these.
    pub fn promised(&self, pool: &Pool, except: &[Key]) -> u64 {
        let Some(debts) = self.debts.get(&pool.name) else { return 0 };
        let own = except.iter().filter_map(|claim| Some(debts.to(self.promises.get(claim)?.sequence)));
        debts.total.saturating_sub(own.sum())
    }

    /// Holds space for a claim on a node, against every pool of the driver's classes that the node reaches.
    pub fn promise(&mut self, claim: Key, promise: Promise, size: u64, classes: &[String], labels: &Labels) {
        self.settle(&claim);
        let pools = classes.iter().flat_map(|class| self.pools(class, labels));
        let pools: Vec<Key> = pools.map(|pool| pool.name.clone()).collect();
        let sequence = self.next;
        self.next += 1;
        for pool in &pools {
            self.debts.entry(pool.clone()).or_default().owe(sequence, size);
        }
        self.promises.insert(claim, Promise { pools, sequence, ..promise });
    }

    /// The promise to a claim.
    pub fn get(&self, claim: &Key) -> Option<&Promise> {
        self.promises.get(claim)
    }

    /// The claim carries the node's name since this version.
    pub fn written(&mut self, claim: &Key, version: Option<u64>) {
        if let Some(promise) = self.promises.get_mut(claim) {
            promise.written = version;
        }
    }

    /// The claim's volume was made.
    pub fn made(&mut self, claim: &Key) {
        let Some(promise) = self.promises.get_mut(claim) else { return };
        promise.made.get_or_insert_with(Instant::now);
        if self.promises.get(claim).is_some_and(|promise| self.is_settled(promise)) {
            self.settle(claim);
        }
    }

    fn is_settled(&self, promise: &Promise) -> bool {
        let is_paid = |pool| self.debts.get(pool).is_none_or(|debts| debts.to(promise.sequence) == 0);
        promise.made.is_some_and(|made| made.elapsed() > SETTLED || promise.pools.iter().all(is_paid))
    }

    /// Drops promises whose volumes were made long enough ago.
    pub fn sweep(&mut self) {
        if self.swept.is_none_or(|swept| swept.elapsed() > SETTLED / 5) {
            self.swept = Some(Instant::now());
            let settled = self.promises.iter().filter(|(_, promise)| self.is_settled(promise));
            let settled: Vec<_> = settled.map(|(claim, _)| claim.clone()).collect();
            for claim in settled {
                self.settle(&claim);
            }
        }
    }

    /// Drops a promise.
    pub fn settle(&mut self, claim: &Key) -> Option<Promise> {
        let promise = self.promises.remove(claim)?;
        for pool in &promise.pools {
            if let Some(debts) = self.debts.get_mut(pool) {
                debts.forget(promise.sequence);
                if debts.by_promise.is_empty() {
                    self.debts.remove(pool);
                }
            }
        }
        Some(promise)
    }

    /// Claims that were promised space on a node.
    pub fn claims_on(&self, node: &str) -> Vec<Key> {
        self.promises
            .iter()
            .filter(|(_, promise)| promise.node == node)
            .map(|(claim, _)| claim.clone())
            .collect()
    }
}

impl Promise {
    /// A promise of space on a node.
    pub fn new(node: &str, driver: &str, pod: Option<Key>) -> Self {
        Self {
            node: node.to_owned(),
            driver: driver.to_owned(),
            pod,
            written: None,
            made: None,
            pools: Vec::new(),
            sequence: 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(node: &str) -> Labels {
        [("host".to_owned(), node.to_owned())].into()
    }

    fn published(node: &str, free: u64, largest: u64) -> CSIStorageCapacity {
        let object = serde_json::json!({
            "metadata": {"namespace": "kube-system", "name": format!("free-{node}")}, "storageClassName": "local",
            "nodeTopology": {"matchLabels": {"host": node}},
            "capacity": free.to_string(), "maximumVolumeSize": largest.to_string(),
        });
        serde_json::from_value(object).expect("a capacity")
    }

    fn claim(name: &str) -> Key {
        Key { namespace: "default".to_owned(), name: name.to_owned() }
    }

    fn promise(ledger: &mut Ledger, name: &str, node: &str, size: u64) {
        ledger.promise(
            claim(name),
            Promise::new(node, "driver", None),
            size,
            &["local".to_owned()],
            &labels(node),
        );
    }

    fn promised(ledger: &Ledger, node: &str, except: &[Key]) -> Vec<u64> {
        let labels = labels(node);
        ledger.pools("local", &labels).map(|pool| ledger.promised(pool, except)).collect()
    }

    #[test]
    fn what_is_promised_may_come_from_the_largest_drive() {
        let pool = |free, largest| Pool::of(&published("a", free, largest)).expect("a pool");
        let cases: &[(u64, u64, u64, &[u64], bool)] = &[
            (10, 10, 0, &[10], true),
            (10, 10, 0, &[11], false),
            (30, 10, 0, &[11], false),
            (30, 10, 0, &[10, 10, 10], true),
            (30, 10, 0, &[10, 10, 10, 1], false),
            (30, 10, 4, &[6], true),
            (30, 10, 4, &[7], false),
            (30, 10, 4, &[3, 3], true),
            (30, 10, 4, &[4, 3], false),
            (30, 10, u64::MAX, &[1], false),
        ];
        for (free, largest, in_flight, sizes, fits) in cases {
            assert_eq!(
                pool(*free, *largest).holds(*in_flight, sizes),
                *fits,
                "{free} {largest} {in_flight} {sizes:?}"
            );
        }
    }

    #[test]
    fn a_promise_holds_until_the_published_capacity_shows_it() {
        let mut ledger = Ledger::default();
        ledger.publish(&published("a", 100, 100));
        ledger.publish(&published("b", 100, 100));
        promise(&mut ledger, "first", "a", 30);
        promise(&mut ledger, "second", "a", 20);
        assert_eq!(promised(&ledger, "a", &[]), [50]);
        assert_eq!(promised(&ledger, "a", &[claim("second")]), [30]);
        assert_eq!(promised(&ledger, "b", &[]), [0]);
        // Asked for anew, it is not counted twice.
        promise(&mut ledger, "second", "a", 20);
        assert_eq!(promised(&ledger, "a", &[]), [50]);
        // The driver made the first.
        ledger.publish(&published("a", 70, 70));
        assert_eq!(promised(&ledger, "a", &[]), [20]);
        // Something was deleted: no promise is paid by that.
        ledger.publish(&published("a", 90, 90));
        assert_eq!(promised(&ledger, "a", &[]), [20]);
        ledger.settle(&claim("second"));
        assert_eq!(promised(&ledger, "a", &[]), [0]);
        assert_eq!(ledger.claims_on("a"), [claim("first")]);
        ledger.made(&claim("first"));
        assert!(ledger.get(&claim("first")).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_volume_from_another_pool_is_not_owed_for_ever() {
        let mut ledger = Ledger::default();
        ledger.publish(&published("a", 100, 100));
        promise(&mut ledger, "data", "a", 30);
        ledger.made(&claim("data"));
        ledger.sweep();
        assert_eq!(promised(&ledger, "a", &[]), [30]);
        tokio::time::advance(SETTLED * 2).await;
        ledger.sweep();
        assert_eq!(promised(&ledger, "a", &[]), [0]);
    }
}
