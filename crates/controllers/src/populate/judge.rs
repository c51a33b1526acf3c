//! Whether a claim can ever be filled: pure.

use std::sync::Arc;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use kube::ResourceExt;
use resources::claim;
use resources::populator::GroupKind;
use resources::source::{self, SourceKind};

/// How many claims a chain of sources is followed through.
const LONGEST: usize = 64;

/// What there is to say about a claim's data source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Nothing: it may be filled.
    Good,
    /// No populator registered objects of this kind.
    Unrecognized(GroupKind),
    /// These claims are to be filled from each other; none of them has a volume yet.
    Circular(Vec<String>),
}

impl Verdict {
    /// The other claims that it is about, by namespace and name.
    pub fn others(&self) -> impl Iterator<Item = (&str, &str)> {
        let claims = match self {
            Verdict::Circular(claims) => claims.as_slice(),
            _ => &[],
        };
        claims.iter().skip(1).filter_map(|claim| claim.split_once('/'))
    }

    /// The reason and the message of the warning.
    pub fn event(&self) -> Option<(&'static str, String)> {
        match self {
            Verdict::Good => None,
            Verdict::Unrecognized(GroupKind { group, kind }) => Some((
                "UnrecognizedDataSourceKind",
                format!(
                    "The datasource for this PVC does not match any registered VolumePopulator: install the populator of \
                     {kind} ({group}), or make the claim again with another source"
                ),
            )),
            Verdict::Circular(claims) => Some((
                "CircularDataSource",
                format!(
                    "these claims wait to be filled from each other, so that none ever will be: {}; delete one of them",
                    claims.join(" -> ")
                ),
            )),
        }
    }
}

/// Judges a claim's data source, given which kinds are registered, and claims by namespace and name.
pub fn judge(
    of: &PersistentVolumeClaim,
    is_registered: &dyn Fn(&GroupKind) -> bool,
    find: &dyn Fn(&str, &str) -> Option<Arc<PersistentVolumeClaim>>,
) -> Verdict {
    let waits = |one: &PersistentVolumeClaim| {
        claim::volume_name(one).is_empty() && one.metadata.deletion_timestamp.is_none()
    };
    let Some(source) = source::of(of).filter(|_| waits(of)) else { return Verdict::Good };
    match source.kind {
        SourceKind::Snapshot => Verdict::Good,
        SourceKind::Other { group, kind } => {
            let kind = GroupKind { group, kind };
            if is_registered(&kind) { Verdict::Good } else { Verdict::Unrecognized(kind) }
        }
        SourceKind::Claim => {
            let start = (of.namespace().unwrap_or_default(), of.name_any());
            let mut chain = vec![start.clone()];
            let mut next = (source.namespace, source.name);
            while chain.len() < LONGEST {
                if next == start {
                    chain.push(next);
                    return Verdict::Circular(
                        chain.iter().map(|(space, name)| format!("{space}/{name}")).collect(),
                    );
                }
                let Some(claim) = find(&next.0, &next.1).filter(|claim| waits(claim)) else { break };
                chain.push(next);
                match source::of(&claim) {
                    Some(source) if source.kind == SourceKind::Claim => {
                        next = (source.namespace, source.name)
                    }
                    _ => break,
                }
            }
            Verdict::Good
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claim(name: &str, group: &str, kind: &str, source: &str, volume: &str) -> Arc<PersistentVolumeClaim> {
        let reference = json!({"apiGroup": group, "kind": kind, "name": source});
        Arc::new(
            serde_json::from_value(json!({"metadata": {"name": name, "namespace": "n"},
                "spec": {"dataSourceRef": reference, "volumeName": volume}}))
            .unwrap(),
        )
    }

    #[test]
    fn a_source_needs_a_populator_or_a_claim_that_can_be_filled_itself() {
        let clone = |name, source| claim(name, "", "PersistentVolumeClaim", source, "");
        let all = [
            clone("a", "b"),
            clone("b", "c"),
            clone("c", "a"),
            clone("self", "self"),
            clone("tail", "a"),
            clone("fine", "filled"),
            claim("filled", "", "PersistentVolumeClaim", "fine", "pv"),
            clone("lost", "nowhere"),
            claim("known", "g", "Backup", "x", ""),
            claim("unknown", "g", "Tape", "x", ""),
            claim("unknown-but-filled", "g", "Tape", "x", "pv"),
            claim("snapshot", "snapshot.storage.k8s.io", "VolumeSnapshot", "x", ""),
        ];
        let find = |_: &str, name: &str| all.iter().find(|claim| claim.name_any() == name).cloned();
        let registered = GroupKind { group: "g".to_owned(), kind: "Backup".to_owned() };
        let circle =
            |names: &[&str]| Verdict::Circular(names.iter().map(|name| format!("n/{name}")).collect());
        let tape = GroupKind { group: "g".to_owned(), kind: "Tape".to_owned() };
        for claim in &all {
            let expected = match claim.name_any().as_str() {
                "a" => circle(&["a", "b", "c", "a"]),
                "b" => circle(&["b", "c", "a", "b"]),
                "c" => circle(&["c", "a", "b", "c"]),
                "self" => circle(&["self", "self"]),
                "unknown" => Verdict::Unrecognized(tape.clone()),
                _ => Verdict::Good,
            };
            assert_eq!(judge(claim, &|kind| *kind == registered, &find), expected, "{}", claim.name_any());
        }
    }
}
