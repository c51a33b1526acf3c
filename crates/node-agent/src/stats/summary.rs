//! The answer to `/stats/summary`: the part of kubelet's `Summary` that concerns file systems and volumes.

use std::collections::BTreeMap;

use jiff::Timestamp;
use kube::ResourceExt;
use linux::Space as FileSystem;
use serde_json::{Map, Value, json};

use super::{
    mounted::Mounted,
    space::{Counted, Space},
};

/// Renders it. Volumes that were never counted are named without figures.
pub(super) fn render<'a>(
    node: &str,
    started: Timestamp,
    now: Timestamp,
    file_system: &FileSystem,
    volumes: impl Iterator<Item = (&'a Mounted, Option<&'a Counted>)>,
) -> Value {
    let mut pods = BTreeMap::<String, (&Mounted, Vec<Value>)>::new();
    for (mounted, counted) in volumes {
        let uid = mounted.pod.uid().unwrap_or_default();
        pods.entry(uid).or_insert((mounted, Vec::new())).1.push(volume(mounted, counted));
    }
    let pods: Vec<Value> = pods
        .into_iter()
        .map(|(uid, (Mounted { pod, .. }, volumes))| {
            let start = pod.status.as_ref().and_then(|status| status.start_time.as_ref());
            json!({
                "podRef": {"name": pod.name_any(), "namespace": pod.namespace().unwrap_or_default(), "uid": uid},
                "startTime": start.map_or(started, |start| start.0),
                "containers": [],
                "volume": volumes,
            })
        })
        .collect();
    let mut fs = figures(&Space::of(file_system));
    fs.insert("time".into(), json!(now));
    json!({"node": {"nodeName": node, "startTime": started, "fs": fs}, "pods": pods})
}

fn volume(mounted: &Mounted, counted: Option<&Counted>) -> Value {
    let mut told = counted.map(|counted| figures(&counted.space)).unwrap_or_default();
    told.insert("name".into(), json!(mounted.volume));
    if let Some(claim) = &mounted.claim {
        let namespace = mounted.pod.namespace().unwrap_or_default();
        told.insert("pvcRef".into(), json!({"name": claim, "namespace": namespace}));
    }
    if let Some(counted) = counted {
        told.insert("time".into(), json!(counted.at));
        if counted.has_condition {
            told.insert("volumeHealthStats".into(), json!({"abnormal": counted.abnormal.is_some()}));
        }
    }
    told.into()
}

fn figures(space: &Space) -> Map<String, Value> {
    let all = [
        ("availableBytes", space.available),
        ("capacityBytes", space.capacity),
        ("usedBytes", space.used),
        ("inodes", space.inodes),
        ("inodesFree", space.inodes_free),
        ("inodesUsed", space.inodes_used),
    ];
    all.into_iter().filter_map(|(name, value)| Some((name.to_owned(), json!(value?)))).collect()
}
