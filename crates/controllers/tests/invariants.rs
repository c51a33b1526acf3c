//! Random small worlds: whatever order claims and volumes are looked at, from whatever stale caches, and whichever
//! writes are lost, no volume is bound twice and no claim is.

#![allow(clippy::unwrap_used, reason = "a test may fail")]
#![allow(dead_code, reason = "shared with the cases")]

#[path = "cases/cluster.rs"]
mod cluster;
#[path = "cases/objects.rs"]
mod objects;

use std::collections::HashMap;
use std::sync::Mutex;

use cluster::Map;
use controllers::bind::{
    ClaimKey, Cluster, Live, Look, Step, World, Write, Written, sync_claim, sync_volume, write_all,
};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use proptest::prelude::*;
use serde_json::{Value, json};

/// One thing that happens.
#[derive(Clone, Debug)]
enum Turn {
    /// A claim is looked at; with old caches, and a write lost, if so.
    Claim { index: usize, stale: bool, lost: Option<usize> },
    /// A volume is.
    Volume { index: usize, stale: bool, lost: Option<usize> },
    /// A claim is deleted.
    Delete(usize),
    /// Caches catch up.
    CatchUp,
}

fn turns() -> impl Strategy<Value = Vec<Turn>> {
    let lost = || proptest::option::weighted(0.3, 0..4_usize);
    let turn = prop_oneof![
        5 => (0..4_usize, any::<bool>(), lost()).prop_map(|(index, stale, lost)| Turn::Claim { index, stale, lost }),
        5 => (0..4_usize, any::<bool>(), lost()).prop_map(|(index, stale, lost)| Turn::Volume { index, stale, lost }),
        1 => (0..4_usize).prop_map(Turn::Delete),
        3 => Just(Turn::CatchUp),
    ];
    proptest::collection::vec(turn, 1..60)
}

fn a_volume() -> impl Strategy<Value = (u8, Option<usize>, bool)> {
    (1..4_u8, proptest::option::weighted(0.2, 0..4_usize), any::<bool>())
}

fn a_claim() -> impl Strategy<Value = (u8, Option<usize>)> {
    (1..4_u8, proptest::option::weighted(0.2, 0..4_usize))
}

/// The map, with one of the next writes lost.
struct Losing<'a>(&'a Map, Mutex<Option<usize>>);

impl Cluster for Losing<'_> {
    async fn claim(&self, key: &ClaimKey) -> Result<Option<PersistentVolumeClaim>, kube::Error> {
        self.0.claim(key).await
    }

    async fn volume(&self, name: &str) -> Result<Option<PersistentVolume>, kube::Error> {
        self.0.volume(name).await
    }

    async fn write(&self, write: Write) -> Result<Written, kube::Error> {
        let lost = {
            let mut left = self.1.lock().unwrap();
            let now = *left == Some(0);
            *left = left.and_then(|left| left.checked_sub(1));
            now
        };
        let result = self.0.write(write).await;
        // The answer is lost; that of a write which was not made is no different to the steps that follow.
        if lost { Err(kube::Error::LinesCodecMaxLineLengthExceeded) } else { result }
    }
}

async fn make(map: &Map, step: Step, lost: Option<usize>) {
    let _ = write_all(&Losing(map, Mutex::new(lost)), step.writes, |_, _| {}).await;
}

fn check(map: &Map) -> Result<(), TestCaseError> {
    let volumes: HashMap<_, _> =
        map.volumes().into_iter().map(|volume| (volume.name_any(), volume)).collect();
    let mut owners = HashMap::new();
    for claim in map.claims().iter().filter(|claim| resources::claim::is_bind_completed(claim)) {
        let name = resources::claim::volume_name(claim).to_owned();
        let other = owners.insert(name.clone(), claim.name_any());
        prop_assert!(other.is_none(), "{name} is bound to {other:?} and {}", claim.name_any());
        let volume = &volumes[&name];
        prop_assert!(resources::volume::is_bound_to(volume, claim), "{name} is not its claim's");
    }
    Ok(())
}

async fn play(
    volumes: Vec<(u8, Option<usize>, bool)>,
    claims: Vec<(u8, Option<usize>)>,
    turns: Vec<Turn>,
) -> Result<(), TestCaseError> {
    let given = json!({"builtin_plugin": Value::Null});
    let map = Map::of(&given);
    for (index, (size, reserved, released)) in volumes.iter().enumerate() {
        let reference =
            reserved.map(|claim| json!({"namespace": "ns", "name": format!("c{claim}"), "uid": ""}));
        map.add_volume(objects::volume(&json!({
            "name": format!("v{index}"), "capacity": format!("{size}Gi"), "access_modes": ["RWO"], "storage_class": "",
            "reclaim": "Retain", "phase": if *released { "Available" } else { "" }, "claim_ref": reference,
        })));
    }
    for (index, (size, named)) in claims.iter().enumerate() {
        map.add_claim(objects::claim(&json!({
            "namespace": "ns", "name": format!("c{index}"), "uid": format!("uid-{index}"), "request": format!("{size}Gi"),
            "access_modes": ["RWO"], "storage_class": "", "volume_name": named.map(|volume| format!("v{volume}")),
            "status": {"phase": "Pending"},
        })));
    }
    let mut old: World = map.world(&given);
    for turn in turns {
        let now = map.world(&given);
        let seen = |stale: bool| if stale { &old } else { &now };
        match turn {
            Turn::Claim { index, stale, lost } => {
                let world = seen(stale);
                let claim = world.claim(&ClaimKey::new("ns", format!("c{index}"))).cloned();
                if let Some(claim) = claim {
                    make(&map, sync_claim(world, &claim), lost).await;
                }
            }
            Turn::Volume { index, stale, lost } => {
                let world = seen(stale);
                let mut live = Live::Unread;
                while let Some(volume) = world.volumes.get(&format!("v{index}")) {
                    match sync_volume(world, volume, live) {
                        Look::Decided(step) => {
                            make(&map, step, lost).await;
                            break;
                        }
                        Look::Ask(key) => live = Live::Read(map.claim(&key).await.unwrap().map(Box::new)),
                    }
                }
            }
            Turn::Delete(index) => map.drop_claim(&format!("c{index}")),
            Turn::CatchUp => old = now,
        }
        check(&map)?;
    }
    // Left alone, every claim that is left ends bound if there is a volume it may have.
    for _ in 0..4 {
        for index in 0..4 {
            let world = map.world(&given);
            if let Some(claim) = map.claim_named(&format!("c{index}")) {
                make(&map, sync_claim(&world, &claim), None).await;
            }
            let world = map.world(&given);
            if let Some(volume) = map.volume_named(&format!("v{index}"))
                && let Look::Decided(step) = sync_volume(&world, &volume, Live::Read(None))
                && volume.spec.as_ref().is_none_or(|spec| spec.claim_ref.is_none())
            {
                make(&map, step, None).await;
            }
            check(&map)?;
        }
    }
    let world = map.world(&given);
    for claim in map.claims().iter().filter(|claim| resources::claim::volume_name(claim).is_empty()) {
        let fitting = controllers::bind::volume_for(&world, claim, false).unwrap();
        prop_assert!(
            fitting.is_none(),
            "{} could have {:?}",
            claim.name_any(),
            fitting.map(|volume| volume.name_any())
        );
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_bound_twice(
        volumes in proptest::collection::vec(a_volume(), 4),
        claims in proptest::collection::vec(a_claim(), 4),
        turns in turns(),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(Box::pin(play(volumes, claims, turns)))?;
    }
}
