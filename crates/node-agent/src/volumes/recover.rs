//! What a pod's CSI volume is when its record can't be read: the API's objects tell, or the stages on this node do.

use k8s_openapi::api::core::v1::{PersistentVolume, Pod};
use linux::{Host, MountTable};
use resources::attachment;

use super::{
    Source, VolumeError,
    inline::{self, INLINE, PERSISTENT},
    places::Places,
    stages::{PublishRecord, PublishState, StageRecord},
};
use crate::{layout::Layout, plan::VolumeDirectory, records};

/// Who is to be asked to give a volume back: driver, handle and mode.
type Identity = (String, String, &'static str);

fn record(name: &str, node: &str, (driver, handle, mode): Identity) -> PublishRecord {
    PublishRecord {
        spec_volume: name.to_owned(),
        attachment: attachment::name(&handle, &driver, node),
        handle,
        driver,
        node: node.to_owned(),
        mode: mode.to_owned(),
        own: PublishState::default(),
    }
}

/// From the volume of that name, or the pod's own description of it.
pub(crate) fn from_objects(
    uid: &str,
    name: &str,
    node: &str,
    pod: Option<&Pod>,
    volume: Option<&PersistentVolume>,
) -> Option<PublishRecord> {
    let csi = volume.and_then(|volume| volume.spec.as_ref()?.csi.clone());
    let persistent = csi.map(|csi| (csi.driver, csi.volume_handle, PERSISTENT));
    let own = || {
        let volumes = pod?.spec.as_ref()?.volumes.as_ref()?;
        match Source::of(volumes.iter().find(|volume| volume.name == name)?) {
            Source::Inline(source) => Some((source.driver, inline::handle(uid, name), INLINE)),
            _ => None,
        }
    };
    persistent.or_else(own).map(|identity| record(name, node, identity))
}

/// From the stage's own record. A mounted volume is known by what is mounted: the same part of the same file system as
/// at its stage. Blocks.
pub(crate) fn from_stages(
    host: &dyn Host,
    layout: &Layout,
    table: &MountTable,
    uid: &str,
    volume: &VolumeDirectory,
    node: &str,
) -> Result<Option<PublishRecord>, VolumeError> {
    let places = Places { layout, block: volume.block };
    let found = |stage: StageRecord| record(&volume.name, node, (stage.driver, stage.handle, PERSISTENT));
    if volume.block {
        let stage = records::read::<StageRecord>(&places.stage_record("", "", &volume.name));
        return Ok(stage.ok().flatten().map(found));
    }
    let Some(mount) = table.at(&places.target(uid, &volume.name)) else { return Ok(None) };
    for driver in host.list(&layout.stages())? {
        let driver = layout.stages().join(driver);
        for stage in host.list(&driver).unwrap_or_default() {
            let stage = driver.join(stage);
            let staged = table.at(&stage.join("globalmount"));
            if staged.is_some_and(|staged| (staged.device, &staged.root) == (mount.device, &mount.root)) {
                let stage = records::read::<StageRecord>(&stage.join("vol_data.json"));
                if let Some(stage) = stage.ok().flatten() {
                    return Ok(Some(found(stage)));
                }
            }
        }
    }
    Ok(None)
}
