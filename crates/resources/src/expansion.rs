//! How far a claim's expansion is, as its status tells it: written by the resizer, then by the node.

use k8s_openapi::api::core::v1::{PersistentVolumeClaim, PersistentVolumeClaimCondition};
use k8s_openapi::apimachinery::pkg::api::resource;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use values::Quantity;

const STORAGE: &str = "storage";
const RESIZING: &str = "Resizing";
const FILE_SYSTEM_PENDING: &str = "FileSystemResizePending";
const CONTROLLER_ERROR: &str = "ControllerResizeError";
const NODE_ERROR: &str = "NodeResizeError";

/// Who is at an expansion, from `status.allocatedResourceStatuses`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// The driver's controller service was or will be asked.
    ControllerInProgress,
    /// It said that the size can't be had.
    ControllerInfeasible,
    /// The volume has grown; the node has to do the rest.
    NodePending,
    /// The driver's node service was or will be asked.
    NodeInProgress,
    /// It said that the size can't be had.
    NodeInfeasible,
}

impl Stage {
    const ALL: [(Stage, &'static str); 5] = [
        (Stage::ControllerInProgress, "ControllerResizeInProgress"),
        (Stage::ControllerInfeasible, "ControllerResizeInfeasible"),
        (Stage::NodePending, "NodeResizePending"),
        (Stage::NodeInProgress, "NodeResizeInProgress"),
        (Stage::NodeInfeasible, "NodeResizeInfeasible"),
    ];

    fn name(self) -> &'static str {
        Stage::ALL.iter().find(|(stage, _)| *stage == self).map_or("", |(_, name)| name)
    }
}

/// The stage that a claim's expansion is in; `None` if none is under way.
pub fn stage(of: &PersistentVolumeClaim) -> Option<Stage> {
    let name = of.status.as_ref()?.allocated_resource_statuses.as_ref()?.get(STORAGE)?;
    Stage::ALL.iter().find(|(_, one)| one == name).map(|(stage, _)| *stage)
}

/// The size that the claim has.
pub fn capacity(of: &PersistentVolumeClaim) -> Option<&resource::Quantity> {
    of.status.as_ref()?.capacity.as_ref()?.get(STORAGE)
}

/// The size that was attempted last.
pub fn allocated(of: &PersistentVolumeClaim) -> Option<&resource::Quantity> {
    of.status.as_ref()?.allocated_resources.as_ref()?.get(STORAGE)
}

/// An attempt begins. One that is repeated changes nothing, and so costs no write.
pub fn begin(claim: &mut PersistentVolumeClaim, size: &Quantity) {
    let attempted = allocated(claim).and_then(|size| size.0.parse::<Quantity>().ok());
    if stage(claim) == Some(Stage::ControllerInProgress) && attempted.as_ref() == Some(size) {
        return;
    }
    let status = claim.status.get_or_insert_default();
    let allocated = status.allocated_resources.get_or_insert_default();
    allocated.insert(STORAGE.to_owned(), resource::Quantity(size.to_string()));
    set_stage(claim, Some(Stage::ControllerInProgress));
    clear_conditions(claim);
    set_condition(claim, RESIZING, "");
}

/// An attempt failed; `infeasible` if the size can't be had ever. The request may be lowered then.
pub fn fail(claim: &mut PersistentVolumeClaim, message: &str, infeasible: bool) {
    if infeasible {
        set_stage(claim, Some(Stage::ControllerInfeasible));
    }
    set_condition(claim, CONTROLLER_ERROR, &format!("failed to expand pvc with {message}"));
}

/// The volume has grown, and the node has to do the rest.
pub fn hand_to_node(claim: &mut PersistentVolumeClaim) {
    set_stage(claim, Some(Stage::NodePending));
    conditions(claim).retain(|one| one.type_ != CONTROLLER_ERROR && one.type_ != NODE_ERROR);
    let message = "Waiting for user to (re-)start a pod to finish file system resize of volume on node.";
    set_condition(claim, FILE_SYSTEM_PENDING, message);
}

/// The node is at it.
pub fn begin_on_node(claim: &mut PersistentVolumeClaim) {
    set_stage(claim, Some(Stage::NodeInProgress));
}

/// The node failed; `infeasible` if the size can't be had ever. Then the resizer decides what next.
pub fn fail_on_node(claim: &mut PersistentVolumeClaim, message: &str, infeasible: bool) {
    if infeasible {
        set_stage(claim, Some(Stage::NodeInfeasible));
    }
    set_condition(claim, NODE_ERROR, &format!("failed to expand pvc with {message}"));
}

/// The volume has grown, and nothing is left to do.
pub fn finish(claim: &mut PersistentVolumeClaim, size: &Quantity) {
    let status = claim.status.get_or_insert_default();
    let capacity = status.capacity.get_or_insert_default();
    capacity.insert(STORAGE.to_owned(), resource::Quantity(size.to_string()));
    set_stage(claim, None);
    clear_conditions(claim);
}

fn set_stage(claim: &mut PersistentVolumeClaim, stage: Option<Stage>) {
    let statuses = &mut claim.status.get_or_insert_default().allocated_resource_statuses;
    let map = statuses.get_or_insert_default();
    match stage {
        Some(stage) => map.insert(STORAGE.to_owned(), stage.name().to_owned()),
        None => map.remove(STORAGE),
    };
    if map.is_empty() {
        *statuses = None;
    }
}

fn conditions(claim: &mut PersistentVolumeClaim) -> &mut Vec<PersistentVolumeClaimCondition> {
    claim.status.get_or_insert_default().conditions.get_or_insert_default()
}

fn clear_conditions(claim: &mut PersistentVolumeClaim) {
    remove_conditions(claim, &[RESIZING, FILE_SYSTEM_PENDING, CONTROLLER_ERROR, NODE_ERROR]);
}

/// Removes conditions of these types.
pub(crate) fn remove_conditions(claim: &mut PersistentVolumeClaim, ours: &[&str]) {
    let conditions = &mut claim.status.get_or_insert_default().conditions;
    if let Some(all) = conditions {
        all.retain(|one| !ours.contains(&one.type_.as_str()));
        if all.is_empty() {
            *conditions = None;
        }
    }
}

/// Sets a condition to true. One that says so already keeps its time.
pub(crate) fn set_condition(claim: &mut PersistentVolumeClaim, kind: &str, message: &str) {
    let message = Some(message.to_owned()).filter(|message| !message.is_empty());
    let all = conditions(claim);
    let was = all.iter().position(|one| one.type_ == kind);
    match was {
        Some(index) if all[index].status == "True" => all[index].message = message,
        _ => {
            all.retain(|one| one.type_ != kind);
            all.push(PersistentVolumeClaimCondition {
                type_: kind.to_owned(),
                status: "True".to_owned(),
                last_transition_time: Some(Time(clock::now())),
                message,
                ..PersistentVolumeClaimCondition::default()
            });
        }
    }
}
