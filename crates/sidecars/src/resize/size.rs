//! Whether a claim is to grow, and to what size: pure.

use std::time::Duration;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::apimachinery::pkg::api::resource;
use kube::ResourceExt;
use resources::expansion::{self, Stage};
use resources::{annotations, claim, volume};
use tokio::time::Instant;
use values::Quantity;

/// What a driver can do about sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ability {
    /// Its controller service expands volumes.
    Controller,
    /// Only its node service does: there is nothing to call, and all is left to the node.
    Node,
}

/// What is known of earlier attempts for a claim beyond its status. All of it may be lost: then the last attempt is
/// repeated, and what it gives is known again.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Remembered {
    /// The last attempt ended for sure, and nothing has grown.
    pub(super) ended: bool,
    /// The driver can expand only what no pod uses.
    pub(super) offline_only: bool,
    /// A size that can't be had is not tried before then.
    pub(super) pause: Option<(Quantity, Instant)>,
}

/// What a resizer does about a claim.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Plan {
    /// Nothing: it has what it asks for, is not ready, or it is the node's turn.
    Nothing,
    /// Grow its volume to this size.
    Expand(Quantity),
    /// This size failed for good: try it again after a while.
    Wait(Quantity, Duration),
    /// Wait until no pod uses it.
    InUse,
    /// The node is done: forget what size the volume had before.
    ForgetOldSize,
}

/// How long a size that can't be had is left alone.
pub(super) const PAUSE: Duration = Duration::from_secs(300);

/// Decides about a claim and the volume that it is bound to.
pub(super) fn plan(
    of: &PersistentVolumeClaim,
    on: &PersistentVolume,
    ability: Ability,
    remembered: &Remembered,
    used: bool,
    now: Instant,
) -> Plan {
    let is_whole = claim::phase(of) == "Bound"
        && claim::volume_name(of) == on.metadata.name.as_deref().unwrap_or_default()
        && volume::is_bound_to(on, of)
        && of.metadata.deletion_timestamp.is_none()
        && on.metadata.deletion_timestamp.is_none();
    let sizes = Sizes::of(of, on).filter(|_| is_whole);
    let Some(sizes) = sizes else { return Plan::Nothing };
    if sizes.asked <= sizes.has {
        let is_marked = on.annotations().contains_key(annotations::PRE_RESIZE_CAPACITY);
        return if is_marked && sizes.has >= sizes.volume { Plan::ForgetOldSize } else { Plan::Nothing };
    }
    let stage = expansion::stage(of);
    let Some(size) = target(&sizes, stage, ability, remembered.ended) else { return Plan::Nothing };
    match &remembered.pause {
        Some((paused, until)) if *paused == size && now < *until => {
            return Plan::Wait(size, *until - now);
        }
        // The node found that it can't be: the controller's next attempt would only give it back the same.
        None if stage == Some(Stage::NodeInfeasible) => return Plan::Wait(size, PAUSE),
        _ => {}
    }
    if remembered.offline_only && used { Plan::InUse } else { Plan::Expand(size) }
}

#[derive(Debug)]
struct Sizes {
    /// What the claim asks for.
    asked: Quantity,
    /// What it has by its status.
    has: Quantity,
    /// What the last attempt was for, if that is still ahead.
    attempted: Option<Quantity>,
    /// What the volume has.
    volume: Quantity,
}

impl Sizes {
    fn of(of: &PersistentVolumeClaim, on: &PersistentVolume) -> Option<Sizes> {
        let has = parse(expansion::capacity(of)?)?;
        let attempted = expansion::allocated(of).and_then(parse).filter(|size| *size > has);
        Some(Sizes {
            asked: parse(claim::requested(of)?)?,
            has,
            attempted,
            volume: parse(volume::capacity(on)?)?,
        })
    }
}

fn parse(quantity: &resource::Quantity) -> Option<Quantity> {
    quantity.0.parse().ok()
}

/// The size to try. An attempt whose outcome is not known goes first, whatever the claim asks for by now: the volume
/// may have grown already.
fn target(sizes: &Sizes, stage: Option<Stage>, ability: Ability, ended: bool) -> Option<Quantity> {
    let Sizes { asked, volume, .. } = sizes;
    let attempted = sizes.attempted.as_ref().unwrap_or(asked);
    let size = match stage {
        // The node's turn, unless the volume itself is not that large yet.
        Some(Stage::NodePending | Stage::NodeInProgress) if volume < asked && volume < attempted => attempted,
        Some(Stage::NodePending | Stage::NodeInProgress) => return None,
        Some(Stage::NodeInfeasible) if volume < asked || ability == Ability::Controller => attempted,
        Some(Stage::NodeInfeasible) => asked,
        Some(Stage::ControllerInProgress) if !ended => attempted,
        // The volume has grown, and only the claim does not say so.
        _ if volume >= asked && attempted <= volume => attempted,
        _ => asked,
    };
    Some(size.clone())
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PersistentVolume;
    use serde_json::json;

    use super::*;

    const MI: u64 = 1 << 20;

    fn mebibytes(size: u64) -> Quantity {
        Quantity::from_bytes(size * MI)
    }

    /// A claim that asks for, has, and attempted; and its volume.
    fn pair(
        asked: u64,
        has: u64,
        attempted: u64,
        stage: &str,
        volume: u64,
    ) -> (PersistentVolumeClaim, PersistentVolume) {
        let mut claim = json!({
            "metadata": {"name": "data", "namespace": "shop", "uid": "7"},
            "spec": {"volumeName": "pv", "resources": {"requests": {"storage": format!("{asked}Mi")}}},
            "status": {"phase": "Bound", "capacity": {"storage": format!("{has}Mi")}},
        });
        if attempted > 0 {
            claim["status"]["allocatedResources"] = json!({"storage": format!("{attempted}Mi")});
        }
        if !stage.is_empty() {
            claim["status"]["allocatedResourceStatuses"] = json!({"storage": stage});
        }
        let volume = json!({
            "metadata": {"name": "pv"},
            "spec": {"capacity": {"storage": format!("{volume}Mi")},
                     "claimRef": {"name": "data", "namespace": "shop", "uid": "7"}},
        });
        (serde_json::from_value(claim).unwrap(), serde_json::from_value(volume).unwrap())
    }

    #[test]
    fn which_size_to_try() {
        use Ability::{Controller, Node};
        const C: &str = "ControllerResizeInProgress";
        const CI: &str = "ControllerResizeInfeasible";
        const NP: &str = "NodeResizePending";
        const N: &str = "NodeResizeInProgress";
        const NI: &str = "NodeResizeInfeasible";
        for (what, asked, attempted, stage, volume, ability, ended, expected) in [
            ("nothing", 1, 0, "", 1, Controller, false, 0),
            ("first growth", 2, 0, "", 1, Controller, false, 2),
            ("growth after an earlier one", 3, 1, "", 1, Controller, false, 3),
            ("interrupted", 2, 2, C, 1, Controller, false, 2),
            ("interrupted, then raised", 4, 2, C, 1, Controller, false, 2),
            ("interrupted, then lowered", 2, 4, C, 1, Controller, false, 4),
            ("failed, then raised", 4, 2, C, 1, Controller, true, 4),
            ("failed, then lowered", 2, 4, C, 1, Controller, true, 2),
            ("infeasible, then lowered", 2, 4, CI, 1, Controller, false, 2),
            ("infeasible still", 4, 4, CI, 1, Controller, true, 4),
            ("volume grown, claim not written", 2, 2, C, 2, Controller, false, 2),
            ("volume grown, status lost", 2, 2, "", 2, Controller, false, 2),
            ("volume larger by hand", 2, 0, "", 8, Controller, false, 2),
            ("volume larger by hand, failed, then lowered", 2, 9, C, 3, Controller, true, 2),
            ("the node's turn", 2, 2, NP, 2, Controller, false, 0),
            ("the node at it", 2, 2, N, 2, Controller, false, 0),
            ("the node's turn, then raised", 4, 2, NP, 2, Controller, false, 0),
            ("the node at it, then raised", 4, 2, N, 2, Controller, false, 0),
            ("the node's turn, then lowered", 2, 4, NP, 4, Controller, false, 0),
            ("the node's turn, volume not grown", 4, 3, NP, 2, Controller, false, 3),
            ("only the node expands", 2, 0, "", 1, Node, false, 2),
        ] {
            let (claim, volume) = pair(asked, 1, attempted, stage, volume);
            let remembered = Remembered { ended, ..Remembered::default() };
            let expected = if expected == 0 { Plan::Nothing } else { Plan::Expand(mebibytes(expected)) };
            let decided = plan(&claim, &volume, ability, &remembered, true, Instant::now());
            assert_eq!(decided, expected, "{what}");
        }
        // What the node could not do waits first, and then goes back to it.
        for (asked, attempted, volume, ability, expected) in [
            (2, 2, 2, Controller, 2),
            (3, 4, 4, Controller, 4),
            (5, 4, 4, Controller, 4),
            (3, 4, 4, Node, 3),
            (5, 4, 4, Node, 4),
        ] {
            let (claim, volume) = pair(asked, 1, attempted, NI, volume);
            let now = Instant::now();
            let mut remembered = Remembered::default();
            let decided = plan(&claim, &volume, ability, &remembered, true, now);
            assert_eq!(decided, Plan::Wait(mebibytes(expected), PAUSE), "{asked} {attempted}");
            remembered.pause = Some((mebibytes(expected), now));
            let decided = plan(&claim, &volume, ability, &remembered, true, now);
            assert_eq!(decided, Plan::Expand(mebibytes(expected)), "{asked} {attempted}");
        }
    }

    #[test]
    fn when_to_wait() {
        let now = Instant::now();
        let later = now + Duration::from_secs(7);
        let paused = Remembered { pause: Some((mebibytes(4), later)), ended: true, offline_only: false };
        let offline = Remembered { offline_only: true, ended: true, pause: None };
        for (what, asked, remembered, used, expected) in [
            ("can't be had", 4, &paused, false, Plan::Wait(mebibytes(4), Duration::from_secs(7))),
            ("lowered", 3, &paused, false, Plan::Expand(mebibytes(3))),
            ("in use", 4, &offline, true, Plan::InUse),
            ("not in use any more", 4, &offline, false, Plan::Expand(mebibytes(4))),
        ] {
            let (claim, volume) = pair(asked, 1, 4, "ControllerResizeInfeasible", 1);
            let decided = plan(&claim, &volume, Ability::Controller, remembered, used, now);
            assert_eq!(decided, expected, "{what}");
        }
    }

    #[test]
    fn only_bound_pairs_are_touched_and_the_old_size_is_forgotten_last() {
        let decide = |claim: &PersistentVolumeClaim, volume: &PersistentVolume| {
            plan(claim, volume, Ability::Controller, &Remembered::default(), false, Instant::now())
        };
        let (mut claim, volume) = pair(2, 1, 0, "", 1);
        claim.status.get_or_insert_default().phase = Some("Lost".to_owned());
        assert_eq!(decide(&claim, &volume), Plan::Nothing);
        let (mut claim, volume) = pair(2, 1, 0, "", 1);
        claim.metadata.uid = Some("8".to_owned());
        assert_eq!(decide(&claim, &volume), Plan::Nothing);
        let (claim, mut volume) = pair(2, 2, 2, "", 2);
        assert_eq!(decide(&claim, &volume), Plan::Nothing);
        volume.annotations_mut().insert(annotations::PRE_RESIZE_CAPACITY.to_owned(), "1Mi".to_owned());
        assert_eq!(decide(&claim, &volume), Plan::ForgetOldSize);
    }
}
