//! How far a claim's change to another VolumeAttributesClass is, as its status tells it.

use k8s_openapi::api::core::v1::{ModifyVolumeStatus, PersistentVolumeClaim};

use crate::expansion::{remove_conditions, set_condition};

const MODIFYING: &str = "ModifyingVolume";
const ERROR: &str = "ModifyVolumeError";

/// How it stands with a change, from `status.modifyVolumeStatus`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Something is missing, such as the class.
    Pending,
    /// The driver was or will be asked.
    InProgress,
    /// It said that the volume can't be like that.
    Infeasible,
}

impl Stage {
    const ALL: [(Stage, &'static str); 3] =
        [(Stage::Pending, "Pending"), (Stage::InProgress, "InProgress"), (Stage::Infeasible, "Infeasible")];

    fn name(self) -> &'static str {
        Stage::ALL.iter().find(|(stage, _)| *stage == self).map_or("", |(_, name)| name)
    }
}

/// The class that the claim has, "" if none.
pub fn current(of: &PersistentVolumeClaim) -> &str {
    let status = of.status.as_ref();
    status.and_then(|status| status.current_volume_attributes_class_name.as_deref()).unwrap_or_default()
}

/// The change that is under way, and to which class; none if there is none.
pub fn under_way(of: &PersistentVolumeClaim) -> Option<(Stage, &str)> {
    let status = of.status.as_ref()?.modify_volume_status.as_ref()?;
    let stage = Stage::ALL.iter().find(|(_, name)| *name == status.status).map(|(stage, _)| *stage)?;
    Some((stage, status.target_volume_attributes_class_name.as_deref().unwrap_or_default()))
}

/// An attempt begins. One that is repeated changes nothing, and so costs no write.
pub fn begin(claim: &mut PersistentVolumeClaim, class: &str) {
    if under_way(claim) != Some((Stage::InProgress, class)) {
        set(claim, Stage::InProgress, class);
        remove_conditions(claim, &[ERROR]);
        set_condition(claim, MODIFYING, "");
    }
}

/// An attempt can't begin yet.
pub fn wait(claim: &mut PersistentVolumeClaim, class: &str, why: &str) {
    set(claim, Stage::Pending, class);
    set_condition(claim, ERROR, why);
}

/// An attempt failed; `infeasible` if the volume can't be like that ever.
pub fn fail(claim: &mut PersistentVolumeClaim, class: &str, message: &str, infeasible: bool) {
    if infeasible {
        set(claim, Stage::Infeasible, class);
        remove_conditions(claim, &[MODIFYING]);
    }
    set_condition(claim, ERROR, message);
}

/// The volume is as this class says.
pub fn finish(claim: &mut PersistentVolumeClaim, class: &str) {
    claim.status.get_or_insert_default().current_volume_attributes_class_name = Some(class.to_owned());
    cancel(claim);
}

/// Nothing is wanted any more, and nothing was changed.
pub fn cancel(claim: &mut PersistentVolumeClaim) {
    claim.status.get_or_insert_default().modify_volume_status = None;
    remove_conditions(claim, &[MODIFYING, ERROR]);
}

fn set(claim: &mut PersistentVolumeClaim, stage: Stage, class: &str) {
    claim.status.get_or_insert_default().modify_volume_status = Some(ModifyVolumeStatus {
        status: stage.name().to_owned(),
        target_volume_attributes_class_name: Some(class.to_owned()),
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conditions(claim: &PersistentVolumeClaim) -> Vec<String> {
        let status = claim.status.clone().unwrap_or_default();
        status.conditions.into_iter().flatten().map(|one| one.type_).collect()
    }

    #[test]
    fn a_change_is_told_from_its_beginning_to_its_end() {
        let mut claim = PersistentVolumeClaim::default();
        assert_eq!((current(&claim), under_way(&claim)), ("", None));
        wait(&mut claim, "fast", "there is no such class");
        assert_eq!(under_way(&claim), Some((Stage::Pending, "fast")));
        begin(&mut claim, "fast");
        assert_eq!(under_way(&claim), Some((Stage::InProgress, "fast")));
        assert_eq!(conditions(&claim), [MODIFYING]);
        let before = claim.clone();
        begin(&mut claim, "fast");
        assert_eq!(claim, before, "a repetition costs no write");
        fail(&mut claim, "fast", "busy", false);
        assert_eq!(under_way(&claim), Some((Stage::InProgress, "fast")));
        assert_eq!(conditions(&claim), [MODIFYING, ERROR]);
        fail(&mut claim, "fast", "no", true);
        assert_eq!(under_way(&claim), Some((Stage::Infeasible, "fast")));
        finish(&mut claim, "slow");
        assert_eq!((current(&claim), under_way(&claim)), ("slow", None));
        assert!(conditions(&claim).is_empty());
    }
}
