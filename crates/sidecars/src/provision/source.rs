//! What a claim's volume is filled with: from the claim's data source to the driver's id of it.

use csi::v1::VolumeContentSource;
use csi::v1::volume_content_source::{SnapshotSource, Type, VolumeSource};
use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim};
use kube::ResourceExt;
use resources::annotations::ALLOW_MODE_CHANGE;
use resources::labels::SNAPSHOT_MANAGED_BY;
use resources::snapshot::{self, VolumeSnapshot, VolumeSnapshotContent};
use resources::source::Source;
use resources::{claim, fit, volume};
use values::Quantity;

/// Content by the driver's id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Snapshot(String),
    Volume(String),
}

impl Content {
    /// As CSI says it.
    pub(super) fn to_csi(&self) -> VolumeContentSource {
        let kind = match self.clone() {
            Content::Snapshot(snapshot_id) => Type::Snapshot(SnapshotSource { snapshot_id }),
            Content::Volume(volume_id) => Type::Volume(VolumeSource { volume_id }),
        };
        VolumeContentSource { r#type: Some(kind) }
    }

    /// As the claim's annotation says it.
    pub(super) fn to_mark(&self) -> String {
        match self {
            Content::Snapshot(id) => format!("snapshot/{id}"),
            Content::Volume(id) => format!("volume/{id}"),
        }
    }

    /// Reads [`Content::to_mark`].
    pub(super) fn of_mark(mark: &str) -> Option<Content> {
        match mark.split_once('/')? {
            ("snapshot", id) => Some(Content::Snapshot(id.to_owned())),
            ("volume", id) => Some(Content::Volume(id.to_owned())),
            _ => None,
        }
    }
}

/// Why a claim can't be filled from its data source. Nothing of it passes without a change of the source or the claim,
/// which is waited for.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// It does not exist.
    #[error("the data source {0} does not exist; create it, or delete the claim")]
    Missing(String),
    /// It is being deleted.
    #[error("the data source {0} is being deleted; use another one")]
    Going(String),
    /// It is a snapshot that is still being taken.
    #[error("the data source {0} is not ready to use yet")]
    NotReady(String),
    /// Its two objects don't refer to each other.
    #[error("the data source {0} is not bound to a snapshot of its own; see its status")]
    Misbound(String),
    /// It is a claim without a volume.
    #[error("the data source {0} has no volume yet")]
    Unbound(String),
    /// It is another driver's.
    #[error(
        "the data source {source_name} is of driver {actual}, and the claim's class of {wanted}; use a class of {actual}"
    )]
    OtherDriver {
        /// The data source.
        source_name: String,
        /// Its driver.
        actual: String,
        /// The class's driver.
        wanted: String,
    },
    /// The claim asks for less than it holds.
    #[error(
        "requested volume size {asked} is less than the size {least} of the data source {source_name}; ask for at least that"
    )]
    TooSmall {
        /// The data source.
        source_name: String,
        /// What the claim asks for.
        asked: String,
        /// What it must ask for at least.
        least: String,
    },
    /// Block and Filesystem don't mix.
    #[error(
        "requested volume mode {asked} differs from the mode {actual} of the data source {source_name}; ask for that \
         mode, or, of a snapshot, set the annotation {ALLOW_MODE_CHANGE} of its content to \"true\""
    )]
    Mode {
        /// The data source.
        source_name: String,
        /// What the claim asks for.
        asked: String,
        /// What it is.
        actual: String,
    },
    /// It is in another namespace, which does not allow it.
    #[error(
        "accessing the data source {source_name} from namespace {namespace} isn't allowed; create a ReferenceGrant in \
         the namespace of the data source"
    )]
    NoGrant {
        /// The data source.
        source_name: String,
        /// The claim's namespace.
        namespace: String,
    },
    /// The driver lacks the capability.
    #[error("the driver {driver} can't make volumes from a {kind}")]
    Unable {
        /// The driver.
        driver: String,
        /// What from.
        kind: &'static str,
    },
    /// Claims that wait for each other.
    #[error(
        "the data sources go in a circle, {0}, so none of them can have a volume; delete one of the claims"
    )]
    Circle(String),
    /// Another node has it.
    #[error(
        "the data source {source_name} is on {place}, and the claim was given the node {node}; the pod has to go there"
    )]
    Elsewhere {
        /// The data source.
        source_name: String,
        /// Where it is.
        place: String,
        /// Where the claim was to go.
        node: String,
    },
}

/// Where a volume with a data source can be made.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Where {
    Anywhere,
    /// On this node only.
    Node(String),
    /// Where this volume can be used.
    With(Box<PersistentVolume>),
}

/// A snapshot's content, if the claim can be made from it.
pub(super) fn of_snapshot(
    of: &PersistentVolumeClaim,
    source: &Source,
    snapshot: Option<&VolumeSnapshot>,
    content: Option<&VolumeSnapshotContent>,
    driver: &str,
) -> Result<(Content, Where), SourceError> {
    let source_name = source.to_string();
    let snapshot = snapshot.ok_or_else(|| SourceError::Missing(source_name.clone()))?;
    if snapshot.metadata.deletion_timestamp.is_some() {
        return Err(SourceError::Going(source_name));
    }
    if !snapshot::is_ready(snapshot) {
        return Err(SourceError::NotReady(source_name));
    }
    let content = content
        .filter(|content| snapshot::is_bound_to(content, snapshot))
        .ok_or_else(|| SourceError::Misbound(source_name.clone()))?;
    check_driver(&source_name, &content.spec.driver, driver)?;
    let Some(handle) = snapshot::handle(content) else { return Err(SourceError::NotReady(source_name)) };
    let least = snapshot.status.as_ref().and_then(|status| status.restore_size.as_ref());
    let least = least.and_then(|size| size.0.parse::<Quantity>().ok());
    check_size(of, &source_name, least)?;
    let may_change = content.annotations().get(ALLOW_MODE_CHANGE).is_some_and(|value| value == "true");
    let mode = content.spec.source_volume_mode.as_deref().filter(|_| !may_change);
    check_mode(of, &source_name, mode)?;
    let node = content.labels().get(SNAPSHOT_MANAGED_BY).cloned();
    Ok((Content::Snapshot(handle.to_owned()), node.map_or(Where::Anywhere, Where::Node)))
}

/// A claim's volume, if the claim can be made from it.
pub(super) fn of_claim(
    of: &PersistentVolumeClaim,
    source: &Source,
    claim: Option<&PersistentVolumeClaim>,
    volume: Option<&PersistentVolume>,
    driver: &str,
) -> Result<(Content, Where), SourceError> {
    let source_name = source.to_string();
    let claim = claim.ok_or_else(|| SourceError::Missing(source_name.clone()))?;
    if claim.metadata.deletion_timestamp.is_some() {
        return Err(SourceError::Going(source_name));
    }
    let volume = volume
        .filter(|volume| claim::phase(claim) == "Bound" && volume::is_bound_to(volume, claim))
        .ok_or_else(|| SourceError::Unbound(source_name.clone()))?;
    let csi = volume.spec.as_ref().and_then(|spec| spec.csi.as_ref());
    let actual = csi.map_or("another storage system", |csi| csi.driver.as_str());
    check_driver(&source_name, actual, driver)?;
    let Some(csi) = csi else { return Err(SourceError::Unbound(source_name)) };
    check_size(of, &source_name, fit::capacity(volume))?;
    check_mode(of, &source_name, Some(volume::volume_mode(volume)))?;
    let place = Where::With(Box::new(volume.clone()));
    Ok((Content::Volume(csi.volume_handle.clone()), place))
}

fn check_driver(source_name: &str, actual: &str, wanted: &str) -> Result<(), SourceError> {
    if actual == wanted {
        return Ok(());
    }
    Err(SourceError::OtherDriver {
        source_name: source_name.to_owned(),
        actual: actual.to_owned(),
        wanted: wanted.to_owned(),
    })
}

fn check_size(
    of: &PersistentVolumeClaim,
    source_name: &str,
    least: Option<Quantity>,
) -> Result<(), SourceError> {
    match (fit::requested(of), least) {
        (Some(asked), Some(least)) if asked < least => Err(SourceError::TooSmall {
            source_name: source_name.to_owned(),
            asked: asked.to_string(),
            least: least.to_string(),
        }),
        _ => Ok(()),
    }
}

fn check_mode(
    of: &PersistentVolumeClaim,
    source_name: &str,
    actual: Option<&str>,
) -> Result<(), SourceError> {
    match actual {
        Some(actual) if actual != claim::volume_mode(of) => Err(SourceError::Mode {
            source_name: source_name.to_owned(),
            asked: claim::volume_mode(of).to_owned(),
            actual: actual.to_owned(),
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::PersistentVolume;
    use resources::source;
    use serde_json::{Value, json};

    use super::*;

    const DRIVER: &str = "orlop.dev";

    fn parse<K: serde::de::DeserializeOwned>(value: Value) -> K {
        serde_json::from_value(value).expect("an object")
    }

    fn claim_from(source: Value, size: &str, mode: &str) -> PersistentVolumeClaim {
        parse(json!({
            "metadata": {"name": "new", "namespace": "shop"},
            "spec": {"volumeMode": mode, "resources": {"requests": {"storage": size}}, "dataSourceRef": source},
        }))
    }

    fn restore(size: &str, mode: &str, edit: impl FnOnce(&mut Value, &mut Value)) -> Result<Where, String> {
        let source = json!({"apiGroup": "snapshot.storage.k8s.io", "kind": "VolumeSnapshot", "name": "s"});
        let of = claim_from(source, size, mode);
        let mut snapshot = json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshot",
            "metadata": {"name": "s", "namespace": "shop", "uid": "7"},
            "spec": {"source": {"persistentVolumeClaimName": "old"}},
            "status": {"readyToUse": true, "restoreSize": "1Gi"},
        });
        let mut content = json!({
            "apiVersion": "snapshot.storage.k8s.io/v1", "kind": "VolumeSnapshotContent",
            "metadata": {"name": "c", "labels": {"snapshot.storage.kubernetes.io/managed-by": "n1"}},
            "spec": {"driver": DRIVER, "deletionPolicy": "Delete", "source": {"volumeHandle": "id-old"},
                     "sourceVolumeMode": "Filesystem",
                     "volumeSnapshotRef": {"name": "s", "namespace": "shop", "uid": "7"}},
            "status": {"snapshotHandle": "id-s", "readyToUse": true},
        });
        edit(&mut snapshot, &mut content);
        let source = source::of(&of).expect("a source");
        let (snapshot, content) = (parse(snapshot), parse(content));
        let found = of_snapshot(&of, &source, Some(&snapshot), Some(&content), DRIVER);
        found.map_err(|error| error.to_string()).map(|(content, place)| {
            assert_eq!(content, Content::Snapshot("id-s".to_owned()));
            place
        })
    }

    #[test]
    fn a_restore_is_checked_before_the_driver_is_asked() {
        let fine = |_: &mut Value, _: &mut Value| {};
        assert_eq!(restore("1Gi", "Filesystem", fine), Ok(Where::Node("n1".to_owned())));
        assert_eq!(
            restore("2Gi", "Filesystem", |_, content| content["metadata"]["labels"] = json!({})),
            Ok(Where::Anywhere)
        );
        let refused = |size, mode, edit: fn(&mut Value, &mut Value)| {
            restore(size, mode, edit).expect_err("it is refused")
        };
        assert!(refused("512Mi", "Filesystem", |_, _| {}).contains("512Mi is less than the size 1Gi"));
        assert!(refused("1Gi", "Block", |_, _| {}).contains("volume mode Block differs"));
        assert!(
            restore("1Gi", "Block", |_, content| {
                content["metadata"]["annotations"] = json!({ALLOW_MODE_CHANGE: "true"});
            })
            .is_ok()
        );
        let refused = |edit| refused("1Gi", "Filesystem", edit);
        assert!(refused(|snapshot, _| snapshot["status"] = json!({})).contains("not ready"));
        assert!(
            refused(|snapshot, _| snapshot["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z"))
                .contains("being deleted")
        );
        assert!(
            refused(|_, content| content["spec"]["volumeSnapshotRef"]["uid"] = json!("8"))
                .contains("not bound")
        );
        assert!(
            refused(|_, content| content["spec"]["driver"] = json!("nfs.example.com"))
                .contains("nfs.example.com")
        );
    }

    #[test]
    fn a_clone_is_checked_before_the_driver_is_asked() {
        let old = |phase: &str| -> PersistentVolumeClaim {
            parse(json!({"metadata": {"name": "old", "namespace": "shop", "uid": "8"},
                         "spec": {"volumeName": "pv"}, "status": {"phase": phase}}))
        };
        let volume = |driver: &str, uid: &str| -> PersistentVolume {
            parse(json!({"metadata": {"name": "pv"}, "spec": {
                "capacity": {"storage": "1Gi"}, "csi": {"driver": driver, "volumeHandle": "id-old"},
                "claimRef": {"name": "old", "namespace": "shop", "uid": uid}}}))
        };
        let clone = |size: &str, mode: &str, phase: &str, driver: &str, uid: &str| {
            let of = claim_from(json!({"kind": "PersistentVolumeClaim", "name": "old"}), size, mode);
            let source = source::of(&of).expect("a source");
            of_claim(&of, &source, Some(&old(phase)), Some(&volume(driver, uid)), DRIVER)
                .map(|(content, _)| content)
        };
        let fine = clone("1Gi", "Filesystem", "Bound", DRIVER, "8");
        assert_eq!(fine, Ok(Content::Volume("id-old".to_owned())));
        for (size, mode, phase, driver, uid, why) in [
            ("1Mi", "Filesystem", "Bound", DRIVER, "8", "less than the size"),
            ("1Gi", "Block", "Bound", DRIVER, "8", "differs from the mode Filesystem"),
            ("1Gi", "Filesystem", "Pending", DRIVER, "8", "no volume yet"),
            ("1Gi", "Filesystem", "Bound", DRIVER, "9", "no volume yet"),
            ("1Gi", "Filesystem", "Bound", "nfs.example.com", "8", "use a class of nfs.example.com"),
        ] {
            let error = clone(size, mode, phase, driver, uid).expect_err("it is refused").to_string();
            assert!(error.contains(why), "{error}");
        }
    }

    #[test]
    fn marks_are_read_back() {
        for content in [Content::Snapshot("a/b".to_owned()), Content::Volume("c".to_owned())] {
            assert_eq!(Content::of_mark(&content.to_mark()), Some(content));
        }
        assert_eq!(Content::of_mark("else/x"), None);
    }
}
