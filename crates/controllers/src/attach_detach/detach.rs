//! What is to be taken back from a node, and what it is told to have: pure.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{AttachedVolume, Node};
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::ResourceExt;
use resources::{annotations, attachment, node};

/// How long a node that does not answer may keep a volume that nobody wants there any more, as in Kubernetes.
const FORCE_AFTER: SignedDuration = SignedDuration::from_mins(6);

/// What is known of a node.
#[derive(Clone, Copy, Debug)]
pub enum Known<'a> {
    /// It exists.
    Present(&'a Node),
    /// It was deleted; its last state, if that was seen.
    Gone(Option<&'a Node>),
}

/// Whether an attachment that nobody wants can be taken back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Release {
    /// The node has nothing of it mounted.
    Safe,
    /// The node works, and will say when it has unmounted the volume.
    Unmounting,
    /// The node can't say anything; it has until then.
    Waiting(Timestamp),
    /// The node had its time.
    TimedOut,
    /// The node is off: an administrator said so.
    OutOfService,
}

/// An attachment of a node.
#[derive(Clone, Debug)]
pub struct Held {
    /// The object.
    pub attachment: Arc<VolumeAttachment>,
    /// The volume's name in the node's status, if the volume is known.
    pub volume: Option<String>,
    /// Pods of the node want it.
    pub wanted: bool,
    /// Since when nobody has wanted it.
    pub since: Timestamp,
}

/// An attachment to end.
#[derive(Clone, Debug)]
pub struct TakeBack {
    /// The object to delete.
    pub attachment: Arc<VolumeAttachment>,
    /// Why the node is not asked whether it has unmounted the volume.
    pub forced: Option<&'static str>,
}

/// What to do for a node.
#[derive(Clone, Debug, Default)]
pub struct NodeStep {
    /// What the node's `volumesAttached` shall be, if that is not what it is.
    pub report: Option<Vec<AttachedVolume>>,
    /// Attachments to end, after they are no longer reported.
    pub take_back: Vec<TakeBack>,
    /// Attachments to mark with the time since when nobody has wanted them, or to free from that mark.
    pub marks: Vec<(Arc<VolumeAttachment>, Option<Timestamp>)>,
    /// When to look again, although nothing happens.
    pub again: Option<Timestamp>,
}

/// Whether an attachment that nobody has wanted since `since` can be taken back. The clock of a node starts anew when
/// it was ready in between.
pub fn release(node: Known<'_>, in_use: bool, since: Timestamp, now: Timestamp) -> Release {
    let object = match node {
        _ if !in_use => return Release::Safe,
        Known::Present(object) => Some(object),
        Known::Gone(last) => last,
    };
    if object.is_some_and(node::is_out_of_service) {
        return Release::OutOfService;
    }
    let begun = match node {
        Known::Present(object) if node::is_ready(object) => return Release::Unmounting,
        Known::Present(object) => node::unready_since(object).map_or(since, |unready| unready.max(since)),
        Known::Gone(_) => since,
    };
    let until = begun + FORCE_AFTER;
    if until <= now { Release::TimedOut } else { Release::Waiting(until) }
}

/// Whether the node may have the attachment's volume mounted. One that was deleted without being seen may.
pub(super) fn is_in_use(node: Known<'_>, attachment: &VolumeAttachment, volume: Option<&str>) -> bool {
    let (Known::Present(node) | Known::Gone(Some(node))) = node else { return true };
    let mut in_use = node::volumes_in_use(node).iter();
    match volume {
        Some(volume) => in_use.any(|name| name == volume),
        // The name of the attachment says which volume it was made for.
        None => in_use.any(|name| {
            attachment::parse_status_name(name).is_some_and(|(driver, handle)| {
                attachment::name(handle, driver, &attachment.spec.node_name) == attachment.name_any()
            })
        }),
    }
}

/// Since when nobody has wanted the attachment, as it was written down.
pub(super) fn marked(attachment: &VolumeAttachment) -> Option<Timestamp> {
    attachment.annotations().get(annotations::DETACH_WANTED)?.parse().ok()
}

/// Whether the attach-detach controller takes care of an attachment. What others have made has other names, or is for a
/// volume that a pod defines inline.
pub fn is_ours(attachment: &VolumeAttachment) -> bool {
    attachment::volume(attachment).is_some() && attachment::is_computed(&attachment.name_any())
}

/// Decides for a node. What others have made, by names that are not computed, is theirs; so are the volumes of a node
/// that does not leave attaching to this controller.
pub fn decide(node: Known<'_>, held: &[Held], now: Timestamp) -> NodeStep {
    let mut step = NodeStep::default();
    if matches!(node, Known::Present(object) if !node::is_attach_managed(object)) {
        return step;
    }
    let mut reported = BTreeSet::new();
    for one in held {
        let object = &one.attachment;
        if !is_ours(object) || object.metadata.deletion_timestamp.is_some() {
            continue;
        }
        let mark = marked(object);
        if one.wanted {
            if mark.is_some() {
                step.marks.push((object.clone(), None));
            }
        } else {
            let in_use = is_in_use(node, object, one.volume.as_deref());
            let forced = match release(node, in_use, one.since, now) {
                Release::Unmounting => {
                    reported.extend(one.volume.clone().filter(|_| attachment::is_attached(object)));
                    continue;
                }
                Release::Waiting(until) => {
                    if mark.is_none() {
                        step.marks.push((object.clone(), Some(one.since)));
                    }
                    step.again = Some(step.again.map_or(until, |again| again.min(until)));
                    reported.extend(one.volume.clone().filter(|_| attachment::is_attached(object)));
                    continue;
                }
                Release::Safe => None,
                Release::TimedOut => Some("the node did not answer for six minutes"),
                Release::OutOfService => Some("the node is out of service"),
            };
            step.take_back.push(TakeBack { attachment: object.clone(), forced });
            continue;
        }
        reported.extend(one.volume.clone().filter(|_| attachment::is_attached(object)));
    }
    if let Known::Present(object) = node {
        let list = report(object, reported);
        let names = |list: &[AttachedVolume]| -> BTreeSet<String> {
            list.iter().map(|volume| volume.name.clone()).collect()
        };
        let is: BTreeSet<String> = node::volumes_attached(object).map(str::to_owned).collect();
        step.report = (names(&list) != is).then_some(list);
    }
    step
}

/// The node's `volumesAttached` with these CSI volumes, and all others that it has now.
fn report(node: &Node, volumes: BTreeSet<String>) -> Vec<AttachedVolume> {
    let is = node.status.as_ref().and_then(|status| status.volumes_attached.clone()).unwrap_or_default();
    let others = is.into_iter().filter(|one| attachment::parse_status_name(&one.name).is_none());
    others
        .chain(volumes.into_iter().map(|name| AttachedVolume { name, device_path: String::new() }))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    const DRIVER: &str = "csi.example.com";

    fn time(text: &str) -> Timestamp {
        format!("2026-01-01T00:{text}Z").parse().expect("a time")
    }

    fn node(ready: &str, since: &str, in_use: &[&str], taints: &[&str]) -> Node {
        let in_use: Vec<_> = in_use.iter().map(|handle| attachment::status_name(DRIVER, handle)).collect();
        let taints: Vec<_> = taints.iter().map(|key| json!({"key": key, "effect": "NoExecute"})).collect();
        serde_json::from_value(json!({
            "metadata": {"name": "n1", "annotations": {annotations::CONTROLLER_MANAGED_ATTACH: "true"}},
            "spec": {"taints": taints},
            "status": {"volumesInUse": in_use, "conditions": [
                {"type": "Ready", "status": ready, "lastTransitionTime": time(since).to_string()}]},
        }))
        .expect("a node")
    }

    fn held(handle: &str, wanted: bool, attached: bool, mark: Option<&str>) -> Held {
        let mut object = json!({
            "metadata": {"name": attachment::name(handle, DRIVER, "n1")},
            "spec": {"attacher": DRIVER, "nodeName": "n1", "source": {"persistentVolumeName": handle}},
            "status": {"attached": attached},
        });
        if let Some(mark) = mark {
            object["metadata"]["annotations"] = json!({annotations::DETACH_WANTED: time(mark).to_string()});
        }
        Held {
            attachment: Arc::new(serde_json::from_value(object).expect("an attachment")),
            volume: Some(attachment::status_name(DRIVER, handle)),
            wanted,
            since: mark.map_or(time("10:00"), time),
        }
    }

    #[test]
    fn a_volume_is_taken_back_when_it_is_safe_or_the_node_had_its_time() {
        let at = |text: &str| Release::Waiting(time(text));
        let out = [node::OUT_OF_SERVICE];
        let well = node("True", "00:00", &["v"], &[]);
        let ill = node("Unknown", "01:00", &["v"], &[]);
        let again = node("False", "12:00", &["v"], &[]);
        let off = node("False", "01:00", &["v"], &out);
        let tainted = node("True", "01:00", &["v"], &out);
        let idle = node("Unknown", "01:00", &["other"], &[]);
        for (known, since, now, expected) in [
            (Known::Present(&well), "10:00", "50:00", Release::Unmounting),
            (Known::Present(&ill), "10:00", "10:00", at("16:00")),
            (Known::Present(&ill), "10:00", "15:59", at("16:00")),
            (Known::Present(&ill), "10:00", "16:00", Release::TimedOut),
            // It was ready since nobody has wanted the volume: its time begins anew.
            (Known::Present(&again), "10:00", "17:00", at("18:00")),
            (Known::Present(&off), "10:00", "10:00", Release::OutOfService),
            (Known::Present(&tainted), "10:00", "10:00", Release::OutOfService),
            (Known::Present(&idle), "10:00", "10:00", Release::Safe),
            (Known::Gone(Some(&idle)), "10:00", "10:00", Release::Safe),
            (Known::Gone(Some(&well)), "10:00", "10:00", at("16:00")),
            (Known::Gone(Some(&off)), "10:00", "10:00", Release::OutOfService),
            (Known::Gone(None), "10:00", "10:00", at("16:00")),
            (Known::Gone(None), "10:00", "16:00", Release::TimedOut),
        ] {
            let object = held("v", false, true, None).attachment;
            for volume in [Some(attachment::status_name(DRIVER, "v")), None] {
                let in_use = is_in_use(known, &object, volume.as_deref());
                assert_eq!(
                    release(known, in_use, time(since), time(now)),
                    expected,
                    "{known:?} {since} {now}"
                );
            }
        }
    }

    #[test]
    fn a_node_is_told_what_it_has_and_no_more_what_is_taken_back() {
        let node = |reported: &[&str]| {
            let mut node = node("True", "00:00", &["mounted"], &[]);
            let reported = reported.iter().map(|name| match name.split_once('/') {
                Some(_) => (*name).to_owned(),
                None => attachment::status_name(DRIVER, name),
            });
            let list = reported.map(|name| AttachedVolume { name, device_path: String::new() });
            node.status.get_or_insert_default().volumes_attached = Some(list.collect());
            node
        };
        let all = [
            held("wanted", true, true, None),
            held("coming", true, false, None),
            held("mounted", false, true, None),
            held("idle", false, true, None),
        ];
        for (before, after) in [
            (vec![], Some(vec!["mounted", "wanted"])),
            (vec!["mounted", "wanted"], None),
            (vec!["wanted", "mounted", "idle"], Some(vec!["mounted", "wanted"])),
            (vec!["example.com/other", "idle"], Some(vec!["example.com/other", "mounted", "wanted"])),
            (vec!["example.com/other", "wanted", "mounted"], None),
        ] {
            let step = decide(Known::Present(&node(&before)), &all, time("10:00"));
            let reported = step.report.map(|list| {
                let short = |name: String| {
                    attachment::parse_status_name(&name).map(|(_, handle)| handle.to_owned()).unwrap_or(name)
                };
                list.into_iter().map(|volume| short(volume.name)).collect::<Vec<_>>()
            });
            assert_eq!(
                reported,
                after.map(|names| names.iter().map(|name| (*name).to_owned()).collect()),
                "{before:?}"
            );
            let back: Vec<_> =
                step.take_back.iter().filter_map(|one| attachment::volume(&one.attachment)).collect();
            assert_eq!(back, ["idle"]);
            assert!(step.marks.is_empty() && step.again.is_none());
        }
    }

    #[test]
    fn the_wait_for_a_node_is_written_down_once_and_taken_off_when_the_volume_is_wanted() {
        let node = node("Unknown", "00:00", &["v", "w", "x"], &[]);
        let all = [
            held("v", false, true, None),
            held("w", false, true, Some("08:00")),
            held("x", true, true, Some("08:00")),
        ];
        let step = decide(Known::Present(&node), &all, time("10:00"));
        let marks: Vec<_> =
            step.marks.iter().map(|(object, mark)| (attachment::volume(object), *mark)).collect();
        assert_eq!(marks, [(Some("v"), Some(time("10:00"))), (Some("x"), None)]);
        assert_eq!(step.again, Some(time("14:00")));
        assert!(step.take_back.is_empty());
        let late = decide(Known::Present(&node), &all, time("14:00"));
        let forced: Vec<_> =
            late.take_back.iter().map(|one| (attachment::volume(&one.attachment), one.forced)).collect();
        assert_eq!(forced, [(Some("w"), Some("the node did not answer for six minutes"))]);
    }

    #[test]
    fn what_others_made_is_left_alone() {
        let change = |change: fn(&mut Value)| {
            let mut one = held("v", false, true, None);
            let mut object = serde_json::to_value(&*one.attachment).expect("JSON");
            change(&mut object);
            one.attachment = Arc::new(serde_json::from_value(object).expect("an attachment"));
            one
        };
        let by_hand = change(|object| object["metadata"]["name"] = json!("by-hand"));
        let inline = change(|object| object["spec"]["source"] = json!({"inlineVolumeSpec": {}}));
        let going = change(|object| object["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"));
        let mut unmanaged = node("True", "00:00", &[], &[]);
        let managed = unmanaged.clone();
        unmanaged.metadata.annotations = None;
        for (node, one) in [
            (&managed, by_hand),
            (&managed, inline),
            (&managed, going),
            (&unmanaged, held("v", false, true, None)),
        ] {
            assert!(decide(Known::Present(node), &[one], time("10:00")).take_back.is_empty());
        }
    }
}
