//! Parameters of a storage class, and of a class of volume attributes.

use super::{LARGEST_MAP, Refusal};
use drives::{BackendKind, DriveSelector, Throttle};
use std::collections::BTreeMap;
use values::{LabelSelector, Quantity};

const FIELD: &str = "parameters";
const BACKEND: &str = "orlop.dev/backend";
const SELECTOR: &str = "orlop.dev/drive-selector";
const TIER: &str = drives::ACCESS_TIER;
const SPREAD: &str = "orlop.dev/spread";
const OVERCOMMIT: &str = "orlop.dev/overcommit";

/// DirectPV's parameters begin with this: its tier, its group, and for all else the label that a drive must have.
const DIRECTPV: &str = "directpv.min.io/";

/// Labels and annotations of the claim that the class refers to, as our provisioner passes them.
const CLAIM_LABELS: &str = "csi.storage.k8s.io/pvc/labels/";
const CLAIM_ANNOTATIONS: &str = "csi.storage.k8s.io/pvc/annotations/";
const CLAIM_NAMESPACE: &str = "csi.storage.k8s.io/pvc/namespace";

/// Facts about the claim that provisioners add to what the class says. They change nothing, and are noted on the drive.
const METADATA: [&str; 3] =
    ["csi.storage.k8s.io/pvc/name", "csi.storage.k8s.io/pvc/namespace", "csi.storage.k8s.io/pv/name"];

/// What a class's parameters ask for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Parameters {
    pub(crate) backend: Option<BackendKind>,
    pub(crate) drives: DriveSelector,
    /// The group of volumes that lie on different drives.
    pub(crate) spread: Option<String>,
    /// How many times what it has a drive may promise.
    pub(crate) overcommit: Option<String>,
}

/// Checks parameters, of which each must be known: a misspelt one would otherwise be a wish that nobody hears.
pub(super) fn check(parameters: &BTreeMap<String, String>) -> Result<Parameters, Refusal> {
    limit(FIELD, parameters)?;
    let mut checked = Parameters::default();
    let mut labels = Vec::new();
    let wrong = |key: &str, why: String| Refusal::Invalid { field: FIELD, why: format!("{key}: {why}") };
    for (key, value) in parameters {
        match (key.as_str(), key.strip_prefix(DIRECTPV)) {
            (BACKEND, _) => {
                let kind =
                    value.parse().map_err(|unknown: drives::UnknownBackend| wrong(key, unknown.to_string()));
                checked.backend = Some(kind?);
            }
            (OVERCOMMIT, _) => match value.parse::<f64>() {
                Ok(times) if (1.0..=100.0).contains(&times) => checked.overcommit = Some(value.clone()),
                _ => return Err(wrong(key, format!("{value:?} is no number from 1 to 100, such as 1.5"))),
            },
            (SELECTOR, _) => labels.push(value.clone()),
            (TIER, _) | (_, Some("access-tier")) => checked.drives.tier = Some(value.clone()),
            (SPREAD, _) if value.is_empty() => {
                return Err(wrong(
                    key,
                    "it names no label, annotation or group; name one, or leave it out".to_owned(),
                ));
            }
            (SPREAD, _) => checked.spread = Some(group(value, parameters)),
            (_, Some("volume-claim-id")) => checked.spread = Some(value.clone()),
            (_, Some(_)) => labels.push(format!("{key}={value}")),
            // Provisioners pass it on from classes of long ago, and say the same in the volume's capability.
            (key, None) if key.eq_ignore_ascii_case("fstype") => {}
            (key, None) if METADATA.contains(&key) || is_of_claim(key) => {}
            (key, None) => {
                return Err(Refusal::Invalid {
                    field: FIELD,
                    why: format!(
                        "{key:?} is unknown; remove it (this driver knows {BACKEND}, {SELECTOR}, {TIER}, \
                         {SPREAD} and {OVERCOMMIT})"
                    ),
                });
            }
        }
    }
    checked.drives.labels =
        LabelSelector::parse(&labels.join(",")).map_err(|error| wrong(SELECTOR, error.to_string()))?;
    Ok(checked)
}

fn limit(field: &'static str, map: &BTreeMap<String, String>) -> Result<(), Refusal> {
    match map.iter().map(|(key, value)| key.len() + value.len()).sum() {
        length if length > LARGEST_MAP => Err(Refusal::TooLong { field, length, limit: LARGEST_MAP }),
        _ => Ok(()),
    }
}

fn is_of_claim(key: &str) -> bool {
    key.starts_with(CLAIM_LABELS) || key.starts_with(CLAIM_ANNOTATIONS)
}

/// The group that a claim's volume belongs to. Those of one namespace with the same label or annotation are one group;
/// where the claim has neither, or nobody says what it has, the key itself is the group's name.
fn group(key: &str, parameters: &BTreeMap<String, String>) -> String {
    let of_claim = |prefix: &str| parameters.get(&format!("{prefix}{key}"));
    let value = of_claim(CLAIM_LABELS).or_else(|| of_claim(CLAIM_ANNOTATIONS));
    match (parameters.get(CLAIM_NAMESPACE), value) {
        (Some(namespace), Some(value)) => format!("{namespace}/{key}={value}"),
        (Some(namespace), None) => format!("{namespace}/{key}"),
        (None, Some(value)) => format!("{key}={value}"),
        (None, None) => key.to_owned(),
    }
}

/// What of the parameters is noted with the volume: which claim it was made for.
pub(super) fn notes(mut parameters: BTreeMap<String, String>) -> BTreeMap<String, String> {
    parameters.retain(|key, _| METADATA.contains(&key.as_str()));
    parameters
}

/// Facts about a snapshot that snapshotters add to what the class says. They change nothing.
const SNAPSHOT_METADATA: [&str; 3] = [
    "csi.storage.k8s.io/volumesnapshot/name",
    "csi.storage.k8s.io/volumesnapshot/namespace",
    "csi.storage.k8s.io/volumesnapshotcontent/name",
];

/// Snapshots have no parameters.
pub(super) fn of_snapshot(parameters: &BTreeMap<String, String>) -> Result<(), Refusal> {
    none_but(&SNAPSHOT_METADATA, parameters)
}

fn none_but(known: &[&str], parameters: &BTreeMap<String, String>) -> Result<(), Refusal> {
    match parameters.keys().find(|key| !known.contains(&key.as_str())) {
        None => Ok(()),
        Some(key) => Err(Refusal::Invalid {
            field: FIELD,
            why: format!("{key:?} is unknown; remove it (snapshots of this driver have no parameters)"),
        }),
    }
}

/// Facts about a group snapshot that snapshotters add to what the class says. They change nothing.
const GROUP_METADATA: [&str; 3] = [
    "csi.storage.k8s.io/volumegroupsnapshot/name",
    "csi.storage.k8s.io/volumegroupsnapshot/namespace",
    "csi.storage.k8s.io/volumegroupsnapshotcontent/name",
];

/// Group snapshots have no parameters.
pub(super) fn of_group(parameters: &BTreeMap<String, String>) -> Result<(), Refusal> {
    none_but(&GROUP_METADATA, parameters)
}

const READ_BPS: &str = "orlop.dev/read-bps";
const WRITE_BPS: &str = "orlop.dev/write-bps";
const READ_IOPS: &str = "orlop.dev/read-iops";
const WRITE_IOPS: &str = "orlop.dev/write-iops";

/// What can be changed while a volume is in use: how fast it may be. What is not mentioned has no limit.
pub(super) fn mutable(parameters: &BTreeMap<String, String>) -> Result<Throttle, Refusal> {
    const FIELD: &str = "mutable_parameters";
    limit(FIELD, parameters)?;
    let mut throttle = Throttle::default();
    for (key, value) in parameters {
        let limit = match key.as_str() {
            READ_BPS => &mut throttle.read_bps,
            WRITE_BPS => &mut throttle.write_bps,
            READ_IOPS => &mut throttle.read_iops,
            WRITE_IOPS => &mut throttle.write_iops,
            key => {
                return Err(Refusal::Invalid {
                    field: FIELD,
                    why: format!(
                        "{key:?} is unknown; remove it (this driver knows {READ_BPS}, {WRITE_BPS}, {READ_IOPS} and \
                         {WRITE_IOPS})"
                    ),
                });
            }
        };
        let number = value.parse::<Quantity>().ok().and_then(|quantity| quantity.ceil_bytes());
        *limit = Some(number.filter(|number| *number > 0).ok_or_else(|| Refusal::Invalid {
            field: FIELD,
            why: format!(
                "{key}: {value:?} is no number above 0; write for example 10Mi, or leave it out for no limit"
            ),
        })?);
    }
    Ok(throttle)
}
