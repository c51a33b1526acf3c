//! The Controller service.

use crate::call::Answer;
use crate::flight::Key;
use crate::request::{
    Capacity, Create, Delete, EPHEMERAL, Expand, Get, List, Modify, Refusal, Validate, Verdict,
};
use crate::serve::Driver;
use crate::snapshots::content_source;
use crate::status::refused;
use csi::v1::controller_service_capability::{Rpc, Type, rpc};
use csi::v1::volume_content_source::Type as Source;
use csi::v1::{self, controller_server};
use drives::{AccessType, Volume, VolumeId};
use std::collections::BTreeMap;
use tonic::{Request, Status};

/// In a volume's context, what it shows its users, if that is not a file system: `block`. For people and tools; no call
/// needs it.
pub const ACCESS_TYPE: &str = "orlop.dev/access-type";

const ABILITIES: [rpc::Type; 12] = [
    rpc::Type::CreateDeleteVolume,
    rpc::Type::ListVolumes,
    rpc::Type::GetCapacity,
    rpc::Type::ExpandVolume,
    rpc::Type::GetVolume,
    rpc::Type::CreateDeleteSnapshot,
    rpc::Type::ListSnapshots,
    rpc::Type::GetSnapshot,
    rpc::Type::CloneVolume,
    rpc::Type::SingleNodeMultiWriter,
    rpc::Type::VolumeCondition,
    rpc::Type::ModifyVolume,
];

/// Those that only hold where a drive can copy.
const OF_COPIES: [rpc::Type; 4] = [
    rpc::Type::CreateDeleteSnapshot,
    rpc::Type::ListSnapshots,
    rpc::Type::GetSnapshot,
    rpc::Type::CloneVolume,
];

#[tonic::async_trait]
impl controller_server::Controller for Driver {
    async fn create_volume(
        &self,
        request: Request<v1::CreateVolumeRequest>,
    ) -> Answer<v1::CreateVolumeResponse> {
        let mut request = request.into_inner();
        if let Some(v1::VolumeContentSource { r#type: Some(Source::Volume(source)) }) =
            &mut request.volume_content_source
        {
            source.volume_id = self.identity(std::mem::take(&mut source.volume_id))?;
        }
        let name = request.name.clone();
        self.answer("CreateVolume", &name, async {
            let Create(wanted) = Create::check(request, &self.node.segments)?;
            self.throttles.check(wanted.throttle)?;
            let drives = self.drives.clone();
            let made = self
                .flights
                .run(Key::Name(name.clone()), async move { drives.create(wanted).await.map_err(refused) })
                .await?;
            Ok(v1::CreateVolumeResponse { volume: Some(self.shown(&made)) })
        })
        .await
    }

    async fn delete_volume(
        &self,
        request: Request<v1::DeleteVolumeRequest>,
    ) -> Answer<v1::DeleteVolumeResponse> {
        let mut request = request.into_inner();
        request.volume_id = self.identity(request.volume_id)?;
        self.answer("DeleteVolume", &request.volume_id, async {
            let id = match Delete::check(&request) {
                Ok(Delete(id)) => id,
                // What never existed is deleted.
                Err(Refusal::ForeignVolume(_)) => return Ok(v1::DeleteVolumeResponse {}),
                Err(refusal) => return Err(refusal.into()),
            };
            if let Some(answer) = self.nowhere(&id) {
                return answer.map(|()| v1::DeleteVolumeResponse {});
            }
            let drives = self.drives.clone();
            let key = Key::Volume(id.clone());
            self.flights.run(key, async move { drives.delete(&id).await.map_err(refused) }).await?;
            Ok(v1::DeleteVolumeResponse {})
        })
        .await
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<v1::ValidateVolumeCapabilitiesRequest>,
    ) -> Answer<v1::ValidateVolumeCapabilitiesResponse> {
        let mut request = request.into_inner();
        request.volume_id = self.identity(request.volume_id)?;
        let id = request.volume_id.clone();
        self.answer("ValidateVolumeCapabilities", &id, async {
            let asked = Validate::check(&request)?;
            let volume = self.volume(&asked.volume)?;
            Ok(match objection(&asked.verdict, &volume) {
                Some(message) => v1::ValidateVolumeCapabilitiesResponse { confirmed: None, message },
                None => v1::ValidateVolumeCapabilitiesResponse {
                    confirmed: Some(v1::validate_volume_capabilities_response::Confirmed {
                        volume_context: request.volume_context,
                        volume_capabilities: request.volume_capabilities,
                        parameters: request.parameters,
                        mutable_parameters: request.mutable_parameters,
                    }),
                    message: String::new(),
                },
            })
        })
        .await
    }

    async fn list_volumes(
        &self,
        request: Request<v1::ListVolumesRequest>,
    ) -> Answer<v1::ListVolumesResponse> {
        let request = request.into_inner();
        self.answer("ListVolumes", "", async {
            let asked = List::check(&request)?;
            let (volumes, next_token) = page(self.drives.volumes(), |volume| &volume.id, &asked);
            let entry = |volume: Volume| v1::list_volumes_response::Entry {
                volume: Some(self.shown(&volume)),
                status: Some(v1::list_volumes_response::VolumeStatus {
                    volume_condition: Some(condition(&volume)),
                    ..Default::default()
                }),
            };
            Ok(v1::ListVolumesResponse { entries: volumes.into_iter().map(entry).collect(), next_token })
        })
        .await
    }

    async fn get_capacity(
        &self,
        request: Request<v1::GetCapacityRequest>,
    ) -> Answer<v1::GetCapacityResponse> {
        let request = request.into_inner();
        let mut why_none = None;
        let answer = self.answer("GetCapacity", "", async {
            Ok(match Capacity::check(&request, &self.node.segments)? {
                Capacity::None(why) => {
                    why_none = why;
                    v1::GetCapacityResponse {
                        available_capacity: 0,
                        maximum_volume_size: Some(0),
                        minimum_volume_size: None,
                    }
                }
                Capacity::Of(kind, asked, own) => {
                    let capacity = self.drives.capacity(asked.backend, &asked.drives, &own);
                    why_none.clone_from(&capacity.why_none);
                    let largest = match kind {
                        AccessType::Mount => capacity.largest_volume,
                        AccessType::Block => capacity.largest_block_volume,
                    };
                    v1::GetCapacityResponse {
                        available_capacity: signed(capacity.available),
                        maximum_volume_size: Some(signed(largest)),
                        minimum_volume_size: Some(signed(capacity.smallest_volume)),
                    }
                }
            })
        });
        let mut answer = answer.await?;
        if let Some(why) = why_none {
            // Whoever asks through the standard alone sees that there is none, and not why.
            csi::tell_why_none(answer.metadata_mut(), &why);
        }
        Ok(answer)
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<v1::ControllerGetCapabilitiesRequest>,
    ) -> Answer<v1::ControllerGetCapabilitiesResponse> {
        let copies = self.drives.copies();
        let capabilities = ABILITIES
            .into_iter()
            .filter(|kind| copies || !OF_COPIES.contains(kind))
            .map(|kind| v1::ControllerServiceCapability {
                r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
            })
            .collect();
        self.answer("ControllerGetCapabilities", "", async {
            Ok(v1::ControllerGetCapabilitiesResponse { capabilities })
        })
        .await
    }

    async fn create_snapshot(
        &self,
        request: Request<v1::CreateSnapshotRequest>,
    ) -> Answer<v1::CreateSnapshotResponse> {
        let request = request.into_inner();
        let source = request.source_volume_id.clone();
        self.answer("CreateSnapshot", &source, async {
            Ok(v1::CreateSnapshotResponse { snapshot: Some(self.snapshot(request).await?) })
        })
        .await
    }

    async fn delete_snapshot(
        &self,
        request: Request<v1::DeleteSnapshotRequest>,
    ) -> Answer<v1::DeleteSnapshotResponse> {
        let request = request.into_inner();
        self.answer("DeleteSnapshot", &request.snapshot_id, async {
            self.forget_snapshot(&request).await?;
            Ok(v1::DeleteSnapshotResponse {})
        })
        .await
    }

    async fn list_snapshots(
        &self,
        request: Request<v1::ListSnapshotsRequest>,
    ) -> Answer<v1::ListSnapshotsResponse> {
        let request = request.into_inner();
        self.answer("ListSnapshots", "", async { self.all_snapshots(request) }).await
    }

    async fn get_snapshot(
        &self,
        request: Request<v1::GetSnapshotRequest>,
    ) -> Answer<v1::GetSnapshotResponse> {
        let request = request.into_inner();
        self.answer("GetSnapshot", &request.snapshot_id, async {
            Ok(v1::GetSnapshotResponse { snapshot: Some(self.one_snapshot(&request)?) })
        })
        .await
    }

    async fn controller_expand_volume(
        &self,
        request: Request<v1::ControllerExpandVolumeRequest>,
    ) -> Answer<v1::ControllerExpandVolumeResponse> {
        let mut request = request.into_inner();
        request.volume_id = self.identity(request.volume_id)?;
        let id = request.volume_id.clone();
        self.answer("ControllerExpandVolume", &id, async {
            let Expand { volume, sizes } = Expand::check(request)?;
            let size = self.expand(volume, sizes).await?;
            // The drive enforces the new size at once, on the node where the volume is used.
            Ok(v1::ControllerExpandVolumeResponse {
                capacity_bytes: signed(size),
                node_expansion_required: false,
            })
        })
        .await
    }

    async fn controller_modify_volume(
        &self,
        request: Request<v1::ControllerModifyVolumeRequest>,
    ) -> Answer<v1::ControllerModifyVolumeResponse> {
        let mut request = request.into_inner();
        request.volume_id = self.identity(request.volume_id)?;
        self.answer("ControllerModifyVolume", &request.volume_id, async {
            let Modify { volume, throttle } = Modify::check(&request)?;
            self.volume(&volume)?;
            self.throttles.check(throttle)?;
            let (drives, throttles) = (self.drives.clone(), self.throttles.clone());
            let key = Key::Volume(volume.clone());
            let work = async move {
                drives.throttle(&volume, throttle).await.map_err(refused)?;
                throttles.apply_to_users(&drives, &volume).await
            };
            self.flights.run(key, work).await?;
            Ok(v1::ControllerModifyVolumeResponse {})
        })
        .await
    }

    async fn controller_get_volume(
        &self,
        request: Request<v1::ControllerGetVolumeRequest>,
    ) -> Answer<v1::ControllerGetVolumeResponse> {
        let mut request = request.into_inner();
        request.volume_id = self.identity(request.volume_id)?;
        self.answer("ControllerGetVolume", &request.volume_id, async {
            let Get(id) = Get::check(&request)?;
            let volume = self.volume(&id)?;
            Ok(v1::ControllerGetVolumeResponse {
                volume: Some(self.shown(&volume)),
                status: Some(v1::controller_get_volume_response::VolumeStatus {
                    volume_condition: Some(condition(&volume)),
                    ..Default::default()
                }),
            })
        })
        .await
    }
}

impl Driver {
    pub(crate) fn volume(&self, id: &VolumeId) -> Result<Volume, Status> {
        self.drives.volume(id).ok_or_else(|| {
            Status::not_found(format!("volume {id} does not exist on node {}", self.node.node_id))
        })
    }

    pub(crate) async fn expand(&self, id: VolumeId, sizes: crate::request::Sizes) -> Result<u64, Status> {
        let drives = self.drives.clone();
        let key = Key::Volume(id.clone());
        let work = async move { drives.expand(&id, sizes.required, sizes.limit).await.map_err(refused) };
        self.flights.run(key, work).await
    }

    /// The volume as CSI shows it. Its context says which claim it was made for, as noted on its drive: no call needs
    /// that, but an orchestrator that lost everything does.
    fn shown(&self, volume: &Volume) -> v1::Volume {
        let mut volume_context: BTreeMap<String, String> = volume.notes.clone().into_iter().collect();
        if volume.access == AccessType::Block {
            volume_context.insert(ACCESS_TYPE.to_owned(), "block".to_owned());
        }
        if volume.ephemeral {
            volume_context.insert(EPHEMERAL.to_owned(), "true".to_owned());
        }
        v1::Volume {
            capacity_bytes: signed(volume.size),
            volume_id: self.node.name.handle(&volume.id),
            accessible_topology: vec![v1::Topology { segments: self.node.segments.clone() }],
            volume_context,
            content_source: volume.origin.as_ref().map(|origin| content_source(self.node.name, origin)),
        }
    }
}

/// How the volume is, for people and their alarms.
pub(crate) fn condition(volume: &Volume) -> v1::VolumeCondition {
    v1::VolumeCondition {
        abnormal: volume.trouble.is_some(),
        message: volume.trouble.clone().unwrap_or_else(|| "the volume is well".to_owned()),
    }
}

/// CSI's sizes are signed.
pub(crate) fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn objection(verdict: &Verdict, volume: &Volume) -> Option<String> {
    match verdict {
        Verdict::No(refusal) => Some(refusal.to_string()),
        Verdict::Of(kind, _) if *kind != volume.access => {
            Some(format!("volume {} is {}, not {kind}", volume.id, volume.access))
        }
        Verdict::Of(_, Some(backend))
            if *backend != volume.backend && backend.name() != volume.filesystem() =>
        {
            Some(format!("volume {} is on {}, not on {backend}", volume.id, volume.backend))
        }
        Verdict::Of(..) => None,
    }
}

/// One page of volumes or snapshots in order of identity, and the token of the next. The token is the last one's
/// identity, so that those that come and go between pages neither repeat nor hide another.
pub(crate) fn page<T>(mut all: Vec<T>, id: impl Fn(&T) -> &VolumeId, asked: &List) -> (Vec<T>, String) {
    all.sort_unstable_by(|one, other| id(one).cmp(id(other)));
    if let Some(after) = &asked.after {
        let start = all.partition_point(|one| id(one) <= after);
        all.drain(..start);
    }
    let more = all.len() > asked.most;
    all.truncate(asked.most);
    let token = all.last().filter(|_| more).map(|one| id(one).to_string());
    (all, token.unwrap_or_default())
}
