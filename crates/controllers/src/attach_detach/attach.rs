//! Where a volume is to be attached, and what its pods are told: pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::storage::v1::VolumeAttachment;
use kube::ResourceExt;
use resources::attachment;

use super::detach::Release;

/// The pods of a node that use a volume.
#[derive(Clone, Debug, Default)]
pub struct Users {
    /// The pods, none of which has ended.
    pub pods: Vec<Arc<Pod>>,
    /// The node exists, and leaves attaching to this controller.
    pub attachable: bool,
}

/// An attachment of the volume.
#[derive(Clone, Debug)]
pub struct Standing {
    /// As last seen; none: it was just made.
    pub attachment: Option<Arc<VolumeAttachment>>,
    /// What keeps it, if no pod wants it.
    pub release: Option<Release>,
}

/// A volume, by node.
#[derive(Clone, Debug, Default)]
pub struct Volume {
    /// It may be attached to several nodes.
    pub shared: bool,
    /// The pods that want it.
    pub users: BTreeMap<String, Users>,
    /// Where it is attached, may be, or is about to be.
    pub attachments: BTreeMap<String, Standing>,
}

/// What pods on a node are to be told about a volume.
#[derive(Clone, Debug, PartialEq)]
pub enum News {
    /// It is attached.
    Attached,
    /// The attacher failed, and will try again.
    Failed {
        /// When.
        at: Option<Timestamp>,
        /// What it said.
        message: String,
    },
    /// It is elsewhere, and can be on one node only.
    Blocked(Blocked),
}

/// Why a volume can't come to a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Blocked {
    /// Namespace and name of the pods that use it on other nodes.
    pub pods: Vec<(String, String)>,
    /// The other node, and when the volume is taken from it by force.
    pub force: Option<(String, Timestamp)>,
}

impl News {
    /// Whether saying this after `other` would say nothing new. Who blocks may change; that it does was said.
    pub fn repeats(&self, other: &News) -> bool {
        match (self, other) {
            (News::Blocked(one), News::Blocked(other)) => {
                one.pods.is_empty() == other.pods.is_empty() && one.force == other.force
            }
            _ => self == other,
        }
    }

    /// The text of the event on a pod in `namespace`, in Kubernetes' words. Pods of other namespaces are not named.
    pub fn message(&self, volume: &str, namespace: &str, now: Timestamp) -> String {
        match self {
            News::Attached => format!("AttachVolume.Attach succeeded for volume \"{volume}\" "),
            News::Failed { message, .. } => {
                format!("AttachVolume.Attach failed for volume \"{volume}\" : {message}")
            }
            News::Blocked(blocked) => {
                format!("Multi-Attach error for volume \"{volume}\" {}", blocked.reason(namespace, now))
            }
        }
    }
}

impl Blocked {
    fn reason(&self, namespace: &str, now: Timestamp) -> String {
        let (here, elsewhere): (Vec<_>, Vec<_>) = self.pods.iter().partition(|(of, _)| of == namespace);
        let names: Vec<&str> = here.iter().map(|(_, name)| name.as_str()).collect();
        let others = format!("{} pod(s) in different namespaces", elsewhere.len());
        match (names.is_empty(), elsewhere.is_empty()) {
            (false, true) => format!("Volume is already used by pod(s) {}", names.join(", ")),
            (false, false) => format!("Volume is already used by pod(s) {} and {others}", names.join(", ")),
            (true, false) => format!("Volume is already used by {others}"),
            (true, true) => {
                let reason =
                    "Volume is already exclusively attached to one node and can't be attached to another";
                match &self.force {
                    None => reason.to_owned(),
                    Some((node, at)) => {
                        let left = at.duration_since(now).max(SignedDuration::ZERO).as_secs();
                        format!(
                            "{reason}: node {node} does not answer and has not said that it unmounted the volume; it is \
                             detached by force in {}m{:02}s (at {at:.0}), or as soon as the node is tainted with {}",
                            left / 60,
                            left % 60,
                            resources::node::OUT_OF_SERVICE,
                        )
                    }
                }
            }
        }
    }
}

/// What to do for a volume.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decision {
    /// Nodes to attach it to.
    pub attach: Vec<String>,
    /// What to tell the pods of each node, unless it was told before.
    pub news: BTreeMap<String, News>,
}

/// Decides where a volume is to be attached now. A volume that can be on one node only goes to the node of the pod
/// that came first, once it is nowhere else.
pub fn decide(volume: &Volume) -> Decision {
    let mut decision = Decision::default();
    let mut places: BTreeSet<&str> = volume.attachments.keys().map(String::as_str).collect();
    let mut nodes: Vec<_> = volume.users.iter().collect();
    nodes.sort_by_key(|(node, users)| (users.pods.iter().map(|pod| pod.creation_timestamp()).min(), *node));
    for (node, users) in nodes {
        if let Some(standing) = volume.attachments.get(node) {
            decision.news.extend(news(standing).map(|news| (node.clone(), news)));
        } else if !users.attachable {
            continue;
        } else if volume.shared || places.is_empty() {
            places.insert(node);
            decision.attach.push(node.clone());
        } else {
            decision.news.insert(node.clone(), News::Blocked(blocked(volume, node)));
        }
    }
    decision
}

fn news(standing: &Standing) -> Option<News> {
    let object = standing.attachment.as_ref()?;
    if object.metadata.deletion_timestamp.is_some() {
        return None;
    }
    if attachment::is_attached(object) {
        return Some(News::Attached);
    }
    let error = object.status.as_ref()?.attach_error.as_ref()?;
    Some(News::Failed {
        at: error.time.as_ref().map(|time| time.0),
        message: error.message.clone().unwrap_or_default(),
    })
}

fn blocked(volume: &Volume, node: &str) -> Blocked {
    let elsewhere = volume.attachments.keys().filter(|other| *other != node);
    let pods = elsewhere.filter_map(|other| volume.users.get(other)).flat_map(|users| &users.pods);
    let force = volume.attachments.iter().find_map(|(other, standing)| match standing.release {
        Some(Release::Waiting(until)) => Some((other.clone(), until)),
        _ => None,
    });
    let pods = pods.map(|pod| (pod.namespace().unwrap_or_default(), pod.name_any())).collect();
    Blocked { pods, force }
}

/// The node on which a pod needs its volumes; none if it has no node or has ended: its phase is final, or it is being
/// deleted and none of its containers runs.
pub(super) fn node_of(pod: &Pod) -> Option<&str> {
    let node = pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())?;
    let status = pod.status.as_ref();
    let is_final = matches!(status.and_then(|status| status.phase.as_deref()), Some("Succeeded" | "Failed"));
    let running = || {
        let containers = status.and_then(|status| status.container_statuses.as_deref()).unwrap_or_default();
        containers.iter().any(|container| {
            let state = container.state.as_ref();
            !state.is_some_and(|state| state.terminated.is_some() || state.waiting.is_some())
        })
    };
    let ended = is_final || (pod.metadata.deletion_timestamp.is_some() && !running());
    (!ended).then_some(node)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn object<K: serde::de::DeserializeOwned>(value: Value) -> Arc<K> {
        Arc::new(serde_json::from_value(value).expect("a test's object has Kubernetes' form"))
    }

    fn users(pods: &[(&str, &str)]) -> Users {
        let pod = |(namespace, name): &(&str, &str)| {
            object(json!({"metadata": {"namespace": namespace, "name": name}, "spec": {"containers": []}}))
        };
        Users { pods: pods.iter().map(pod).collect(), attachable: true }
    }

    fn standing(status: Value, release: Option<Release>) -> Standing {
        let attachment = json!({"metadata": {"name": "csi-1"}, "status": status,
            "spec": {"attacher": "d", "nodeName": "n", "source": {"persistentVolumeName": "pv"}}});
        Standing { attachment: Some(object(attachment)), release }
    }

    fn volume(shared: bool, users: Vec<(&str, Users)>, attachments: Vec<(&str, Standing)>) -> Volume {
        let owned = |node: &str| node.to_owned();
        Volume {
            shared,
            users: users.into_iter().map(|(node, users)| (owned(node), users)).collect(),
            attachments: attachments.into_iter().map(|(node, one)| (owned(node), one)).collect(),
        }
    }

    #[test]
    fn a_volume_for_one_node_is_attached_to_one_at_a_time() {
        let here = || ("n1", users(&[("a", "one")]));
        let there = || ("n2", users(&[("a", "two")]));
        let attached = || standing(json!({"attached": true}), None);
        let made = || Standing { attachment: None, release: None };
        let none = || Users { attachable: false, ..users(&[("a", "one")]) };
        for (volume, attach) in [
            (volume(false, vec![here()], vec![]), vec!["n1"]),
            (volume(false, vec![here(), there()], vec![]), vec!["n1"]),
            (volume(true, vec![here(), there()], vec![]), vec!["n1", "n2"]),
            (volume(false, vec![here()], vec![("n1", attached())]), vec![]),
            (volume(false, vec![here()], vec![("n1", made())]), vec![]),
            (volume(false, vec![here()], vec![("n2", attached())]), vec![]),
            (volume(false, vec![here()], vec![("n2", made())]), vec![]),
            (volume(true, vec![here()], vec![("n2", attached())]), vec!["n1"]),
            (volume(false, vec![("n1", none())], vec![]), vec![]),
            (volume(false, vec![("n1", none()), there()], vec![]), vec!["n2"]),
        ] {
            assert_eq!(decide(&volume).attach, attach, "{volume:?}");
        }
    }

    #[test]
    fn the_pod_that_came_first_gets_it() {
        let mut late = users(&[("a", "late")]);
        let mut early = users(&[("a", "early")]);
        let at = |users: &mut Users, time: &str| {
            let pod = Arc::make_mut(&mut users.pods[0]);
            pod.metadata.creation_timestamp = serde_json::from_value(json!(time)).expect("a time");
        };
        at(&mut late, "2026-01-01T00:00:09Z");
        at(&mut early, "2026-01-01T00:00:01Z");
        let decision = decide(&volume(false, vec![("n1", late), ("n2", early)], vec![]));
        assert_eq!(decision.attach, ["n2"]);
        assert!(matches!(decision.news["n1"], News::Blocked(_)));
    }

    #[test]
    fn pods_are_told_in_kubernetes_words_and_of_no_other_namespace() {
        let now = "2026-01-01T00:00:00Z".parse::<Timestamp>().expect("a time");
        let until = now + SignedDuration::from_secs(342);
        let exclusively =
            "Volume is already exclusively attached to one node and can't be attached to another";
        let forced = format!(
            "{exclusively}: node n1 does not answer and has not said that it unmounted the volume; it is detached by force \
             in 5m42s (at 2026-01-01T00:05:42Z), or as soon as the node is tainted with node.kubernetes.io/out-of-service"
        );
        for (pods, release, expected) in [
            (vec![], None, exclusively),
            (vec![], Some(Release::Unmounting), exclusively),
            (vec![], Some(Release::Waiting(until)), forced.as_str()),
            (vec![("a", "x"), ("a", "y")], None, "Volume is already used by pod(s) x, y"),
            (vec![("b", "x")], None, "Volume is already used by 1 pod(s) in different namespaces"),
            (
                vec![("a", "x"), ("b", "y"), ("c", "z")],
                None,
                "Volume is already used by pod(s) x and 2 pod(s) in different namespaces",
            ),
        ] {
            let mut wanted = vec![("n2", users(&[("a", "waiting")]))];
            if !pods.is_empty() {
                wanted.push(("n1", users(&pods)));
            }
            let attached = vec![("n1", standing(json!({"attached": true}), release))];
            let decision = decide(&volume(false, wanted, attached));
            let message = decision.news["n2"].message("pv", "a", now);
            assert_eq!(message, format!("Multi-Attach error for volume \"pv\" {expected}"));
        }
    }

    #[test]
    fn what_the_attacher_says_is_passed_on() {
        let told = |status: Value| {
            let decision = decide(&volume(
                false,
                vec![("n1", users(&[("a", "x")]))],
                vec![("n1", standing(status, None))],
            ));
            decision.news.get("n1").map(|news| news.message("pv", "a", Timestamp::UNIX_EPOCH))
        };
        assert_eq!(told(json!({"attached": false})), None);
        assert_eq!(
            told(json!({"attached": true})).as_deref(),
            Some("AttachVolume.Attach succeeded for volume \"pv\" ")
        );
        assert_eq!(
            told(json!({"attached": false, "attachError": {"message": "no room"}})).as_deref(),
            Some("AttachVolume.Attach failed for volume \"pv\" : no room")
        );
    }

    #[test]
    fn a_pod_needs_its_volumes_until_it_has_ended() {
        let deleted = "2026-01-01T00:00:00Z";
        let running = json!([{"name": "c", "state": {"running": {}}}]);
        let ended = json!([{"name": "c", "state": {"terminated": {"exitCode": 0}}}]);
        for (pod, node) in [
            (json!({"spec": {"containers": []}}), None),
            (json!({"spec": {"nodeName": "n1", "containers": []}}), Some("n1")),
            (json!({"spec": {"nodeName": "n1", "containers": []}, "status": {"phase": "Failed"}}), None),
            (
                json!({"spec": {"nodeName": "n1", "containers": []}, "metadata": {"deletionTimestamp": deleted}}),
                None,
            ),
            (
                json!({"spec": {"nodeName": "n1", "containers": []}, "metadata": {"deletionTimestamp": deleted},
                       "status": {"containerStatuses": running}}),
                Some("n1"),
            ),
            (
                json!({"spec": {"nodeName": "n1", "containers": []}, "metadata": {"deletionTimestamp": deleted},
                       "status": {"containerStatuses": ended}}),
                None,
            ),
        ] {
            let mut pod = pod;
            for status in pod["status"]["containerStatuses"].as_array_mut().into_iter().flatten() {
                let fields = json!({"image": "", "imageID": "", "ready": false, "restartCount": 0});
                status
                    .as_object_mut()
                    .expect("an object")
                    .extend(fields.as_object().expect("an object").clone());
            }
            assert_eq!(node_of(&object::<Pod>(pod.clone())), node, "{pod}");
        }
    }
}
