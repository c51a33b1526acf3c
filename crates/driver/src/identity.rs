//! The Identity service.

use crate::call::Answer;
use crate::serve::Driver;
use csi::v1::plugin_capability::{Service, Type, VolumeExpansion, service, volume_expansion};
use csi::v1::{
    GetPluginCapabilitiesRequest, GetPluginCapabilitiesResponse, GetPluginInfoRequest, GetPluginInfoResponse,
    PluginCapability, ProbeRequest, ProbeResponse, identity_server,
};
use drives::{Drive, DriveState};
use tonic::{Request, Status};

#[tonic::async_trait]
impl identity_server::Identity for Driver {
    async fn get_plugin_info(&self, _: Request<GetPluginInfoRequest>) -> Answer<GetPluginInfoResponse> {
        let info = GetPluginInfoResponse {
            name: self.node.name.to_string(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: Default::default(),
        };
        self.answer("GetPluginInfo", "", async { Ok(info) }).await
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<GetPluginCapabilitiesRequest>,
    ) -> Answer<GetPluginCapabilitiesResponse> {
        let service = |kind: service::Type| Type::Service(Service { r#type: kind.into() });
        let online = VolumeExpansion { r#type: volume_expansion::Type::Online.into() };
        // Groups are of snapshots, which not every drive can make.
        let groups = self.drives.copies().then(|| service(service::Type::GroupControllerService));
        let always = [
            service(service::Type::ControllerService),
            service(service::Type::VolumeAccessibilityConstraints),
            Type::VolumeExpansion(online),
        ];
        let all = always.into_iter().chain(groups);
        let capabilities = all.map(|kind| PluginCapability { r#type: Some(kind) }).collect();
        self.answer("GetPluginCapabilities", "", async { Ok(GetPluginCapabilitiesResponse { capabilities }) })
            .await
    }

    async fn probe(&self, _: Request<ProbeRequest>) -> Answer<ProbeResponse> {
        self.answer("Probe", "", async {
            healthy(&self.drives.drives()).map_err(Status::failed_precondition)?;
            self.drives.can_mount().await.map_err(|error| {
                Status::failed_precondition(format!(
                    "{error}; run the driver privileged (CAP_SYS_ADMIN), in a namespace that may mount"
                ))
            })?;
            Ok(ProbeResponse { ready: Some(true) })
        })
        .await
    }
}

/// A driver is well while one of its drives serves, and when it was given none yet. A new start looks at all drives
/// again, which is what an orchestrator does with a driver that isn't well.
fn healthy(drives: &[Drive]) -> Result<(), String> {
    let failures: Vec<String> = drives
        .iter()
        .filter_map(|drive| match &drive.state {
            DriveState::Ready => None,
            DriveState::Failed { reason } => Some(format!("{}: {reason}", drive.source)),
        })
        .collect();
    if failures.len() < drives.len() || drives.is_empty() {
        return Ok(());
    }
    Err(format!("no drive serves ({}); repair a drive, then restart the driver", failures.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::healthy;
    use drives::{Drive, DriveState, Source};

    fn drive(state: DriveState) -> Drive {
        Drive {
            id: None,
            source: Source::Device("/dev/sdz".into()),
            device: None,
            mount: Some("/drives/1".into()),
            backend: None,
            state,
            size: 0,
            capacity: 0,
            allocated: 0,
            free: 0,
            volumes: 0,
            snapshots: 0,
            labels: Default::default(),
            trouble: None,
        }
    }

    #[test]
    fn a_driver_is_well_while_a_drive_serves() {
        let failed = || drive(DriveState::Failed { reason: "its device is gone".into() });
        assert_eq!(healthy(&[]), Ok(()));
        assert_eq!(healthy(&[drive(DriveState::Ready)]), Ok(()));
        assert_eq!(healthy(&[failed(), drive(DriveState::Ready)]), Ok(()));
        let complaint = healthy(&[failed(), failed()]).expect_err("nothing serves");
        assert!(complaint.contains("/dev/sdz: its device is gone"), "{complaint}");
    }
}
