//! Resources counted in whole units, as the scheduler compares them: thousandths of a CPU, else units or bytes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use resources::requests::{self, Of};
use values::Quantity;

/// Amounts of resources; parts of a unit are rounded up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amounts {
    /// In thousandths.
    pub(crate) cpu: i64,
    /// Bytes.
    pub(crate) memory: i64,
    /// Bytes.
    pub(crate) ephemeral_storage: i64,
    /// Huge pages and devices.
    pub(crate) others: BTreeMap<String, i64>,
}

impl Amounts {
    /// What a pod asks for.
    pub(crate) fn of_pod(pod: &Pod, of: Of) -> Self {
        Self::read(&requests::of_pod(pod, of))
    }

    /// What a node has for pods, and how many of them it takes.
    pub(crate) fn of_node(node: &Node) -> (Self, i64) {
        let amounts = requests::read(node.status.as_ref().and_then(|status| status.allocatable.as_ref()));
        (Self::read(&amounts), amounts.get("pods").and_then(Quantity::ceil).unwrap_or_default())
    }

    fn read(amounts: &requests::Amounts) -> Self {
        let mut read = Self::default();
        for (name, amount) in amounts {
            let units = amount.ceil().unwrap_or(i64::MAX);
            match name.as_str() {
                "cpu" => read.cpu = amount.milli().unwrap_or(i64::MAX),
                "memory" => read.memory = units,
                "ephemeral-storage" => read.ephemeral_storage = units,
                other if is_counted(other) => _ = read.others.insert(name.clone(), units),
                _ => {}
            }
        }
        read
    }

    pub(crate) fn is_zero(&self) -> bool {
        self.cpu == 0 && self.memory == 0 && self.ephemeral_storage == 0 && self.others.is_empty()
    }

    pub(crate) fn add(&mut self, more: &Self) {
        self.combine(more, i64::saturating_add);
    }

    pub(crate) fn remove(&mut self, less: &Self) {
        self.combine(less, i64::saturating_sub);
        self.others.retain(|_, amount| *amount != 0);
    }

    fn combine(&mut self, other: &Self, with: fn(i64, i64) -> i64) {
        self.cpu = with(self.cpu, other.cpu);
        self.memory = with(self.memory, other.memory);
        self.ephemeral_storage = with(self.ephemeral_storage, other.ephemeral_storage);
        for (name, amount) in &other.others {
            let sum = self.others.entry(name.clone()).or_default();
            *sum = with(*sum, *amount);
        }
    }

    /// Each resource that is asked for by the name under which it is missed, with the amount.
    pub(crate) fn asked(&self) -> impl Iterator<Item = (&str, i64)> {
        let known =
            [("cpu", self.cpu), ("memory", self.memory), ("ephemeral-storage", self.ephemeral_storage)];
        let others = self.others.iter().map(|(name, amount)| (name.as_str(), *amount));
        known.into_iter().chain(others).filter(|(_, amount)| *amount > 0)
    }

    pub(crate) fn get(&self, name: &str) -> i64 {
        match name {
            "cpu" => self.cpu,
            "memory" => self.memory,
            "ephemeral-storage" => self.ephemeral_storage,
            other => self.others.get(other).copied().unwrap_or_default(),
        }
    }
}

/// Whether a resource is one of those that nodes give out beside CPU, memory and ephemeral storage: extended resources,
/// which have a domain, huge pages, and limits of attachable volumes.
fn is_counted(name: &str) -> bool {
    name.contains('/') || name.starts_with("hugepages-") || name.starts_with("attachable-volumes-")
}
