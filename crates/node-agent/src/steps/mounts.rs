//! What of its pod's volumes a container gets.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, Pod};

use super::StepError;
use crate::{
    agent::Agent,
    blocking::blocking,
    containers::bundle::{BindMount, Device},
    layout,
    plan::Actual,
    volumes::{Source, places::Places, subpath},
};

impl Agent {
    /// Where the volumes of a container lie on this node.
    pub(super) async fn mounts(
        &self,
        uid: &str,
        pod: &Pod,
        container: &Container,
        variables: &BTreeMap<String, String>,
        actual: &Actual,
    ) -> Result<Vec<BindMount>, StepError> {
        // Nothing is made before it is known that every path can be.
        let wanted: Vec<_> = container.volume_mounts.iter().flatten().collect();
        let sub_paths: Vec<_> =
            wanted.iter().map(|mount| subpath::wanted(mount, variables)).collect::<Result<_, _>>()?;
        let mut mounts = Vec::new();
        for (index, (mount, sub_path)) in wanted.into_iter().zip(sub_paths).enumerate() {
            let unknown = || StepError::UnknownVolume(mount.name.clone());
            let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
            let volume =
                volumes.into_iter().flatten().find(|of| of.name == mount.name).ok_or_else(unknown)?;
            let source = Source::of(volume);
            let path = match (&source, actual.ready.get(&mount.name)) {
                (Source::HostPath { path, .. }, _) => path.clone(),
                (_, Some(Some(directory))) if directory.plugin == layout::CSI => {
                    self.layout.csi_target(uid, &directory.name)
                }
                (_, Some(Some(directory))) => self.layout.volume(uid, &directory.plugin, &directory.name),
                _ => return Err(unknown()),
            };
            let content = matches!(source, Source::Content { .. });
            let volume_read_only = match &source {
                Source::Claim { read_only, .. } => *read_only,
                Source::Flex(volume) => volume.read_only,
                _ => false,
            };
            let path = match sub_path {
                None => path,
                Some(sub_path) => {
                    let target = self.layout.subpath(uid, &mount.name, &container.name, index);
                    let (host, bound) = (self.host.clone(), target.clone());
                    blocking("mounting a sub-path", move || {
                        subpath::bind(&*host, &path, &sub_path, &bound, content)
                    })
                    .await?;
                    target
                }
            };
            mounts.push(BindMount {
                source: path,
                target: mount.mount_path.clone(),
                read_only: content || volume_read_only || mount.read_only.unwrap_or(false),
            });
        }
        Ok(mounts)
    }

    /// The block volumes of a container.
    pub(super) async fn devices(
        &self,
        uid: &str,
        pod: &Pod,
        container: &Container,
        actual: &Actual,
    ) -> Result<Vec<Device>, StepError> {
        let mut devices = Vec::new();
        for wanted in container.volume_devices.iter().flatten() {
            let unknown = || StepError::UnknownVolume(wanted.name.clone());
            let volumes = pod.spec.as_ref().and_then(|spec| spec.volumes.as_ref());
            let volume =
                volumes.into_iter().flatten().find(|of| of.name == wanted.name).ok_or_else(unknown)?;
            let Some(Some(directory)) = actual.ready.get(&wanted.name) else { return Err(unknown()) };
            let node = Places { layout: &self.layout, block: true }.target(uid, &directory.name);
            let host = self.host.clone();
            let found = blocking("looking at a device", move || Ok(host.block_device(&node)?)).await?;
            let read_only = matches!(Source::of(volume), Source::Claim { read_only: true, .. });
            devices.push(Device {
                number: found.number,
                path: wanted.device_path.clone(),
                read_only: read_only || found.read_only,
            });
        }
        Ok(devices)
    }
}
