//! Random deeds, one after another, against a small model of binding: after each, what is bound to what must be one of
//! the ends that the model allows.

#![allow(clippy::unwrap_used, reason = "a test may fail")]

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use controllers::Controller;
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use proptest::prelude::*;
use resources::{claim, volume};
use serde_json::{Value, json};
use simulator::{Ledger, Role, World, reference};
use tokio::time::sleep;

#[derive(Clone, Debug)]
enum Deed {
    Claim { name: usize, size: u8, modes: usize, selector: Option<&'static str>, volume: Option<usize> },
    Volume { name: usize, size: u8, modes: usize, tier: &'static str, kept_for: Option<usize> },
    DropClaim(usize),
    DropVolume(usize),
    Free(usize),
}

const MODES: [&[&str]; 3] = [&["ReadWriteOnce"], &["ReadWriteOnce", "ReadOnlyMany"], &["ReadOnlyMany"]];

fn deeds() -> impl Strategy<Value = Vec<Deed>> {
    let tier = || prop_oneof![Just("gold"), Just("tin")];
    let other = || proptest::option::weighted(0.15, 0..4_usize);
    let deed = prop_oneof![
        5 => (0..4_usize, 1..4_u8, 0..3_usize, proptest::option::weighted(0.2, tier()), other())
            .prop_map(|(name, size, modes, selector, volume)| Deed::Claim { name, size, modes, selector, volume }),
        5 => (0..4_usize, 1..4_u8, 0..3_usize, tier(), other())
            .prop_map(|(name, size, modes, tier, kept_for)| Deed::Volume { name, size, modes, tier, kept_for }),
        3 => (0..4_usize).prop_map(Deed::DropClaim),
        2 => (0..4_usize).prop_map(Deed::DropVolume),
        2 => (0..4_usize).prop_map(Deed::Free),
    ];
    proptest::collection::vec(deed, 1..25)
}

fn claim_object(name: usize, size: u8, modes: usize, selector: Option<&str>, volume: Option<usize>) -> Value {
    let mut claim = json!({
        "metadata": {"name": format!("c{name}"), "namespace": "default"},
        "spec": {"accessModes": MODES[modes], "storageClassName": "",
            "resources": {"requests": {"storage": format!("{size}Gi")}}},
    });
    if let Some(volume) = volume {
        claim["spec"]["volumeName"] = format!("v{volume}").into();
    }
    if let Some(tier) = selector {
        claim["spec"]["selector"] = json!({"matchLabels": {"tier": tier}});
    }
    claim
}

fn volume_object(name: usize, size: u8, modes: usize, tier: &str, kept_for: Option<usize>) -> Value {
    let mut volume = json!({
        "metadata": {"name": format!("v{name}"), "labels": {"tier": tier}},
        "spec": {"accessModes": MODES[modes], "storageClassName": "", "capacity": {"storage": format!("{size}Gi")},
            "persistentVolumeReclaimPolicy": "Retain", "hostPath": {"path": "/nowhere"}},
    });
    if let Some(claim) = kept_for {
        volume["spec"]["claimRef"] = json!({"kind": "PersistentVolumeClaim", "namespace": "default",
            "name": format!("c{claim}")});
    }
    volume
}

/// What is of interest: which claim has which volume, and how volumes are.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
struct Bindings {
    claims: BTreeMap<String, Option<String>>,
    volumes: BTreeMap<String, &'static str>,
}

/// The model: objects as users made them, and what is bound.
#[derive(Clone, Default)]
struct Model {
    claims: BTreeMap<String, PersistentVolumeClaim>,
    volumes: BTreeMap<String, PersistentVolume>,
    now: Bindings,
    /// Bound volumes that users deleted.
    going: BTreeSet<String>,
}

impl Model {
    fn act(&mut self, deed: &Deed) {
        match deed {
            Deed::Claim { name, size, modes, selector, volume } => {
                let object = claim_object(*name, *size, *modes, *selector, *volume);
                let name = format!("c{name}");
                self.now.claims.entry(name.clone()).or_insert_with(|| {
                    self.claims.insert(name, serde_json::from_value(object).unwrap());
                    None
                });
            }
            Deed::Volume { name, size, modes, tier, kept_for } => {
                let object = volume_object(*name, *size, *modes, tier, *kept_for);
                let name = format!("v{name}");
                self.now.volumes.entry(name.clone()).or_insert_with(|| {
                    self.volumes.insert(name, serde_json::from_value(object).unwrap());
                    "Available"
                });
            }
            Deed::DropClaim(name) => {
                if let Some(Some(volume)) = self.now.claims.remove(&format!("c{name}")) {
                    if self.going.remove(&volume) {
                        self.now.volumes.remove(&volume);
                    } else {
                        self.now.volumes.insert(volume, "Released");
                    }
                }
            }
            Deed::DropVolume(name) => {
                let name = format!("v{name}");
                if self.now.volumes.get(&name) == Some(&"Bound") {
                    self.going.insert(name);
                } else {
                    self.now.volumes.remove(&name);
                }
            }
            Deed::Free(name) => {
                let name = format!("v{name}");
                if self.now.volumes.get(&name) == Some(&"Released") {
                    self.volumes.get_mut(&name).unwrap().spec.as_mut().unwrap().claim_ref = None;
                    self.now.volumes.insert(name, "Available");
                }
            }
        }
    }

    /// The volumes that a claim without one may be bound to now.
    fn options(&self, claim: &PersistentVolumeClaim) -> BTreeSet<String> {
        let is_available = |name: &str| self.now.volumes.get(name) == Some(&"Available");
        let available = self.volumes.iter().filter(|(name, _)| is_available(name)).map(|(name, volume)| {
            let mut volume = volume.clone();
            volume.metadata.name = Some(name.clone());
            volume.status.get_or_insert_default().phase = Some("Available".to_owned());
            volume
        });
        let available: Vec<_> = available.collect();
        match claim::volume_name(claim) {
            "" => reference::candidates(claim, &available).into_iter().map(str::to_owned).collect(),
            named => {
                let may = |volume: &&PersistentVolume| {
                    let free = volume.spec.as_ref().unwrap().claim_ref.is_none();
                    volume.name_any() == named
                        && (reference::reserved_for(claim, volume)
                            || (free && reference::fits(claim, volume)))
                };
                available.iter().filter(may).map(ResourceExt::name_any).collect()
            }
        }
    }

    /// Every end that binding can come to from here.
    fn ends(&self, ends: &mut BTreeSet<Bindings>, seen: &mut BTreeSet<Bindings>) {
        if !seen.insert(self.now.clone()) {
            return;
        }
        let mut at_end = true;
        for (name, _) in self.now.claims.iter().filter(|(_, volume)| volume.is_none()) {
            for volume in self.options(&self.claims[name]) {
                at_end = false;
                let mut next = self.clone();
                next.now.claims.insert(name.clone(), Some(volume.clone()));
                next.now.volumes.insert(volume, "Bound");
                next.ends(ends, seen);
            }
        }
        if at_end {
            ends.insert(self.now.clone());
        }
    }
}

fn bindings(ledger: &Ledger) -> Bindings {
    let phase = |volume: &PersistentVolume| match volume::phase(volume) {
        "Available" => "Available",
        "Bound" => "Bound",
        "Released" => "Released",
        _ => "odd",
    };
    let has = |claim: &PersistentVolumeClaim| {
        (claim::phase(claim) == "Bound").then(|| claim::volume_name(claim).to_owned())
    };
    Bindings {
        claims: ledger.claims.iter().map(|(name, claim)| (name.clone(), has(claim))).collect(),
        volumes: ledger.volumes.iter().map(|(name, volume)| (name.clone(), phase(volume))).collect(),
    }
}

async fn compare(deeds: Vec<Deed>) -> Result<(), TestCaseError> {
    let mut world = World::new(0).await.with(&[Controller::Bind, Controller::Protect]);
    world.start(Role::Controllers);
    let mut model = Model::default();
    for (at, deed) in deeds.iter().enumerate() {
        match deed {
            Deed::Claim { name, size, modes, selector, volume } => {
                let object = claim_object(*name, *size, *modes, *selector, *volume);
                world.create::<PersistentVolumeClaim>(object).await;
            }
            Deed::Volume { name, size, modes, tier, kept_for } => {
                world.create::<PersistentVolume>(volume_object(*name, *size, *modes, tier, *kept_for)).await;
            }
            Deed::DropClaim(name) => world.delete::<PersistentVolumeClaim>(&format!("c{name}")).await,
            Deed::DropVolume(name) => world.delete::<PersistentVolume>(&format!("v{name}")).await,
            Deed::Free(name) => {
                let name = format!("v{name}");
                if model.now.volumes.get(&name) == Some(&"Released") {
                    world.patch::<PersistentVolume>(&name, json!({"spec": {"claimRef": null}})).await;
                }
            }
        }
        sleep(Duration::from_secs(3)).await;
        model.act(deed);
        let mut ends = BTreeSet::new();
        model.ends(&mut ends, &mut BTreeSet::new());
        let found = world.network.ledger(|ledger| bindings(ledger));
        prop_assert!(
            ends.contains(&found),
            "{}\nafter deed {at}, {deed:?}, there is\n  {found:?}\nand the model allows\n  {ends:?}",
            world.network.trace().join("\n")
        );
        model.now = found;
    }
    prop_assert_eq!(world.network.ledger(|ledger| ledger.wrong.clone()), Vec::<String>::new());
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn binding_ends_as_the_model_says(deeds in deeds()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(Box::pin(compare(deeds)))?;
    }
}
