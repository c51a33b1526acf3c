//! Which pods of this node use which CSI volume: a volume is staged for the first and unstaged after the last.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    io,
    sync::Arc,
};

use parking_lot::Mutex;
use resources::attachment;
use serde::{Deserialize, Serialize};

use super::places::Places;
use crate::{
    in_use::Users,
    layout::Layout,
    records::{self, Record, RecordError},
};

/// The key of our part of the two records.
const OWN: &str = "orlop.dev";

/// `vol_data.json` beside a CSI volume's target path: kubelet's keys, and what we need beyond them. It is durable
/// before the driver is called, so whatever a driver has done can be undone.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(crate) struct PublishRecord {
    #[serde(rename = "specVolID")]
    pub(crate) spec_volume: String,
    #[serde(rename = "volumeHandle")]
    pub(crate) handle: String,
    #[serde(rename = "driverName")]
    pub(crate) driver: String,
    #[serde(rename = "nodeName")]
    pub(crate) node: String,
    #[serde(rename = "attachmentID")]
    pub(crate) attachment: String,
    #[serde(rename = "volumeLifecycleMode")]
    pub(crate) mode: String,
    /// kubelet's own records lack it: such a volume is published anew.
    #[serde(rename = "orlop.dev", default)]
    pub(crate) own: PublishState,
}

impl Record for PublishRecord {
    const PART: Option<&'static str> = Some(OWN);
}

/// What kubelet's record lacks.
#[derive(Clone, Debug, Default, Serialize, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase")]
pub(crate) struct PublishState {
    /// Mounts are void after another boot.
    pub(crate) boot_id: String,
    /// The pod's names for the volume.
    pub(crate) volumes: BTreeSet<String>,
    /// The driver stages volumes.
    pub(crate) staged: bool,
    /// The volume had to be attached to the node.
    #[serde(default)]
    pub(crate) attached: bool,
    /// Published, and the files given to the pod's group.
    pub(crate) ready: bool,
    /// The target was a mount then.
    pub(crate) mounted: bool,
}

/// `vol_data.json` beside a staging path.
#[derive(Clone, Debug, Serialize, Deserialize, PartialEq)]
pub(crate) struct StageRecord {
    #[serde(rename = "volumeHandle")]
    pub(crate) handle: String,
    #[serde(rename = "driverName")]
    pub(crate) driver: String,
    /// What kubelet's record lacks: version and sum.
    #[serde(rename = "orlop.dev", default)]
    pub(crate) own: BTreeMap<String, serde_json::Value>,
}

impl Record for StageRecord {
    const PART: Option<&'static str> = Some(OWN);
}

/// One volume on this node. Whoever holds it is the only one to call the driver's stage methods for it.
#[derive(Debug, Default)]
pub(crate) struct Stage {
    /// UIDs of the pods that have a record of it.
    pub(crate) users: BTreeSet<String>,
    /// Staged by this process. After a restart it is staged once more, which drivers must allow.
    pub(crate) staged: bool,
}

/// Driver and handle.
type Volume = (String, String);

/// All volumes of this node.
#[derive(Debug, Default)]
pub(crate) struct Stages {
    volumes: Mutex<HashMap<Volume, Arc<tokio::sync::Mutex<Stage>>>>,
    /// UID and volume name of the pods whose record can't be read: they may use the volume of that name.
    unread: Mutex<BTreeSet<(String, String)>>,
}

impl Stages {
    /// Reads the records of all pods. Blocks.
    pub(crate) fn load(layout: &Layout) -> io::Result<Stages> {
        let mut volumes: HashMap<Volume, Stage> = HashMap::new();
        let mut unread = BTreeSet::new();
        for Found { uid, name, record, .. } in records(layout)? {
            match record {
                Ok(record) => {
                    volumes.entry((record.driver, record.handle)).or_default().users.insert(uid);
                }
                Err(error) => {
                    tracing::warn!(uid, volume = name, %error, "volume record is not readable");
                    unread.insert((uid, name));
                }
            }
        }
        let volumes =
            volumes.into_iter().map(|(key, stage)| (key, Arc::new(tokio::sync::Mutex::new(stage)))).collect();
        Ok(Stages { volumes: Mutex::new(volumes), unread: Mutex::new(unread) })
    }

    /// UID and volume name of the pods whose records could not be read.
    pub(crate) fn unread(&self) -> Vec<(String, String)> {
        self.unread.lock().iter().cloned().collect()
    }

    /// Whether another pod may use the volume of this name, which its record does not tell.
    pub(crate) fn may_be_used_beside(&self, uid: &str, name: &str) -> bool {
        self.unread.lock().iter().any(|(other, volume)| other != uid && volume == name)
    }

    /// The pod's record was written anew, or is gone.
    pub(crate) fn made_up_for(&self, uid: &str, name: &str) {
        self.unread.lock().remove(&(uid.to_owned(), name.to_owned()));
    }

    /// The volume's entry.
    pub(crate) fn of(&self, driver: &str, handle: &str) -> Arc<tokio::sync::Mutex<Stage>> {
        self.volumes.lock().entry((driver.to_owned(), handle.to_owned())).or_default().clone()
    }

    /// Forgets volumes that nobody uses.
    pub(crate) fn prune(&self) {
        self.volumes.lock().retain(|_, stage| {
            Arc::strong_count(stage) > 1 || stage.try_lock().map_or(true, |stage| !stage.users.is_empty())
        });
    }
}

/// The record of a pod's CSI volume.
pub(crate) fn publish_record(
    places: Places<'_>,
    uid: &str,
    name: &str,
) -> Result<Option<PublishRecord>, RecordError> {
    records::read(&places.record(uid, name))
}

/// Whether a CSI volume of a pod is completely set up, and still is.
pub(crate) fn is_ready(record: &PublishRecord, boot_id: &str, target_mounted: bool) -> bool {
    record.own.ready && record.own.boot_id == boot_id && (target_mounted || !record.own.mounted)
}

/// The attached volumes that pods have a record of, by their names in the Node's status. Blocks.
pub(crate) fn attached(layout: &Layout) -> io::Result<Users> {
    let mut users = Users::new();
    for Found { uid, name, record, .. } in records(layout)? {
        // One that can't be read was told of when the stages were.
        if let Some(record) = record.ok().filter(|record| record.own.attached) {
            let volume = attachment::status_name(&record.driver, &record.handle);
            users.entry(volume).or_default().insert((uid, name));
        }
    }
    Ok(users)
}

/// A record that a pod's directory has.
pub(crate) struct Found {
    pub(crate) uid: String,
    /// The PersistentVolume's name.
    pub(crate) name: String,
    pub(crate) block: bool,
    pub(crate) record: Result<PublishRecord, RecordError>,
}

/// The record of every CSI volume that a pod of this node has. Blocks.
pub(crate) fn records(layout: &Layout) -> io::Result<Vec<Found>> {
    let mut records = Vec::new();
    for uid in names(&layout.pods())? {
        for (block, directory) in [
            (false, layout.volumes(&uid).join(crate::layout::CSI)),
            (true, layout.plugin(&uid, crate::layout::CSI)),
        ] {
            for name in names(&directory)? {
                let record = publish_record(Places { layout, block }, &uid, &name).transpose();
                records.extend(record.map(|record| Found { uid: uid.clone(), name, block, record }));
            }
        }
    }
    Ok(records)
}

fn names(directory: &std::path::Path) -> io::Result<Vec<String>> {
    match std::fs::read_dir(directory) {
        Ok(entries) => {
            Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
        }
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_publication_is_void_after_a_boot_and_without_its_mount() {
        let record = |ready, mounted| PublishRecord {
            spec_volume: "pv".into(),
            handle: "h".into(),
            driver: "d".into(),
            node: "n".into(),
            attachment: "a".into(),
            mode: "Persistent".into(),
            own: PublishState { boot_id: "now".into(), ready, mounted, ..PublishState::default() },
        };
        for (ready, was_mounted, boot, is_mounted, expected) in [
            (true, true, "now", true, true),
            (true, true, "now", false, false),
            (true, false, "now", false, true),
            (true, true, "later", true, false),
            (false, true, "now", true, false),
        ] {
            let ready = is_ready(&record(ready, was_mounted), boot, is_mounted);
            assert_eq!(ready, expected, "{was_mounted} {boot} {is_mounted}");
        }
    }

    #[test]
    fn records_of_kubelet_are_read_and_newer_ones_refused() {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::new(dir.path());
        let file = layout.volume("u", crate::layout::CSI, "pv").join("vol_data.json");
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        let kubelet = r#"{"specVolID":"pv","volumeHandle":"h","driverName":"d","nodeName":"n",
            "attachmentID":"csi-1","volumeLifecycleMode":"Persistent"}"#;
        std::fs::write(&file, kubelet).unwrap();
        let record = publish_record(Places { layout: &layout, block: false }, "u", "pv").unwrap().unwrap();
        assert!(!is_ready(&record, "now", true), "it is published anew");
        let users = Stages::load(&layout).unwrap().of("d", "h");
        assert_eq!(users.try_lock().unwrap().users, BTreeSet::from(["u".to_owned()]));

        let own = String::from_utf8(records::render(&record).unwrap()).unwrap();
        std::fs::write(&file, own.replace(r#""format":1"#, r#""format":2"#)).unwrap();
        assert!(
            publish_record(Places { layout: &layout, block: false }, "u", "pv")
                .unwrap_err()
                .to_string()
                .contains("newer")
        );
    }
}
