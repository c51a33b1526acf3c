//! The form of a decision: writes to make in order, events to record once they are made, and what to look at next.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, PersistentVolume, PersistentVolumeClaim};
use k8s_openapi::api::storage::v1::StorageClass;
use kube::ResourceExt;

use super::plugins::Plugin;
use super::world::{ClaimKey, Key};

/// One write. It carries the object as it shall be, with the resourceVersion of the one that was decided upon.
#[derive(Clone, Debug)]
pub enum Write {
    /// A volume's metadata and spec.
    Volume(Box<PersistentVolume>),
    /// A volume's status.
    VolumeStatus(Box<PersistentVolume>),
    /// A new volume.
    CreateVolume(Box<PersistentVolume>),
    /// The end of a volume object.
    DeleteVolume(Box<PersistentVolume>),
    /// A claim's metadata and spec.
    Claim(Box<PersistentVolumeClaim>),
    /// A claim's status.
    ClaimStatus(Box<PersistentVolumeClaim>),
}

/// An event to record on an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Notice {
    /// What it is about.
    pub about: ObjectReference,
    /// Whether something went wrong.
    pub warning: bool,
    /// One word for machines.
    pub reason: &'static str,
    /// A sentence for people.
    pub message: String,
}

/// Work that takes its time, done apart from decisions, one at a time per object.
#[derive(Clone)]
pub enum Operation {
    /// Makes a volume for a claim with an in-tree plugin.
    Provision(Arc<dyn Plugin>, Box<PersistentVolumeClaim>, Arc<StorageClass>),
    /// Deletes a released volume with an in-tree plugin.
    Delete(Arc<dyn Plugin>, Box<PersistentVolume>),
    /// Empties a released volume with an in-tree plugin.
    Recycle(Arc<dyn Plugin>, Box<PersistentVolume>),
}

impl Operation {
    /// At most one operation of a key runs at a time.
    pub fn key(&self) -> Key {
        match self {
            Self::Provision(_, claim, _) => Key::Claim(ClaimKey::of(claim)),
            Self::Delete(_, volume) | Self::Recycle(_, volume) => Key::Volume(volume.name_any()),
        }
    }
}

/// What one look at an object led to.
#[derive(Clone, Default)]
pub struct Step {
    /// Writes, in order; the first that fails ends the step, and the object is looked at again.
    pub writes: Vec<Write>,
    /// Events, recorded after the writes.
    pub notices: Vec<Notice>,
    /// Objects to look at next.
    pub next: Vec<Key>,
    /// Work to start after the writes.
    pub operation: Option<Operation>,
    /// Why the step could not be decided: the world contradicts itself.
    pub refused: Option<String>,
}

impl Step {
    pub(super) fn normal(
        &mut self,
        about: ObjectReference,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.notices.push(Notice { about, warning: false, reason, message: message.into() });
    }

    pub(super) fn warning(
        &mut self,
        about: ObjectReference,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        self.notices.push(Notice { about, warning: true, reason, message: message.into() });
    }

    /// The volumes that the step writes to.
    pub fn volumes(&self) -> Vec<String> {
        let names = self.writes.iter().filter_map(|write| match write {
            Write::Volume(volume) | Write::VolumeStatus(volume) | Write::DeleteVolume(volume) => {
                Some(volume.name_any())
            }
            Write::CreateVolume(_) | Write::Claim(_) | Write::ClaimStatus(_) => None,
        });
        let mut names: Vec<_> = names.collect();
        names.dedup();
        names
    }

    /// Writes a volume's phase with its reason, if it isn't so already. True: it changed.
    pub(super) fn volume_phase(&mut self, volume: &mut PersistentVolume, phase: &str, message: &str) -> bool {
        if resources::volume::phase(volume) == phase {
            return false;
        }
        let status = volume.status.get_or_insert_default();
        status.phase = Some(phase.to_owned());
        status.message = Some(message.to_owned()).filter(|text| !text.is_empty());
        self.writes.push(Write::VolumeStatus(Box::new(volume.clone())));
        true
    }

    /// Writes a claim's phase and what it got, if it isn't so already. True: the phase changed.
    pub(super) fn claim_phase(
        &mut self,
        claim: &mut PersistentVolumeClaim,
        phase: &str,
        volume: Option<&PersistentVolume>,
    ) -> bool {
        let was = resources::claim::phase(claim).to_owned();
        let before = claim.status.clone().unwrap_or_default();
        let status = claim.status.get_or_insert_default();
        status.phase = Some(phase.to_owned());
        match volume.and_then(|volume| volume.spec.as_ref().map(|spec| (volume, spec))) {
            None => {
                status.access_modes = None;
                status.capacity = None;
                status.current_volume_attributes_class_name = None;
            }
            Some((volume, spec)) => {
                status.access_modes.clone_from(&spec.access_modes);
                if was != phase {
                    let before_resize = volume.annotations().get(resources::annotations::PRE_RESIZE_CAPACITY);
                    let size = before_resize
                        .map(|size| k8s_openapi::apimachinery::pkg::api::resource::Quantity(size.clone()))
                        .or_else(|| spec.capacity.as_ref()?.get("storage").cloned());
                    let capacity = status.capacity.get_or_insert_default();
                    capacity.extend(size.map(|size| ("storage".to_owned(), size)));
                }
                if was == "Pending" && phase == "Bound" {
                    status.current_volume_attributes_class_name =
                        spec.volume_attributes_class_name.clone().filter(|name| !name.is_empty());
                }
            }
        }
        if *status != before {
            self.writes.push(Write::ClaimStatus(Box::new(claim.clone())));
        }
        was != phase
    }
}

/// The reference by which events name a volume.
pub fn volume_reference(volume: &PersistentVolume) -> ObjectReference {
    resources::reference(volume)
}

/// The reference by which events name a claim, and volumes too.
pub fn claim_reference(claim: &PersistentVolumeClaim) -> ObjectReference {
    resources::reference(claim)
}
