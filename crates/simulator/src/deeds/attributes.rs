//! What users do about VolumeAttributesClasses.

use std::time::Duration;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::VolumeAttributesClass;
use kube::ResourceExt;
use resources::modification::{self, Stage};
use resources::{claim, fit};
use serde_json::{Value, json};
use tokio::time::sleep;

use crate::network::LATEST;
use crate::storage::{DRIVER, ODD};
use crate::{Dice, World};

/// Classes that a volume can have. What it has is the class's name: the driver's parameter.
const SOUND: [&str; 2] = ["gold", "silver"];
/// A class of another driver.
const FOREIGN: &str = "foreign";
/// A class that never exists.
const ABSENT: &str = "absent";
/// What claims are made with, or are changed to.
const NAMED: [&str; 7] = ["gold", "gold", "silver", "silver", ODD, FOREIGN, ABSENT];

/// Gives a new claim a class.
pub(super) fn ask(claim: &mut Value, dice: &mut Dice) {
    claim["spec"]["volumeAttributesClassName"] = dice.pick(&NAMED).into();
}

/// Gives a volume that is made by hand a class.
pub(super) fn have(volume: &mut Value, dice: &mut Dice) {
    volume["spec"]["volumeAttributesClassName"] = dice.pick(&SOUND).into();
}

/// Whether a claim asks for nothing that can't be.
pub(crate) fn is_sound(claim: &PersistentVolumeClaim) -> bool {
    let wanted = fit::attributes_class_of_claim(claim);
    wanted.is_empty() || SOUND.contains(&wanted)
}

/// Somebody asks for another class, or for none any more; what can't be is refused.
pub(super) async fn change_claim(world: &World, dice: &mut Dice) {
    let Some(name) = super::any_claim(world, dice).await else { return };
    let class = if dice.in_a_thousand(150) { Value::Null } else { dice.pick(&NAMED).into() };
    world.network.note(format_args!("user: claim {name} of attributes {class}"));
    let change = json!({"spec": {"volumeAttributesClassName": class}});
    world.patch::<PersistentVolumeClaim>(&name, change).await;
}

/// A class goes once nobody names it, and may come again before or after that.
pub(super) async fn replace_class(world: &World, dice: &mut Dice) {
    world.network.note("user: attributes silver go and may come");
    world.delete::<VolumeAttributesClass>("silver").await;
    sleep(dice.up_to(3000)).await;
    if dice.in_a_thousand(500) {
        world.attributes_class("silver", DRIVER).await;
    }
}

impl World {
    /// Makes the classes that there are.
    pub(crate) async fn define_attributes(&self) {
        for (name, driver) in
            SOUND.iter().chain([&ODD]).map(|name| (*name, DRIVER)).chain([(FOREIGN, "other.example.com")])
        {
            self.attributes_class(name, driver).await;
        }
    }

    async fn attributes_class(&self, name: &str, driver: &str) {
        let class = json!({"metadata": {"name": name}, "driverName": driver, "parameters": {"tier": name}});
        self.create::<VolumeAttributesClass>(class).await;
    }

    /// Users take back what nobody provisions. They wait until they are told how volumes can't be, and then ask for what
    /// can be.
    ///
    /// # Errors
    /// They are not told.
    pub(crate) async fn settle_for_less(&self) -> Result<(), String> {
        // One that was going may be gone only once all news have arrived.
        for late in [Duration::ZERO, 2 * LATEST] {
            sleep(late).await;
            self.attributes_class("silver", DRIVER).await;
        }
        for claim in self.ask_in_vain("Pending") {
            self.network
                .note(format_args!("user: no claim {}, which nobody can provision", claim.name_any()));
            self.delete::<PersistentVolumeClaim>(&claim.name_any()).await;
        }
        let mut untold = Vec::new();
        for _ in 0..60 {
            let asking = self.ask_in_vain("Bound");
            untold = asking.iter().filter(|claim| !is_told(claim)).map(ResourceExt::name_any).collect();
            if untold.is_empty() {
                for claim in asking {
                    let name = claim.name_any();
                    self.network.note(format_args!("user: claim {name} of attributes gold after all"));
                    let change = json!({"spec": {"volumeAttributesClassName": "gold"}});
                    self.patch::<PersistentVolumeClaim>(&name, change).await;
                }
                return Ok(());
            }
            sleep(LATEST).await;
            self.tend().await;
        }
        Err(format!("claims {untold:?} are not told that their attributes can't be"))
    }

    /// Claims of a phase that ask for what can't be.
    fn ask_in_vain(&self, phase: &str) -> Vec<PersistentVolumeClaim> {
        self.network.ledger(|ledger| {
            let lives = |claim: &&PersistentVolumeClaim| {
                claim::phase(claim) == phase && claim.metadata.deletion_timestamp.is_none()
            };
            ledger.claims.values().filter(lives).filter(|claim| !is_sound(claim)).cloned().collect()
        })
    }
}

fn is_told(claim: &PersistentVolumeClaim) -> bool {
    let wanted = fit::attributes_class_of_claim(claim);
    let stage = if wanted == ABSENT { Stage::Pending } else { Stage::Infeasible };
    modification::under_way(claim) == Some((stage, wanted))
}
